"""The data report: what was kept and why, as Markdown, a picture and a table for the terminal."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from hatllm.data.prepare import Dataset
from hatllm.data.report_counts import DatasetStatistics, SplitStatistics, Spread, dataset_statistics
from hatllm.data.report_picture import draw_data_report
from hatllm.data.split import SPLITS
from hatllm.files import write_text

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
