"""Files of one record a line, read in blocks of bounded memory; rows that could not be used."""

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import polars as pl

from hatllm.files import POLARS_ERRORS

MAX_SAMPLES = 5
MAX_SAMPLE_CHARACTERS = 200
BLOCK_BYTES = 32 << 20


@dataclass
class BadRows:
    """Counts and samples of dropped rows by reason."""

    counts: dict[str, int] = field(default_factory=dict)
    samples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, samples: Iterable[str], count: int) -> None:
        """Count ``count`` more rows under ``reason``; the first few samples are kept."""
        if count == 0:
            return
        self.counts[reason] = self.counts.get(reason, 0) + count
        kept = self.samples.setdefault(reason, [])
        for sample in samples:
            if len(kept) == MAX_SAMPLES:
                break
            kept.append(_shortened(sample))

    def drop(self, frame: pl.DataFrame, bad: pl.Expr, reason: str) -> pl.DataFrame:
        """Return ``frame`` without the rows where ``bad`` holds, counting them under ``reason``."""
        frame = frame.with_columns(bad.fill_null(True).alias("_bad"))
        dropped = frame.filter(pl.col("_bad")).drop("_bad")
        rows = dropped.head(MAX_SAMPLES).iter_rows(named=True)
        self.add(reason, (_row_text(row) for row in rows), dropped.height)
        return frame.filter(~pl.col("_bad")).drop("_bad")

    def report(self) -> dict[str, dict[str, Any]]:
        """Return ``{reason: {"count": int, "samples": [str, ...]}}``, for JSON."""
        return {
            reason: {"count": count, "samples": self.samples[reason]}
            for reason, count in self.counts.items()
        }


def _row_text(row: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in row.items())


def _shortened(text: str) -> str:
    if len(text) <= MAX_SAMPLE_CHARACTERS:
        return text
    return text[: MAX_SAMPLE_CHARACTERS - 3] + "..."


def line_blocks(path: Path, block_bytes: int) -> Iterator[bytes]:
    """Yield a file's bytes in blocks of whole lines of about ``block_bytes``.

    Raises:
        ValueError: If a gzip file is damaged or ends too early.
    """
    with path.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        source: BinaryIO = gzip.GzipFile(fileobj=file) if zipped else file  # type: ignore[assignment]
        rest = b""
        try:
            while block := source.read(block_bytes):
                lines, newline, tail = (rest + block).rpartition(b"\n")
                rest = tail
                if newline:
                    yield lines + newline
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(
                f"{path} is damaged or cut off ({error}): delete it and fetch it again"
            ) from error
    if rest:
        yield rest


def read_json_lines(path: Path, schema: dict[str, Any], bad_rows: BadRows) -> pl.DataFrame:
    """Read some fields of a JSON-lines file; a missing field is null.

    Lines that are no JSON object are counted as bad rows, and a value of a wrong type is null.

    Args:
        path: JSON lines, gzipped or not.
        schema: Field name -> ``pl.Utf8`` or ``pl.Int64``.
        bad_rows: Takes unreadable lines.

    Raises:
        ValueError: If a gzip file is damaged or ends too early.
    """
    frames = [pl.DataFrame(schema=schema)]
    for block in line_blocks(path, BLOCK_BYTES):
        try:
            frames.append(pl.read_ndjson(block, schema=schema))
        except POLARS_ERRORS:  # one bad line fails the block: find it
            frames.append(_read_line_by_line(block, schema, bad_rows, path.name))
    return pl.concat(frames)


def _read_line_by_line(
    block: bytes, schema: dict[str, Any], bad_rows: BadRows, name: str
) -> pl.DataFrame:
    records, bad = [], []
    for line in block.splitlines():
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if isinstance(record, dict):
            records.append({key: _value(record.get(key), kind) for key, kind in schema.items()})
        else:
            bad.append(line.decode("utf-8", errors="replace"))
    bad_rows.add(f"line of {name} that is no JSON object", bad, len(bad))
    return pl.DataFrame(records, schema=schema, infer_schema_length=None)


def _value(value: Any, kind: Any) -> str | int | None:
    if value is None:
        return None
    if kind == pl.Utf8:
        text = value if isinstance(value, str) else json.dumps(value)
        return text.encode("utf-8", "replace").decode()  # half a character, as \\ud800
    try:
        number = float(value)
        return int(value) if number.is_integer() and abs(number) < 2**63 else None
    except (TypeError, ValueError, OverflowError):
        return None
