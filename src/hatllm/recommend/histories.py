"""A file of histories, read in chunks of bounded memory; what cannot be used is named row by row.

A chunk lies inside one row group of a Parquet file, so that reading it decodes no other. CSV and
JSONL files are laid out as Parquet first, a block at a time.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from hatllm.data.json_lines import BLOCK_BYTES, line_blocks
from hatllm.files import POLARS_ERRORS
from hatllm.recommend.item_finder import ItemFinder, is_missing

FORMS = (".parquet", ".jsonl", ".csv")
NO_KNOWN_ITEM = "no known item"  # how the reason begins where every entry was skipped
PROBLEM = "problem"  # column of a file laid out here: why a line could not be read, else null


class History(NamedTuple):
    """What is read of a history."""

    item_ids: list[int]  # oldest first
    skipped: list[Any]  # entries that name no item, oldest first


class Chunk(NamedTuple):
    """Some rows of a Parquet file."""

    number: int
    row_group: int
    start: int  # rows of the row group before it
    num_rows: int
    first_row: int  # of the file


@dataclass
class ChunkOfHistories:
    """The usable rows of a chunk, and the others with what is wrong with them."""

    users: pl.Series  # user_id, or the row of the file where it has none
    histories: list[list[int]]  # item ids, oldest first
    num_skipped: list[int]  # of each history, entries that name no item
    refused: pl.DataFrame  # row, user_id, reason


def as_parquet(path: Path, folder: Path) -> Path:
    """The file itself where it is Parquet, else a Parquet copy in the folder.

    Args:
        path: ``data.histories``.
        folder: Where a copy goes; made once.

    Raises:
        ValueError: If there is no such file, it is of another form, damaged, or has no column
            'history'.
    """
    name = f"data.histories={str(path)!r}"
    if not path.is_file():
        raise ValueError(f"{name}: no such file")
    if path.suffix not in FORMS:
        raise ValueError(f"{name} must be {', '.join(FORMS[:-1])} or {FORMS[-1]}")
    found = path if path.suffix == ".parquet" else folder / "histories.parquet"
    try:
        if not found.exists():
            partial = found.with_suffix(".part")
            if path.suffix == ".csv":
                pl.scan_csv(path, infer_schema=False).sink_parquet(partial)
            else:
                _lay_out_json_lines(path, partial)
            partial.replace(found)
        schema = pq.read_schema(found)
    except (pa.ArrowException, *POLARS_ERRORS) as error:
        first = str(error).splitlines()[0]
        raise ValueError(f"{name} cannot be read: {first}") from error
    if "history" not in schema.names:
        raise ValueError(f"{name} needs a column 'history', it has {', '.join(schema.names)}")
    kind = schema.field("history").type
    if not (_is_text(kind) or (pa.types.is_list(kind) or pa.types.is_large_list(kind))):
        raise ValueError(
            f"{name}: the column 'history' is of type {kind}; it must hold lists of titles or item "
            "ids, or such lists as JSON text"
        )
    return found


def holds_strings(path: Path) -> bool:
    """Whether entries of histories can be strings, not only numbers.

    Args:
        path: As `as_parquet` gives it.
    """
    kind = pq.read_schema(path).field("history").type
    if _is_text(kind):
        return True
    entry = kind.value_type
    return not (pa.types.is_integer(entry) or pa.types.is_floating(entry))


def _is_text(kind: pa.DataType) -> bool:
    return any(
        check(kind)
        for check in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    )


def _lay_out_json_lines(path: Path, target: Path) -> None:
    """user_id and history as JSON text, and what is wrong with lines that are no JSON object.

    Whether there is a user_id is seen in the first block.
    """
    blocks = (
        [_of_line(line) for line in block.splitlines() if line.strip()]
        for block in line_blocks(path, BLOCK_BYTES)
    )
    first = next(blocks, [])
    has_users = any(row["user_id"] is not None for row in first)
    names = [*(("user_id",) if has_users else ()), "history", PROBLEM]
    schema = pa.schema([(name, pa.string()) for name in names])
    with pq.ParquetWriter(target, schema) as writer:
        for rows in chain([first], blocks):
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))


def _of_line(line: bytes) -> dict[str, str | None]:
    try:
        record = json.loads(line)
    except ValueError:
        record = None
    if not isinstance(record, dict):
        return {"user_id": None, "history": None, PROBLEM: "the line is no JSON object"}
    user, history = record.get("user_id"), record.get("history")
    return {
        "user_id": None if user is None else str(user),
        "history": None if history is None else json.dumps(history),
        PROBLEM: None,
    }


def chunks_of(path: Path, chunk_rows: int) -> list[Chunk]:
    """The chunks of a Parquet file, in order, from its footer alone.

    Args:
        path: As `as_parquet` gives it.
        chunk_rows: Rows of a chunk, at most.
    """
    chunks: list[Chunk] = []
    metadata, first_row = pq.read_metadata(path), 0
    for group in range(metadata.num_row_groups):
        rows_of_group = metadata.row_group(group).num_rows
        for start in range(0, rows_of_group, chunk_rows):
            num_rows = min(chunk_rows, rows_of_group - start)
            chunks.append(Chunk(len(chunks), group, start, num_rows, first_row + start))
        first_row += rows_of_group
    return chunks


def read_chunk(
    path: Path, chunk: Chunk, find: ItemFinder, max_history_items: int
) -> ChunkOfHistories:
    """The histories of a chunk as item ids.

    Args:
        path: As `as_parquet` gives it.
        chunk: One of `chunks_of`.
        find: Of the run's catalogue.
        max_history_items: Newest entries that are read.
    """
    frame = pl.concat(_batches(path, chunk))
    rows = range(chunk.first_row, chunk.first_row + chunk.num_rows)
    has_users = "user_id" in frame.columns
    users = frame["user_id"] if has_users else pl.Series("user_id", rows, pl.Int64)
    problems = frame[PROBLEM].to_list() if PROBLEM in frame.columns else [None] * frame.height
    kept: list[int] = []
    histories: list[History] = []
    refused: list[tuple[int, str, str]] = []
    for place, (user, written) in enumerate(
        zip(users.to_list(), frame["history"].to_list(), strict=True)
    ):
        found = problems[place] or (
            "no user_id" if user is None else _resolved(written, find, max_history_items)
        )
        if isinstance(found, str):
            refused.append((rows[place], str(user), found))
        else:
            kept.append(place)
            histories.append(found)
    schema = {"row": pl.Int64, "user_id": pl.Utf8, "reason": pl.Utf8}
    return ChunkOfHistories(
        users[kept],
        [history.item_ids for history in histories],
        [len(history.skipped) for history in histories],
        pl.DataFrame(refused, schema=schema, orient="row"),
    )


def read_history(entries: list[Any], find: ItemFinder, max_history_items: int) -> History:
    """The newest entries as items; among them those that name none are skipped.

    An older entry does not take the place of a skipped one: what a history says of the time before
    the newest entries is never read.

    Args:
        entries: Titles or item ids, oldest first.
        find: Of the run's catalogue.
        max_history_items: Newest entries that are read.
    """
    newest = entries[-max_history_items:]
    found = [find(entry) for entry in newest]
    item_ids = [item for item in found if item is not None]
    if len(item_ids) == len(newest):
        return History(item_ids, [])
    return History(item_ids, [e for e, item in zip(newest, found, strict=True) if item is None])


def _batches(path: Path, chunk: Chunk) -> Iterator[pl.DataFrame]:
    """The chunk's rows, decoded from the start of its row group, a batch at a time."""
    file, seen = pq.ParquetFile(path), 0
    wanted = [name for name in ("user_id", "history", PROBLEM) if name in file.schema_arrow.names]
    end = chunk.start + chunk.num_rows
    for batch in file.iter_batches(chunk.num_rows, row_groups=[chunk.row_group], columns=wanted):
        low, high = max(chunk.start - seen, 0), min(end - seen, batch.num_rows)
        if low < high:
            frame = pl.from_arrow(pa.Table.from_batches([batch.slice(low, high - low)]))
            assert isinstance(frame, pl.DataFrame)
            yield frame
        seen += batch.num_rows
        if seen >= end:
            return


def _resolved(written: Any, find: ItemFinder, max_history_items: int) -> History | str:
    """What is read, or why nothing is."""
    if isinstance(written, str):
        try:
            written = json.loads(written)
        except ValueError:
            written = None
        if not isinstance(written, list):
            return "the history is no JSON list"
    if not written:
        return "no history" if written is None else "empty history"
    history = read_history(written, find, max_history_items)
    if not history.item_ids:
        *others, newest = history.skipped
        shown = "null" if is_missing(newest) else repr(newest)
        return f"{NO_KNOWN_ITEM}: {shown}" + (f" and {len(others)} more" if others else "")
    return history
