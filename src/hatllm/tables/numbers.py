"""How a number and its doubt are written: one rule for every table.

Behind ± stands the standard error over users and nothing else; a standard deviation over seeds
stands in parentheses, where there are two seeds or more. A number that is the same for every user,
such as HR of a model that never hits, has no error to estimate: it stands alone.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from hatllm.config import cut_off_of, main_cut_off
from hatllm.metrics.best_step import is_lower_better
from hatllm.metrics.uncertainty import MeanInterval, mean_and_std_over_seeds
from hatllm.runs.run_files import ITEMS_FILE

HIGHER, LOWER = "↑", "↓"
DASH = "–"
ROUNDING = 1e-12  # a standard error below it is one of 0
OVER_USERS = "± is the standard error over users"
BOLD = (
    "Bold: better than every other, by Wilcoxon's signed-rank test over users after Holm's "
    "correction and by the 95 % interval of the mean difference"
)
OVER_SEEDS = "in parentheses the standard deviation over seeds, where there are two or more"
MEANS = f"Means over seeds; {OVER_USERS}, {OVER_SEEDS}"


@dataclass(frozen=True)
class Number:
    """What the runs of one arm say of one metric."""

    mean: float  # over seeds
    standard_error: float | None = None  # over users; None for one user
    std: float | None = None  # over seeds; None for one seed
    by_seed: dict[int, float] = field(default_factory=dict)


def over_seeds(by_seed: Mapping[int, float], error: float | None = None) -> Number:
    """The mean and spread of what each seed found.

    Args:
        by_seed: Seed -> the metric's mean over examples; at least one.
        error: Its standard error over users; None = not known.
    """
    mean, std = mean_and_std_over_seeds(list(by_seed.values()))
    return Number(mean, error, known(std), dict(by_seed))


def columns_of(name: str, number: Number | None) -> dict[str, float | None]:
    """A number as frames and CSV files have it: ``NAME``, ``NAME_se``, ``NAME_std``."""
    if number is None:
        return {name: None, f"{name}_se": None, f"{name}_std": None}
    return {name: number.mean, f"{name}_se": number.standard_error, f"{name}_std": number.std}


def known(value: float) -> float | None:
    """The number, or None for NaN."""
    return None if math.isnan(value) else value


def digits_of(name: str) -> int:
    """Decimals of a metric by its name: NLL in nats 3, seconds and rates (``_s``) 2, others 4."""
    return 3 if name.endswith("NLL") else 2 if name.endswith("_s") else 4


def format_value(
    name: str, value: float | None, error: float | None = None, spread: float | None = None
) -> str:
    """A metric with as many digits as it deserves; a dash for None.

    Args:
        name: Of the metric; it decides on the digits.
        value: The number.
        error: Its standard error over users; None = not known.
        spread: Its standard deviation over seeds; None = not known.

    Returns:
        Such as ``0.0680 ± 0.0360 (0.0120)``.
    """
    if value is None:
        return DASH
    if name.startswith("num_") or name.endswith("count"):
        return f"{value:,.0f}"
    digits = digits_of(name)
    text = f"{value:.{digits}f}"
    if error is not None and error < ROUNDING:  # alike for all: no spread says how far it is off
        return text
    text += "" if error is None else f" ± {error:.{digits}f}"
    return text if spread is None else f"{text} ({spread:.{digits}f})"


def format_row(row: Mapping[str, float | None], name: str) -> str:
    """As :func:`format_value`, of a row that has the columns of :func:`columns_of`."""
    return format_value(name, row.get(name), row.get(f"{name}_se"), row.get(f"{name}_std"))


def format_difference(name: str, difference: MeanInterval) -> str:
    """The mean difference with its interval, signs shown."""
    mean, low, high = (
        f"{value:+.{digits_of(name)}f}"
        for value in (difference.mean, difference.low, difference.high)
    )
    return f"{mean} [{low}, {high}]"


def arrow(name: str) -> str:
    """The metric's name with the direction that is better."""
    return f"{name} {LOWER if is_lower_better(name) else HIGHER}"


def no_hits_note(num_users: Iterable[float]) -> str:
    """What a table says of zeros without ±: how large the rate may be nevertheless.

    Of n users without one hit, a rate of 3 / n or more would be seen in 5 % of samples (rule of
    three, Hanley and Lippman-Hand, JAMA 249, 1983).

    Args:
        num_users: Users behind each number of the table that is 0; none = no note.
    """
    numbers = sorted({int(number) for number in num_users}, reverse=True)
    bounds = [f"{min(1.0, 3 / number):.4f} ({number:,} users)" for number in numbers]
    if not bounds:
        return ""
    return f"0 without ±: nobody was hit; at 95 % the rate is below {' or '.join(bounds)}"


def users_without_a_hit(
    metrics: Mapping[str, Mapping[str, float]], shown: Iterable[str]
) -> list[float]:
    """Users of every split of a ``metrics.json`` of which a HR@K that is shown is 0."""
    rates = [name for name in shown if name.startswith("HR@")]
    return [
        values["num_users"]
        for values in metrics.values()
        if any(values.get(name) == 0 for name in rates)
    ]


def uniform_guess(folder: Path) -> str | None:
    """How good a NLL is: that of a uniform guess among all titles, said in words.

    Args:
        folder: A finished run.

    Returns:
        Such as ``a uniform guess among 6,334 titles has 8.754``; None for a folder without its
        catalogue.
    """
    path = folder / ITEMS_FILE
    if not path.exists():
        return None
    num_titles = pl.read_parquet(path)["title"].n_unique()
    return f"a uniform guess among {num_titles:,} titles has {math.log(num_titles):.3f}"


def nll_note(guesses: Iterable[str]) -> str:
    """What unit NLL has, and what a uniform guess has of it on each of the table's data sets."""
    return "; ".join(["NLL in nats a title", *dict.fromkeys(guesses)])


def missing_note(labels: Sequence[str]) -> str:
    """What a table says of dashes where lists are shorter than a cut-off.

    Args:
        labels: Arms with such lists; none = no note.
    """
    if not labels:
        return ""
    return (
        f"{DASH} in HR@K or NDCG@K: lists of fewer than K titles (decode.top_k), in "
        f"{', '.join(labels)}"
    )


def ranking_metrics(cut_offs: Sequence[int]) -> tuple[str, ...]:
    """HR and NDCG at every cut-off above 1, where the two are one number, or at 1 alone."""
    shown = [cut_off for cut_off in cut_offs if cut_off > 1] or list(cut_offs)
    return tuple(f"{kind}@{k}" for kind in ("HR", "NDCG") for k in shown)


def paired_metrics(cut_offs: Sequence[int]) -> tuple[str, ...]:
    """The metrics that arms are compared by: NDCG at the main cut-off, and NLL."""
    return (f"NDCG@{main_cut_off(cut_offs)}", "trie_NLL")


def cut_offs_of(metrics: Iterable[str]) -> tuple[int, ...]:
    """The cut-offs of the ``HR@K`` among the names of metrics, ascending."""
    found = {cut_off_of(name) for name in metrics if name.startswith("HR@")}
    return tuple(sorted(k for k in found if k is not None))


def sentences(parts: Iterable[str]) -> str:
    """The notes under a table, without the empty ones."""
    return " ".join(f"{part}." for part in parts if part)
