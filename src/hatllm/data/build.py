"""Source files -> items, users and the examples of each split, with every loss on record."""

import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import polars as pl

from hatllm.config import DataConfig
from hatllm.data.filter import each_once, k_core, min_rated, titled_only
from hatllm.data.json_lines import BadRows
from hatllm.data.sources import amazon, custom, ml100k, ready, windows
from hatllm.data.sources.source_tables import SourceTables
from hatllm.data.sources.timestamps import odd_time_notes
from hatllm.data.split import SPLITS, in_sequence_order, split_sequences, train_interactions
from hatllm.data.table_cache import PreparedTables, tables_hash
from hatllm.data.titles import cut_titles, prepared_titles
from hatllm.data.train_interactions import interactions_of


@dataclass(frozen=True)
class SourceFiles:
    """The files of one source and how to read them.

    Attributes:
        form: ``ready``, ``ml100k``, ``amazon``, ``windows`` or ``custom``.
        paths: Role -> file. Roles of windows are split names and 'titles', of the others
            'interactions' and 'items'.
        notes: Anything a reader of the results should know.
    """

    form: str
    paths: dict[str, Path]
    notes: list[str] = field(default_factory=list)

    def fingerprint(self) -> str:
        """Return a hash of each file's name, size and modification time (not its contents)."""
        digest = hashlib.sha256(self.form.encode())
        for role, path in self.paths.items():
            stat = path.stat()
            digest.update(f"{role}={path.name},{stat.st_size},{stat.st_mtime_ns};".encode())
        return digest.hexdigest()


def locate_source(config: DataConfig, data_root: Path | None, cache_root: Path) -> SourceFiles:
    """Return the source's files, fetching what is neither under data_root nor in the cache.

    Raises:
        ConnectionError: If a file has to be fetched and cannot be.
        ValueError: If the source needs data_root and there is none, or files are missing there.
    """
    folder = None if data_root is None else data_root.expanduser() / (config.folder or config.name)
    match config.source:
        case "ml100k":
            ratings, films = ml100k.fetch_ml100k(cache_root)
            return SourceFiles("ml100k", {"interactions": ratings, "items": films})
        case "windows":
            return SourceFiles("windows", windows.find_windows(config, folder))
        case "custom":
            return SourceFiles("custom", custom.find_tables(config, data_root))
        case "amazon":
            return _locate_amazon(config, folder, cache_root)
        case _:
            raise ValueError(f"data.source={config.source!r} is not a source")


def _locate_amazon(config: DataConfig, folder: Path | None, cache_root: Path) -> SourceFiles:
    """Ready tables first, then the published files under data_root, then the network."""
    tables = None if folder is None else ready.find_ready_tables(folder)
    if tables is not None:
        notes = [f"ready tables were used; data.release={config.release} was not looked at"]
        return SourceFiles(
            "ready", dict(zip(("interactions", "items"), tables, strict=True)), notes
        )
    reviews, metadata = amazon.fetch_amazon(config, folder, cache_root)
    return SourceFiles("amazon", {"interactions": reviews, "items": metadata})


@dataclass(frozen=True)
class _Built:
    """Tables before they are checked, and what the manifest says about them."""

    splits: dict[str, pl.DataFrame]
    train_interactions: pl.DataFrame
    items: pl.DataFrame
    users: pl.DataFrame
    bad_rows: BadRows
    steps: list[dict[str, Any]]  # what each filter left
    notes: list[str]
    holdout: str | None
    untouched_items: int = 0  # left out of the catalogue


def build_tables(config: DataConfig, files: SourceFiles) -> PreparedTables:
    """Parse, filter and split a source.

    Raises:
        ValueError: If a source file is malformed, or no train or test example is left.
    """
    start = time.perf_counter()
    built = _from_windows(config, files) if files.form == "windows" else _from_rows(config, files)
    if built.splits["train"].is_empty() or built.splits["test"].is_empty():
        raise ValueError(_no_examples(config, built))
    titles, cut_notes = cut_titles(built.items["title"], config.max_title_characters)
    items = built.items.with_columns(titles).sort("item_id")
    seen = pl.concat([rows["user_id"] for rows in built.splits.values()]).unique()
    users = built.users.filter(pl.col("user_id").is_in(seen.implode()))
    tables = {"items": items, "users": users.sort("user_id"), **built.splits}
    interactions = {"train_interactions": built.train_interactions}
    hashed = tables if files.form == "windows" else tables | interactions  # there they follow
    manifest = {
        "data_hash": tables_hash(hashed),
        "source": {
            "form": files.form,
            "files": {path.name: path.stat().st_size for path in files.paths.values()},
        },
        "steps": built.steps,
        "holdout": built.holdout,
        "untouched_items": built.untouched_items,
        "bad_rows": built.bad_rows.report(),
        "notes": files.notes + built.notes + cut_notes,
        "timings": {"build_s": round(time.perf_counter() - start, 3)},
    }
    return PreparedTables(tables=tables | interactions, manifest=manifest)


def _from_rows(config: DataConfig, files: SourceFiles) -> _Built:
    """Each interaction once, titled items, then k-core, then a protocol."""
    source = _read(config, files)
    items = source.items.with_columns(prepared_titles(source.items["title"], config.clean_titles))
    interactions = in_sequence_order(source.interactions)
    once = each_once(interactions, source.bad_rows)
    rated = min_rated(once, config.min_rating, source.bad_rows)
    titled, items = titled_only(rated, items, source.bad_rows)
    kept = k_core(titled, config.min_interactions)
    cut = (config.protocol, config.max_history_items, config.min_history_items)
    splits = split_sequences(kept, *cut)
    untouched = source.untouched_items + items.height - titled["item_id"].n_unique()
    steps = [_step("read", interactions)]
    if once.height < interactions.height:
        steps.append(_step("each once", once))
    if config.min_rating is not None:
        steps.append(_step(f"rated {config.min_rating:g} or more", rated))
    steps.append(_step("with a title", titled))
    steps.append(_step(f"{config.min_interactions}-core", kept))
    return _Built(
        splits=splits,
        train_interactions=train_interactions(kept, *cut),
        items=items.filter(pl.col("item_id").is_in(kept["item_id"].unique().implode())),
        users=source.users,
        bad_rows=source.bad_rows,
        steps=steps,
        notes=[*source.notes, *_left_out(kept, splits, untouched)],
        holdout=None,
        untouched_items=untouched,
    )


def _left_out(
    kept: pl.DataFrame, splits: dict[str, pl.DataFrame], untouched_items: int
) -> Iterator[str]:
    """What no bad row and no filter tells: items nobody touched, users too short for an example."""
    if untouched_items:
        yield f"{untouched_items:,} items that nobody touched are not in the catalogue"
    with_example = pl.concat([rows["user_id"] for rows in splits.values()]).unique()
    short = kept.filter(~pl.col("user_id").is_in(with_example.implode()))
    if short.height:
        users = short["user_id"].n_unique()
        yield f"{users:,} users are too short for an example ({short.height:,} interactions)"


def _read(config: DataConfig, files: SourceFiles) -> SourceTables:
    source = _tables(config, files)
    times = odd_time_notes(source.interactions["timestamp"])
    return replace(source, notes=[*source.notes, *times])


def _tables(config: DataConfig, files: SourceFiles) -> SourceTables:
    interactions, items = files.paths["interactions"], files.paths["items"]
    rating = None if config.min_rating is None else config.rating_column or "rating"
    match files.form:
        case "ready":
            return ready.read_ready_tables(interactions, items, rating)
        case "ml100k":
            return ml100k.read_ml100k(interactions, items, rating)
        case "amazon":
            release = str(config.release)
            if rating is not None:
                rating = config.rating_column or amazon.RELEASES[release].rating
            return amazon.read_amazon(interactions, items, release, rating)
        case _:
            return custom.read_custom(interactions, items, config)


def _step(label: str, interactions: pl.DataFrame) -> dict[str, Any]:
    return {
        "step": label,
        "interactions": interactions.height,
        "users": interactions["user_id"].n_unique(),
        "items": interactions["item_id"].n_unique(),
    }


def _from_windows(config: DataConfig, files: SourceFiles) -> _Built:
    """Windows are split already; they only lose rows that cannot be used."""
    split_files = {name: files.paths[name] for name in SPLITS if name in files.paths}
    source = windows.read_windows(split_files, files.paths["titles"])
    items = source.items.with_columns(prepared_titles(source.items["title"], config.clean_titles))
    splits, holdout = windows.window_examples(
        source.splits,
        items,
        source.bad_rows,
        config.max_history_items,
        config.min_history_items,
        config.holdout_fraction,
    )
    items = source.bad_rows.drop(items, pl.col("title").is_null(), "item without a title")
    times = pl.concat([rows["timestamp"] for rows in source.splits.values()])
    user_ids = pl.concat([rows["user_id"] for rows in splits.values()]).unique()
    return _Built(
        splits=splits,
        train_interactions=interactions_of(splits["train"]),
        items=items,
        users=pl.DataFrame({"user_id": user_ids, "source_id": user_ids.cast(pl.Utf8)}),
        bad_rows=source.bad_rows,
        steps=[],
        notes=[*odd_time_notes(times), *_repeated_windows(source.splits)],
        holdout=holdout,
    )


def _repeated_windows(splits: dict[str, pl.DataFrame]) -> Iterator[str]:
    """Windows that stand there again; dropping them would change published rows.

    Where a user took one item many times at one time, windows of stride 1 are equal: so in Books.
    """
    for name, rows in splits.items():
        repeated = rows.height - rows.n_unique()
        if repeated:
            yield f"{repeated:,} {name} windows stand there again and are kept (as published)"


def _no_examples(config: DataConfig, built: _Built) -> str:
    left = ", ".join(f"{step['step']}: {step['interactions']} interactions" for step in built.steps)
    bad = ", ".join(f"{reason}: {count}" for reason, count in built.bad_rows.counts.items())
    return (
        f"data={config.name} leaves no example in train or test ({left or 'windows'}; bad rows: "
        f"{bad or 'none'}). Lower data.min_interactions={config.min_interactions} or "
        f"data.min_history_items={config.min_history_items}, or check the item ids of both files"
    )
