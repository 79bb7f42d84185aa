"""How sure a difference between two models is, given that both answered the same examples.

Users are the unit of chance: several examples of one user are drawn together, in the bootstrap, in
the permutation test and in the standard errors.

Dimension key: G users, R resamples.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from scipy.stats import wilcoxon

from hatllm.metrics.from_predictions import example_metrics
from hatllm.metrics.ranking import standard_error

NUM_RESAMPLES = 10_000
CONFIDENCE = 0.95
SEED = 20251010  # resampling is part of the report, not of the run: the same for every run seed
MAX_DRAWS = 2_000_000  # random numbers held at once, 16 MB
MAX_KEPT = 64_000_000  # draws kept for the next arm of as many users, 64 MB

Floats = npt.NDArray[np.float64]
LEVEL = 0.05
Name = TypeVar("Name")


@dataclass(frozen=True)
class MeanInterval:
    """The mean of first minus second over shared examples, and how far chance moves it."""

    mean: float
    low: float  # bounds of the 95 % bootstrap interval of the mean
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the whole interval lies on one side of 0."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class PairedDifference(MeanInterval):
    """The same with the tests that a main table needs."""

    standard_error: float  # NaN for one user
    p_value: float  # two-sided, sign-flip permutation test
    num_examples: int
    num_users: int


def paired_difference(
    first: pl.DataFrame, second: pl.DataFrame, metric: str, k: int = 10
) -> PairedDifference:
    """Compare two predictions tables on the examples they both answered.

    Args:
        first: A predictions table (see :mod:`hatllm.metrics.from_predictions`).
        second: Another, of the same examples.
        metric: ``HR``, ``NDCG``, ``MRR``, ``item_HR``, ... (cut at ``k``), or a whole name such as
            ``NDCG@5`` or ``trie_NLL``.
        k: Cut-off of a metric that is named without one.

    Returns:
        The mean difference first minus second with its interval and p value.

    Raises:
        ValueError: If the tables hold different examples, or one of them lacks the metric.
    """
    name = metric if "@" in metric or metric.endswith("NLL") else f"{metric}@{k}"
    k = int(name.partition("@")[2] or k)
    values = [example_metrics(frame, (k,)) for frame in (first, second)]
    return summarize_differences(example_differences(values[0], values[1], name))


def example_differences(first: pl.DataFrame, second: pl.DataFrame, name: str) -> pl.DataFrame:
    """First minus second in one metric, example by example.

    Args:
        first: Output of :func:`hatllm.metrics.from_predictions.example_metrics`.
        second: Another one, of the same examples.
        name: A column of both.

    Returns:
        example_id, user_id, difference; one row an example, by example_id.

    Raises:
        ValueError: If the tables hold different examples, or one of them lacks the metric.
    """
    for order, frame in (("first", first), ("second", second)):
        if name not in frame.columns:
            raise ValueError(f"the {order} predictions have no {name}")
    only_first = first.join(second, on="example_id", how="anti")
    only_second = second.join(first, on="example_id", how="anti")
    if len(only_first) or len(only_second):
        raise ValueError(
            f"the predictions answer different examples: {len(only_first)} only in the first, "
            f"{len(only_second)} only in the second; a paired comparison needs the same ones"
        )
    joined = first.join(second, on="example_id", suffix="_second")
    difference = pl.col(name) - pl.col(f"{name}_second")
    return joined.select("example_id", "user_id", difference=difference).sort("example_id")


def summarize_differences(differences: pl.DataFrame) -> PairedDifference:
    """Mean, bootstrap interval and permutation p value of paired differences.

    Args:
        differences: user_id, difference; at least one row.

    Raises:
        ValueError: If there is no row.
    """
    interval, (total_G, _) = mean_interval(differences), _by_user(differences)
    _, error = mean_and_standard_error(differences["difference"], differences["user_id"])
    return PairedDifference(
        mean=interval.mean,
        low=interval.low,
        high=interval.high,
        standard_error=error,
        p_value=sign_flip_p_value(total_G),
        num_examples=len(differences),
        num_users=len(total_G),
    )


def mean_interval(differences: pl.DataFrame) -> MeanInterval:
    """Mean and bootstrap interval of paired differences.

    Args:
        differences: user_id, difference; at least one row.

    Raises:
        ValueError: If there is no row.
    """
    total_G, count_G = _by_user(differences)
    low, high = bootstrap_interval(total_G, count_G)
    mean, _ = mean_and_standard_error(differences["difference"], differences["user_id"])
    return MeanInterval(mean, low, high)


def _by_user(differences: pl.DataFrame) -> tuple[Floats, Floats]:
    """Sum of each user's differences, and how many; shape (G,), float64."""
    if differences.is_empty():
        raise ValueError("differences has no rows: there is nothing to compare")
    by_user = differences.group_by("user_id").agg(
        total=pl.col("difference").sum(), count=pl.len().cast(pl.Float64)
    )
    by_user = by_user.sort("user_id")
    return by_user["total"].to_numpy(), by_user["count"].to_numpy()


def bootstrap_interval(
    total_G: Floats, count_G: Floats, num_resamples: int = NUM_RESAMPLES, seed: int = SEED
) -> tuple[float, float]:
    """The 95 % percentile interval of a mean over examples when users are drawn with replacement.

    Args:
        total_G: Sum of a user's values. Shape (G,), float64.
        count_G: Number of a user's examples. Shape (G,), float64.
        num_resamples: Bootstrap samples, each of G users.
        seed: Of the resampling.

    Returns:
        Lower and upper bound.
    """
    num_users, means = len(total_G), []
    if num_resamples * num_users <= MAX_KEPT:
        for times_RG in _kept_draws(num_users, num_resamples, seed):
            drawn_R = num_users + _weighted(times_RG, count_G - 1)
            means.append(_weighted(times_RG, total_G) / drawn_R)
    else:
        for drawn_RG in _draws(num_users, num_resamples, seed):
            means.append(total_G[drawn_RG].sum(axis=1) / count_G[drawn_RG].sum(axis=1))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return float(low), float(high)


def _draws(num_users: int, num_resamples: int, seed: int) -> Iterator[npt.NDArray[np.int64]]:
    """The users of each resample, some resamples at a time; (rows, G)."""
    generator = np.random.default_rng(seed)
    for rows in _chunks(num_resamples, num_users):
        size = (rows.stop - rows.start, num_users)
        yield generator.integers(num_users, size=size, dtype=np.int64)


def _weighted(times_RG: npt.NDArray[np.uint8], value_G: Floats) -> Floats:
    """Sum of each resample: most users have no hit under either model, and most one example."""
    (users,) = value_G.nonzero()
    return np.asarray(times_RG[:, users] @ value_G[users])


@lru_cache(maxsize=4)
def _kept_draws(num_users: int, num_resamples: int, seed: int) -> list[npt.NDArray[np.uint8]]:
    """How often each user stands in each resample: a table asks for the same users again and again.

    Nobody is drawn 256 times: of 256 users the chance is below 1e-500.
    """
    kept = []
    for drawn_RG in _draws(num_users, num_resamples, seed):
        num_rows = len(drawn_RG)
        cell_RG = drawn_RG + np.arange(num_rows)[:, None] * num_users
        times = np.bincount(cell_RG.ravel(), minlength=num_rows * num_users)
        kept.append(times.astype(np.uint8).reshape(num_rows, num_users))
    return kept


def sign_flip_p_value(
    total_G: Floats, num_resamples: int = NUM_RESAMPLES, seed: int = SEED
) -> float:
    """How often randomly swapping the two models, user by user, differs at least as much.

    If the models are alike, each user's total difference is as likely to have the other sign. The
    two-sided p value is (1 + number of sign flips at least as extreme) / (1 + number of flips).

    Args:
        total_G: Sum of a user's paired differences. Shape (G,), float64.
        num_resamples: Random sign assignments.
        seed: Of the signs.

    Returns:
        A probability in (0, 1].
    """
    generator = np.random.default_rng(seed)
    # Rounding noise must not make an equally extreme flip look less extreme.
    observed = abs(total_G.sum()) - 1e-12 * np.abs(total_G).sum()
    extreme = 0
    for rows in _chunks(num_resamples, len(total_G)):
        size = (rows.stop - rows.start, len(total_G))
        positive_RG = generator.integers(2, size=size, dtype=np.int8)
        flipped_R = 2 * (positive_RG @ total_G) - total_G.sum()
        extreme += int((np.abs(flipped_R) >= observed).sum())
    return (1 + extreme) / (1 + num_resamples)


def mean_and_standard_error(values: pl.Series, user_ids: pl.Series) -> tuple[float, float]:
    """Mean over examples and its standard error over users (NaN for fewer than two users)."""
    value_B = torch.from_numpy(values.cast(pl.Float64).to_numpy(writable=True))
    user_id_B = torch.from_numpy(user_ids.cast(pl.Int64).to_numpy(writable=True))
    return float(value_B.mean()), float(standard_error(value_B, user_id_B))


def mean_and_std_over_seeds(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation of one metric over seeds (NaN for a single seed)."""
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, math.nan
    squares = math.fsum((value - mean) ** 2 for value in values)
    return mean, math.sqrt(squares / (len(values) - 1))


def _chunks(num_resamples: int, num_users: int) -> list[slice]:
    """Slices of the resamples that keep the draws held at once below ``MAX_DRAWS``."""
    step = max(1, MAX_DRAWS // num_users)
    return [
        slice(start, min(start + step, num_resamples)) for start in range(0, num_resamples, step)
    ]


def wilcoxon_p_value(differences: pl.DataFrame) -> float:
    """Two-sided p value of Wilcoxon's signed-rank test over users.

    Each user counts once, with the sum of the differences of their examples; users whose sum is 0
    are left out, as Wilcoxon did. If that leaves nobody, nothing speaks for a difference: 1.

    Args:
        differences: user_id, difference.

    Returns:
        A probability in [0, 1].
    """
    by_user = differences.group_by("user_id").agg(total=pl.col("difference").sum())
    total_G = by_user.sort("user_id")["total"].to_numpy()
    total_G = np.round(total_G, 12)  # sums that are 0 but for rounding
    if not total_G.any():
        return 1.0
    return float(wilcoxon(total_G[total_G != 0]).pvalue)


def holm(p_values: Mapping[Name, float]) -> dict[Name, float]:
    """Holm's corrected p values (Scandinavian Journal of Statistics 6, 1979).

    With the m p values in ascending order, the i-th (from 0) is multiplied by m - i; none is
    smaller than the one before it and none is above 1. Comparing them with a level bounds the
    chance of even one false finding among all m by that level.

    Args:
        p_values: Any name -> p value of one comparison.

    Returns:
        The same names, in the same order, with their corrected p values.
    """
    corrected: dict[Name, float] = {}
    largest = 0.0
    for rank, name in enumerate(sorted(p_values, key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[name]))
        corrected[name] = largest
    return {name: corrected[name] for name in p_values}
