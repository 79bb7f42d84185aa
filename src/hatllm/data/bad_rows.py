"""Rows that could not be used: counted by reason, with a few samples, never lost silently."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import polars as pl

MAX_SAMPLES = 5
MAX_SAMPLE_CHARACTERS = 200


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
