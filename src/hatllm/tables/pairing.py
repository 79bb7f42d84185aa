"""Two arms on the same examples: which seeds are paired, and who beats all others.

Here ``by_label`` is label -> seed -> metrics of every example (``values_by_label`` of
:mod:`hatllm.tables.comparison`), and an arm is one label's tables by seed.
"""

from collections.abc import Mapping, Sequence

import polars as pl

from hatllm.metrics.uncertainty import (
    LEVEL,
    PairedDifference,
    example_differences,
    holm,
    mean_and_standard_error,
    mean_and_std_over_seeds,
    summarize_differences,
    wilcoxon_p_value,
)

NO_SEED = -1


def paired_examples(
    metric: str, first: Mapping[int, pl.DataFrame], second: Mapping[int, pl.DataFrame]
) -> pl.DataFrame | None:
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


def paired_mean(
    metric: str, first: Mapping[int, pl.DataFrame], second: Mapping[int, pl.DataFrame]
) -> float:
    """The mean of the second, which has the metric, over the seeds of :func:`paired_examples`."""
    return mean_of(average(_paired_seeds(first, second)[1]), metric)


def paired_summary(
    metric: str, first: Mapping[int, pl.DataFrame], second: Mapping[int, pl.DataFrame]
) -> PairedDifference | None:
    """Interval and p value of :func:`paired_examples`; None where that is None."""
    differences = paired_examples(metric, first, second)
    return None if differences is None else summarize_differences(differences)


def average(tables: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """Each example's metrics averaged over seeds; only metrics that every seed has."""
    names = [name for name in tables[0].columns if all(name in table.columns for table in tables)]
    stacked = pl.concat([table.select(names) for table in tables])
    metrics = pl.exclude("example_id", "user_id").mean()
    return stacked.group_by("example_id").agg(pl.first("user_id"), metrics).sort("example_id")


def mean_of(values: pl.DataFrame, metric: str) -> float:
    """Mean of one metric over examples."""
    return mean_and_standard_error(values[metric], values["user_id"])[0]


def clear_winner(metric: str, by_label: Mapping[str, Mapping[int, pl.DataFrame]]) -> str | None:
    """The arm with the best mean, if it is better than every other one beyond chance.

    Beyond chance: Wilcoxon's test holds after Holm's correction over all other arms, and the
    interval of the mean difference lies on the good side of 0. To every other arm, not to the
    runner-up alone: where some have more seeds than others, means over all seeds may stand in
    another order than those over the shared ones.
    """
    means = {
        label: mean_and_std_over_seeds([mean_of(table, metric) for table in seeds.values()])[0]
        for label, seeds in by_label.items()
        if all(metric in table.columns for table in seeds.values())
    }
    if len(means) < 2:
        return None
    best = (min if metric.endswith("NLL") else max)(means, key=means.__getitem__)
    differences = {}
    for label in means:
        if label != best:
            found = paired_examples(metric, by_label[best], by_label[label])
            if found is None:
                return None
            differences[label] = found
    p_values = {label: wilcoxon_p_value(values) for label, values in differences.items()}
    clear = all(p < LEVEL for p in holm(p_values).values()) and all(
        _is_better(metric, summarize_differences(values)) for values in differences.values()
    )
    return best if clear else None


def _is_better(metric: str, difference: PairedDifference) -> bool:
    """Whether the whole interval says that the first is better than the second."""
    return difference.high < 0 if metric.endswith("NLL") else difference.low > 0


def _paired_seeds(
    first: Mapping[int, pl.DataFrame], second: Mapping[int, pl.DataFrame]
) -> tuple[list[pl.DataFrame], list[pl.DataFrame]]:
    """The tables of the seeds that both have, or of all seeds where one of them has no seed."""
    shared = sorted(set(first) & set(second))
    is_seedless = {NO_SEED} in (set(first), set(second))
    of_first, of_second = (
        [seeds[seed] for seed in (sorted(seeds) if is_seedless else shared)]
        for seeds in (first, second)
    )
    return of_first, of_second
