"""Prepared windows: split already, rows of ``user_id``, ``item_ids`` and ``timestamp``.

``item_ids`` is a JSON list, history oldest first and then the target; ``id2name4Rec.json`` maps
item ids to titles. This is the form in which the authors of MSL publish their data. As examples
they are checked against the titles, shortened, and held out for valid.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from hatllm.config import DataConfig
from hatllm.data.json_lines import BadRows
from hatllm.data.sources.csv_table import read_csv_texts
from hatllm.data.sources.source_tables import listed_once, names_shown
from hatllm.data.split import with_example_ids

TITLES_FILE = "id2name4Rec.json"
COLUMNS = ("user_id", "item_ids", "timestamp")


@dataclass(frozen=True)
class WindowTables:
    """Prepared windows, parsed.

    Attributes:
        splits: 'train', 'test' and, where there is one, 'valid': user_id Int64, item_ids
            List(Int64), timestamp Int64 (of the target, Unix seconds), in file order.
        items: item_id Int64 (unique), title Utf8 (null = untitled), source_id Utf8.
        bad_rows: Rows that could not be read.
    """

    splits: dict[str, pl.DataFrame]
    items: pl.DataFrame
    bad_rows: BadRows


def find_windows(config: DataConfig, folder: Path | None) -> dict[str, Path]:
    """Return the files of the splits that are there (valid may be missing) and of the titles.

    Raises:
        ValueError: If there is no folder, or it lacks a file.
    """
    content = f"{config.train_file}, {config.test_file} and {TITLES_FILE}"
    if folder is None:
        raise ValueError(
            f"data_root=null must name the folder that holds {config.folder or config.name}/ with "
            f"{content} (data={config.name} is a set of prepared windows and is not downloaded; "
            "github.com/WANGBohaO-jpg/MSL has the authors' files, docs/data.md their names here)"
        )
    names = {"train": config.train_file, "valid": config.valid_file, "test": config.test_file}
    files = {role: folder / name for role, name in (names | {"titles": TITLES_FILE}).items()}
    missing = [path.name for role, path in files.items() if role != "valid" and not path.exists()]
    if missing:
        raise ValueError(
            f"data_root={str(folder.parent)!r}: {folder} lacks {', '.join(missing)}; "
            f"data={config.name} needs {content} there (docs/data.md says where the authors' are)"
        )
    return {role: path for role, path in files.items() if path.exists()}


def read_windows(split_files: dict[str, Path], titles_file: Path) -> WindowTables:
    """Read the windows of each split and the titles.

    Raises:
        ValueError: If a file lacks a column or the titles are not a JSON object.
    """
    bad_rows = BadRows()
    splits = {name: _read_split(path, bad_rows) for name, path in split_files.items()}
    items = _read_titles(titles_file, bad_rows)
    return WindowTables(splits=splits, items=items, bad_rows=bad_rows)


def _read_split(path: Path, bad_rows: BadRows) -> pl.DataFrame:
    raw = read_csv_texts(path, ",", bad_rows)
    for column in COLUMNS:
        if column not in raw.columns:
            raise ValueError(f"{path} has no column {column!r}, only {names_shown(raw.columns)}")
    parsed = raw.select(
        pl.col("user_id").cast(pl.Int64, strict=False),
        pl.col("item_ids").str.strip_chars("[] ").str.split(",").alias("texts"),
        pl.col("timestamp").cast(pl.Float64, strict=False).cast(pl.Int64, strict=False),
        pl.col("item_ids").alias("raw_item_ids"),
    ).with_columns(
        item_ids=pl.col("texts").list.eval(
            pl.element().str.strip_chars(" '\"").cast(pl.Int64, strict=False)
        )
    )
    parsed = parsed.drop("texts")
    malformed = pl.col("user_id").is_null() | pl.col("item_ids").list.eval(
        pl.element().is_null()
    ).list.any().fill_null(True)
    parsed = bad_rows.drop(parsed, malformed, f"unreadable row of {path.name}")
    bad_time = pl.col("timestamp").is_null() | (pl.col("timestamp") < 0)
    parsed = bad_rows.drop(parsed, bad_time, f"bad timestamp in {path.name}")
    return parsed.select("user_id", "item_ids", "timestamp")


def _read_titles(path: Path, bad_rows: BadRows) -> pl.DataFrame:
    try:
        pairs = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_Pairs)
        rows = [(_row_id(key), title) for key, title in pairs.pairs]
    except (ValueError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{path} must be a JSON object of item id -> title, got {type(error).__name__}: {error}"
        ) from error
    texts = [(item_id, None if title is None else str(title)) for item_id, title in rows
             if title is None or isinstance(title, str | int | float)]  # fmt: skip
    strange = [repr(title) for _, title in rows
               if not (title is None or isinstance(title, str | int | float))]  # fmt: skip
    bad_rows.add("item whose title is no text", strange, len(strange))
    schema = {"item_id": pl.Int64, "title": pl.Utf8}
    items = pl.DataFrame(
        [(item_id, _whole(title)) for item_id, title in texts], schema=schema, orient="row"
    )
    items = listed_once(items, "item_id", bad_rows)
    return items.with_columns(source_id=pl.col("item_id").cast(pl.Utf8)).sort("item_id")


@dataclass(frozen=True)
class _Pairs:
    """A JSON object with its repeated keys."""

    pairs: list[tuple[str, Any]]


def _row_id(key: str) -> int:
    item_id = int(key)
    if not -(2**63) <= item_id < 2**63:
        raise ValueError(f"item id {key} does not fit 64 bits")
    return item_id


def _whole(title: str | None) -> str | None:
    """Half a character (a lone surrogate of an escape), replaced."""
    return None if title is None else title.encode("utf-8", "replace").decode()


def window_examples(
    splits: dict[str, pl.DataFrame],
    items: pl.DataFrame,
    bad_rows: BadRows,
    max_history_items: int,
    min_history_items: int,
    holdout_fraction: float,
) -> tuple[dict[str, pl.DataFrame], str | None]:
    """Turn the windows of a source into examples.

    Args:
        splits: Windows by split, see ``WindowTables``; 'valid' may be missing.
        items: item_id, title (null = untitled).
        bad_rows: Takes windows with an unknown or untitled item, or too short ones.
        max_history_items: Longest history; older items are left out.
        min_history_items: Shortest history.
        holdout_fraction: Share of train, newest targets, used as valid where there is none.

    Returns:
        Examples by split (see ``split_sequences``) and a note on the held-out rows, or None.
    """
    examples = {
        name: _examples(
            _usable(windows, items, bad_rows, name, min_history_items), max_history_items
        )
        for name, windows in splits.items()
    }
    note = None
    if "valid" not in examples:
        train, valid, note = hold_out(examples["train"], holdout_fraction)
        examples |= {"train": train, "valid": valid}
    return with_example_ids(examples), note


def hold_out(train: pl.DataFrame, fraction: float) -> tuple[pl.DataFrame, pl.DataFrame, str]:
    """Take the ``fraction`` of train with the newest targets as valid, both in their old order.

    In a train file in time order these are its last rows; ties go to the later row.
    """
    num_valid = int(train.height * fraction)
    train = train.with_row_index("_row")
    newest = train.sort("timestamp", maintain_order=True).tail(num_valid)["_row"]
    held_out = pl.col("_row").is_in(newest.implode())
    note = (
        f"the source has no valid split: the newest {fraction:g} of train "
        f"({num_valid:,} of {train.height:,} rows) is valid"
    )
    return train.filter(~held_out).drop("_row"), train.filter(held_out).drop("_row"), note


def _usable(
    windows: pl.DataFrame, items: pl.DataFrame, bad_rows: BadRows, split: str, min_history: int
) -> pl.DataFrame:
    """The windows with a long enough history whose every item has a title."""
    short = pl.col("item_ids").list.len() < min_history + 1
    reason = f"{split} window with fewer than {min_history} history items"
    windows = bad_rows.drop(windows, short, reason)
    known = items["item_id"]
    titled = items.filter(pl.col("title").is_not_null())["item_id"]
    for allowed, reason in (
        (known, f"{split} window with an unknown item"),
        (titled, f"{split} window with an untitled item"),
    ):
        bad = pl.col("item_ids").list.eval(~pl.element().is_in(allowed.implode())).list.any()
        windows = bad_rows.drop(windows, bad, reason)
    return windows


def _examples(windows: pl.DataFrame, max_history: int) -> pl.DataFrame:
    length = pl.col("item_ids").list.len()
    return windows.select(
        "user_id",
        history=pl.col("item_ids").list.head(length - 1).list.tail(max_history),
        target=pl.col("item_ids").list.last(),
        timestamp=pl.col("timestamp"),
    )
