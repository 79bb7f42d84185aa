"""Published numbers beside ours, for orientation."""

from pathlib import Path

import polars as pl

from hatllm.tables.numbers import DASH

METRICS = ("HR@5", "HR@10", "NDCG@5", "NDCG@10")
NOTE = (
    "Published numbers, for orientation only: another backbone (LLaMA3-8B for the LLM arms), "
    "another scale, epochs picked on the test set; not comparable with ours number by number."
)


def read_published(path: Path) -> pl.DataFrame:
    """Published numbers.

    Args:
        path: CSV with the columns data, method, source and those of ``METRICS``.

    Raises:
        ValueError: If there is no such file or a column is missing.
    """
    if not path.exists():
        raise ValueError(f"experiment.published={str(path)!r}: no such file; null shows none")
    table = pl.read_csv(path)
    missing = [c for c in ("data", "method", "source", *METRICS) if c not in table]
    if missing:
        raise ValueError(f"experiment.published={str(path)!r} has no column {missing[0]!r}")
    return table


def published_on(published: pl.DataFrame | None, data: str | None) -> list[dict[str, str]]:
    """The rows on one data set, numbers as texts; none where nothing is to be shown."""
    if published is None:
        return []
    rows = published.filter(pl.col("data") == data).to_dicts()
    texts = ({name: _text(row[name]) for name in METRICS} for row in rows)
    return [row | text for row, text in zip(rows, texts, strict=True)]


def _text(value: float | None) -> str:
    return DASH if value is None else f"{value:.4f}"
