"""Arms within slices of the examples: their numbers, and paired differences where it matters.

A mean over all users cannot tell what a model adds to copying words. So the difference of two arms
stands beside the mean for the slices where copying is impossible.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from hatllm.config import main_cut_off
from hatllm.metrics.from_predictions import slices_of
from hatllm.metrics.slices import COLUMNS, UNCOPIED, members
from hatllm.metrics.uncertainty import MeanInterval, mean_interval
from hatllm.runs.run_files import EXAMPLES_FILE, check_files
from hatllm.tables.numbers import Number
from hatllm.tables.paired_arms import ByLabel, numbers_of, paired_examples

ALL = "all"


@dataclass(frozen=True)
class Slice:
    """Some of the examples, or all of them."""

    name: str
    num_examples: int
    numbers: dict[str, dict[str, Number]]  # label -> metric -> number
    differences: dict[str, dict[str, MeanInterval]]  # label -> metric; none but in ALL, UNCOPIED


def slice_metrics(cut_offs: Sequence[int]) -> tuple[str, ...]:
    """What is measured within a slice; the first is the one that a narrow table shows."""
    k = main_cut_off(cut_offs)
    return (f"NDCG@{k}", f"HR@{k}", "trie_NLL")


def read_slices(folder: Path) -> pl.DataFrame:
    """The slices of a finished run's test examples, as `example_slices` gives them.

    Raises:
        ValueError: If the run has none.
    """
    check_files(folder, EXAMPLES_FILE)
    path = folder / EXAMPLES_FILE
    if missing := [name for name in COLUMNS if name not in pl.read_parquet_schema(path)]:
        raise ValueError(f"{path} has no column {missing[0]!r}: delete the run and run it again")
    return pl.read_parquet(path, columns=["example_id", *COLUMNS])


def compare_slices(
    slices: pl.DataFrame, by_label: ByLabel, others: Mapping[str, str], cut_offs: Sequence[int]
) -> tuple[Slice, ...]:
    """Every arm within every slice.

    Args:
        slices: Output of `read_slices`.
        by_label: Label -> seed -> metrics of every example; all of the same examples.
        others: Label -> the label it is compared with.
        cut_offs: The table's.

    Returns:
        All examples first, then each of SLICES.
    """
    first = next(iter(next(iter(by_label.values())).values()))
    rows = slices_of(first.sort("example_id"), slices)
    everywhere = pl.Series([True] * len(rows), dtype=pl.Boolean)
    found = {ALL: everywhere} | members(rows)
    return tuple(
        _within(name, is_member, by_label, others, slice_metrics(cut_offs))
        for name, is_member in found.items()
    )


def _within(
    name: str,
    is_member: pl.Series,
    by_label: ByLabel,
    others: Mapping[str, str],
    metrics: Sequence[str],
) -> Slice:
    num_examples = int(is_member.sum())
    if num_examples == 0:
        return Slice(name, 0, {}, {})
    arms = {
        label: {seed: table.sort("example_id").filter(is_member) for seed, table in seeds.items()}
        for label, seeds in by_label.items()
    }
    numbers = {label: numbers_of(arm, metrics) for label, arm in arms.items()}
    differences: dict[str, dict[str, MeanInterval]] = {}
    for label, other in others.items() if name in (ALL, *UNCOPIED) else ():
        pairs = {m: paired_examples(m, arms[label], arms[other]) for m in metrics}
        differences[label] = {m: mean_interval(p) for m, p in pairs.items() if p is not None}
    return Slice(name, num_examples, numbers, differences)
