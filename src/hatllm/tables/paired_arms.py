"""Two arms on the same examples: which seeds are paired, how sure a difference is, who is best.

An arm is seed -> metrics of every example. Differences are paired by example: each example's values
are first averaged over the seeds that both arms have, then subtracted. An arm of ``NO_SEED`` shares
none, and is compared with the average over all seeds of the other one. Arms that have seeds and
share none are not compared.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from hatllm.metrics.best_step import is_lower_better
from hatllm.metrics.uncertainty import (
    LEVEL,
    PairedDifference,
    example_differences,
    holm,
    mean_and_standard_error,
    summarize_differences,
    wilcoxon_p_value,
)
from hatllm.tables.numbers import Number, known, over_seeds

NO_SEED = -1
Seeds = Mapping[int, pl.DataFrame]
ByLabel = Mapping[str, Seeds]


@dataclass(frozen=True)
class Tested:
    """A difference and how sure it is."""

    difference: PairedDifference
    p_value: float  # Wilcoxon
    corrected: float  # after Holm's correction over all that is tested with it
    base: float  # mean of the other arm over the seeds of the difference

    @property
    def holds(self) -> bool:
        """Whether it is significant after correction and the mean itself is clear of 0.

        Wilcoxon's test is about the centre of the users' differences. Where these are skewed, it
        can be sure of a direction that the mean does not have.
        """
        return self.corrected < LEVEL and self.difference.excludes_zero

    def is_better(self, metric: str) -> bool:
        """Whether it holds and the whole interval says that the first arm is the better one."""
        low, high = self.difference.low, self.difference.high
        return self.holds and (high < 0 if is_lower_better(metric) else low > 0)


def paired_examples(metric: str, first: Seeds, second: Seeds) -> pl.DataFrame | None:
    """First minus second over shared seeds, by example.

    None if they share no seed though both have some, or one of them lacks the metric.
    """
    paired = _paired_seeds(first, second)
    if not all(paired):
        return None
    averages = [average(tables) for tables in paired]
    if any(metric not in table.columns for table in averages):
        return None
    return example_differences(averages[0], averages[1], metric)


def tested_differences(metric: str, pairs: Mapping[str, tuple[Seeds, Seeds]]) -> dict[str, Tested]:
    """One family of tests of paired differences.

    Args:
        metric: Name of it.
        pairs: Name of a test -> the arm, and the arm that is subtracted from it.

    Returns:
        Name -> the difference; without those of :func:`paired_examples` that are None.
    """
    found = {
        name: differences
        for name, pair in pairs.items()
        if (differences := paired_examples(metric, *pair)) is not None
    }
    p_values = {name: wilcoxon_p_value(differences) for name, differences in found.items()}
    corrected = holm(p_values)
    tested = {}
    for name, differences in found.items():
        base = mean_of(average(_paired_seeds(*pairs[name])[1]), metric)
        summary = summarize_differences(differences)
        tested[name] = Tested(summary, p_values[name], corrected[name], base)
    return tested


def average(tables: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """Each example's metrics averaged over seeds; only metrics that every seed has."""
    names = [name for name in tables[0].columns if all(name in table.columns for table in tables)]
    stacked = pl.concat([table.select(names) for table in tables])
    metrics = pl.exclude("example_id", "user_id").mean()
    return stacked.group_by("example_id").agg(pl.first("user_id"), metrics).sort("example_id")


def mean_of(values: pl.DataFrame, metric: str) -> float:
    """Mean of one metric over examples."""
    return mean_and_standard_error(values[metric], values["user_id"])[0]


def numbers_of(arm: Seeds, metrics: Sequence[str]) -> dict[str, Number]:
    """The arm's numbers, without those of metrics that one of its seeds lacks."""
    averages = average(list(arm.values()))
    numbers = {}
    for metric in metrics:
        if metric in averages.columns:
            _, error = mean_and_standard_error(averages[metric], averages["user_id"])
            by_seed = {seed: mean_of(arm[seed], metric) for seed in sorted(arm)}
            numbers[metric] = over_seeds(by_seed, known(error))
    return numbers


def clear_winner(metric: str, means: Mapping[str, float], by_label: ByLabel) -> str | None:
    """The arm with the best mean, if it is better than every other one beyond chance.

    Beyond chance: Wilcoxon's test holds after Holm's correction over all other arms, and the
    interval of the mean difference lies on the good side of 0. To every other arm, not to the
    runner-up alone: where some have more seeds than others, means over all seeds may stand in
    another order than those over the shared ones.

    Args:
        metric: Name of it.
        means: Label -> the mean over seeds, of the arms that have the metric.
        by_label: All arms.
    """
    if len(means) < 2:
        return None
    best = (min if is_lower_better(metric) else max)(means, key=means.__getitem__)
    pairs = {label: (by_label[best], by_label[label]) for label in means if label != best}
    tested = tested_differences(metric, pairs)
    is_clear = len(tested) == len(pairs) and all(t.is_better(metric) for t in tested.values())
    return best if is_clear else None


def _paired_seeds(first: Seeds, second: Seeds) -> tuple[list[pl.DataFrame], list[pl.DataFrame]]:
    """The tables of the seeds that both have, or of all seeds where one of them has no seed."""
    shared = sorted(set(first) & set(second))
    is_seedless = {NO_SEED} in (set(first), set(second))
    of_first, of_second = (
        [seeds[seed] for seed in (sorted(seeds) if is_seedless else shared)]
        for seeds in (first, second)
    )
    return of_first, of_second
