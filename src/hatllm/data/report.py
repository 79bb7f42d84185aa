"""The data report: what was kept and why, as numbers, Markdown, a picture and a table."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
from rich.markup import escape
from rich.table import Table

from hatllm.data.prepare import Dataset
from hatllm.data.report_picture import draw_data_report
from hatllm.data.split import SPLITS
from hatllm.files import write_text


@dataclass(frozen=True)
class Spread:
    """Smallest, mean and largest of some numbers; all 0 where there are none."""

    low: float
    mean: float
    high: float


@dataclass(frozen=True)
class SplitStatistics:
    """One split, after row sampling.

    Shares are fractions of the split's targets; 'train' means all of train, before row sampling.

    Attributes:
        rows: Examples.
        rows_before_sampling: Examples before row sampling.
        users: Users with an example.
        history_items: Items in a history.
        first_time: Earliest target, Unix seconds; None where there are no rows.
        last_time: Latest target.
        unseen_share: Targets that no train interaction has.
        never_target_share: Targets that are no train example's target (but may be in a history).
        unseen_in_sample_share: Targets in no history of a sampled row of train and not its target.
        shared_title_share: Targets whose title another item has too.
        targets_in_history: Targets that stand in their own history.
        targets_last: Targets that are the last item of their history.
        targets_tied: Targets at the same time as another target of their user, in any split: the
            order of the two is that of the source file.
    """

    rows: int
    rows_before_sampling: int
    users: int
    history_items: Spread
    first_time: int | None
    last_time: int | None
    unseen_share: float
    never_target_share: float
    unseen_in_sample_share: float
    shared_title_share: float
    targets_in_history: int
    targets_last: int
    targets_tied: int


@dataclass(frozen=True)
class DatasetStatistics:
    """A whole data set.

    Attributes:
        users: Users with at least one example.
        items: Items of the catalogue.
        interactions: Kept interactions; None for prepared windows, which do not tell.
        train_interactions: Those of train, each once, before row sampling.
        title_characters: Length of titles.
        duplicate_titles: Titles that two or more items share.
        items_sharing_titles: Items that share their title with another.
        wordless_titles: Items whose title has no letter a-z and no digit, in either case.
        splits: Per split.
    """

    users: int
    items: int
    interactions: int | None
    train_interactions: int
    title_characters: Spread
    duplicate_titles: int
    items_sharing_titles: int
    wordless_titles: int
    splits: dict[str, SplitStatistics]


def dataset_statistics(dataset: Dataset) -> DatasetStatistics:
    """Count a data set."""
    titles = dataset.items["title"]
    shared = dataset.items.filter(titles.is_duplicated())
    steps = dataset.manifest["steps"]
    return DatasetStatistics(
        users=dataset.users.height,
        items=dataset.items.height,
        interactions=steps[-1]["interactions"] if steps else None,
        train_interactions=dataset.train_interactions.height,
        title_characters=_spread_of(titles.str.len_chars()),
        duplicate_titles=shared["title"].n_unique(),
        items_sharing_titles=shared.height,
        wordless_titles=int((~titles.str.contains("[A-Za-z0-9]")).sum()),
        splits={name: _split_statistics(dataset, name, shared["item_id"]) for name in SPLITS},
    )


def items_anywhere(examples: pl.DataFrame) -> pl.Series:
    """Return every item of the examples once, from histories and targets."""
    in_histories = examples["history"].explode().drop_nulls()
    return pl.concat([in_histories.alias("item_id"), examples["target"].alias("item_id")]).unique()


def _split_statistics(dataset: Dataset, name: str, shared: pl.Series) -> SplitStatistics:
    rows = dataset.splits[name]
    targets = rows["target"]
    low, high = rows["timestamp"].min(), rows["timestamp"].max()
    return SplitStatistics(
        rows=rows.height,
        rows_before_sampling=dataset.manifest["rows"][name]["before_sampling"],
        users=rows["user_id"].n_unique(),
        history_items=_spread_of(rows["history"].list.len()),
        first_time=low if isinstance(low, int) else None,
        last_time=high if isinstance(high, int) else None,
        unseen_share=1 - _share_in(targets, dataset.train_interactions["item_id"].unique()),
        never_target_share=1 - _share_in(targets, dataset.full_train["target"].unique()),
        unseen_in_sample_share=1 - _share_in(targets, items_anywhere(dataset.splits["train"])),
        shared_title_share=_share_in(targets, shared),
        targets_in_history=_num(rows, pl.col("history").list.contains(pl.col("target"))),
        targets_last=_num(rows, pl.col("history").list.last() == pl.col("target")),
        targets_tied=_num_tied(rows, dataset),
    )


def _num_tied(rows: pl.DataFrame, dataset: Dataset) -> int:
    """Targets of some rows that share their user and time with another row's target."""
    others = [dataset.splits[name] for name in SPLITS if name != "train"]
    every = pl.concat(
        [part.select("user_id", "timestamp") for part in (dataset.full_train, *others)]
    )
    tied = every.filter(every.is_duplicated()).unique()
    return rows.join(tied, on=["user_id", "timestamp"], how="semi").height


def _num(rows: pl.DataFrame, condition: pl.Expr) -> int:
    return int(rows.select(condition.sum()).item())


def _share_in(targets: pl.Series, items: pl.Series) -> float:
    found = targets.is_in(items.implode()).sum()
    return float(found) / len(targets) if len(targets) else 0.0


def _spread_of(numbers: pl.Series) -> Spread:
    if numbers.is_empty():
        return Spread(0.0, 0.0, 0.0)
    values = numbers.cast(pl.Float64).to_numpy()
    return Spread(float(values.min()), float(values.mean()), float(values.max()))


REPORT_FILE, PICTURE_FILE = "data_report.md", "data_report.png"
MANIFEST_FILE = "split_manifest.json"
LATER_PROTOCOLS = ("all_prefixes", "leave_one_out")
LATER_NOTE = (
    "the split is by place in each user's sequence, not by time, and leaks: train holds "
    "interactions of some users that are later than valid and test targets of others"
)


def write_data_report(dataset: Dataset, folder: Path) -> Path:
    """Write data_report.md, data_report.png and split_manifest.json; return the first's path.

    Args:
        dataset: The prepared data.
        folder: Made if it is not there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    manifest = json.dumps(dataset.manifest, indent=2, ensure_ascii=False)
    write_text(folder / MANIFEST_FILE, manifest + "\n")
    draw_data_report(dataset, folder / PICTURE_FILE)
    path = folder / REPORT_FILE
    write_text(path, "\n".join(_report_lines(dataset)) + "\n")
    return path


def data_report_table(dataset: Dataset) -> Table:
    """Return the report's numbers by split as a table for the terminal."""
    statistics = dataset_statistics(dataset)
    table = Table(title=escape(f"{dataset.name}: {_summary(statistics)}"))
    table.add_column("")
    for name in SPLITS:
        table.add_column(name, justify="right")
    for label, *cells in _split_rows(dataset, statistics):
        table.add_row(label, *cells)
    for reason, entry in dataset.manifest["bad_rows"].items():
        dropped = escape(f"{entry['count']:,} x {reason};")
        table.caption = f"{table.caption or 'dropped:'} {dropped}"
    return table


def _summary(statistics: DatasetStatistics) -> str:
    parts = [f"{statistics.users:,} users", f"{statistics.items:,} items"]
    if statistics.interactions is not None:
        parts.append(f"{statistics.interactions:,} interactions")
    return ", ".join(parts)


def _split_rows(dataset: Dataset, statistics: DatasetStatistics) -> list[list[str]]:
    """One row a figure: its label, then the value in each split."""
    splits = [statistics.splits[name] for name in SPLITS]
    rows = [
        ["rows", *(f"{split.rows:,}" for split in splits)],
        ["rows before sampling", *(f"{split.rows_before_sampling:,}" for split in splits)],
        ["users", *(f"{split.users:,}" for split in splits)],
        ["history items, min / mean / max", *(_spread(split.history_items) for split in splits)],
        ["first target", *(_day(split.first_time) for split in splits)],
        ["last target", *(_day(split.last_time) for split in splits)],
        ["target nowhere in train", *_shares(splits, "unseen_share")],
        ["target never a train target", *_shares(splits, "never_target_share")],
    ]
    if statistics.splits["train"].rows < dataset.full_train.height:
        rows.append(["target nowhere in sampled train", *_shares(splits, "unseen_in_sample_share")])
    return [
        *rows,
        ["target shares its title", *_shares(splits, "shared_title_share")],
        ["target stands in its history", *_counts(splits, "targets_in_history")],
        ["target is the last history item", *_counts(splits, "targets_last")],
        ["target at the time of another of its user", *_counts(splits, "targets_tied")],
    ]


def _shares(splits: list[SplitStatistics], field: str) -> list[str]:
    return [f"{getattr(split, field):.1%}" for split in splits]


def _counts(splits: list[SplitStatistics], field: str) -> list[str]:
    """How many rows, and their share."""
    counts = [(getattr(split, field), max(split.rows, 1)) for split in splits]
    return [f"{count:,} ({count / rows:.1%})" for count, rows in counts]


def _spread(spread: Spread) -> str:
    return f"{spread.low:g} / {spread.mean:.1f} / {spread.high:g}"


def _day(seconds: int | None) -> str:
    if seconds is None:
        return "-"
    try:
        return datetime.fromtimestamp(seconds, UTC).date().isoformat()
    except (ValueError, OverflowError, OSError):  # the user's own clock
        return str(seconds)


def _markdown_table(header: list[str], rows: list[list[str]]) -> list[str]:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return ["| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _report_lines(dataset: Dataset) -> Iterator[str]:
    manifest, statistics = dataset.manifest, dataset_statistics(dataset)
    yield f"# Data: {dataset.name}"
    yield f"\n{_summary(statistics)}. Protocol `{manifest['protocol']}`.\n"
    yield from (f"- {note[0].upper()}{note[1:]}." for note in _notes(manifest))
    yield f"- Data hash `{manifest['data_hash']}`"
    yield f"- Split hash `{manifest['split_hash']}`"
    yield f"\n![history lengths, item popularity, rows over time]({PICTURE_FILE})"
    yield "\n## Splits\n"
    yield from _markdown_table(["", *SPLITS], _split_rows(dataset, statistics))
    yield '\n"In train" means all of train, before row sampling: '
    yield f"{statistics.train_interactions:,} interactions, each counted once."
    if manifest["steps"]:
        yield "\n## What was kept\n"
        columns = ["interactions", "users", "items"]
        rows = [[s["step"], *(f"{s[key]:,}" for key in columns)] for s in manifest["steps"]]
        yield from _markdown_table(["", *columns], rows)
    yield "\n## Titles\n"
    yield f"- Characters, min / mean / max: {_spread(statistics.title_characters)}"
    yield (
        f"- {statistics.duplicate_titles:,} titles belong to more than one item "
        f"({statistics.items_sharing_titles:,} items)"
    )
    if statistics.wordless_titles:
        yield (
            f"- {statistics.wordless_titles:,} items have a title without a letter a-z or a digit: "
            "slices by shared words and model=titles read nothing of them"
        )
    yield "\n## Bad rows\n"
    yield from _bad_row_lines(manifest["bad_rows"])
    source = "read from the cache" if manifest["cached"] else "built from the source files"
    seconds, memory = manifest["timings"]["total_s"], manifest["peak_memory_mb"]
    yield f"\nReady in {seconds} s, {source}; peak memory of the process {memory:.0f} MB."


def later_notes(manifest: dict[str, Any]) -> list[str]:
    """What a protocol that does not cut by time leaks; none where it does."""
    return [LATER_NOTE] if manifest["protocol"] in LATER_PROTOCOLS else []


def _notes(manifest: dict[str, Any]) -> list[str]:
    holdout = [manifest["holdout"]] if manifest["holdout"] else []
    return [*holdout, *manifest["notes"], *later_notes(manifest)]


def _bad_row_lines(bad_rows: dict[str, Any]) -> Iterator[str]:
    if not bad_rows:
        yield "None."
    for reason, entry in bad_rows.items():
        yield f"- {entry['count']:,} x {reason}, such as"
        yield from (f"    - `{sample.replace('`', chr(39))}`" for sample in entry["samples"])
