"""Differences of one pair of arms, pooled over data sets: random effects, users as the unit.

    python -m experiments.paper.main.pooled FOLDER [FOLDER ...]

reads the slices.csv that `task=table` writes into each folder, and writes pooled.md, pooled.csv and
pooled.png. The rule (DerSimonian and Laird, 1986): a data set's difference has the standard error
of its bootstrap interval over users; what data sets differ beyond these errors is a variance of its
own (tau squared), and each weighs one over the sum of both. The smallest effect is the one whose
interval would leave out zero four times in five.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from matplotlib.figure import Figure
from scipy.stats import norm

from hatllm.figures.saving import BLUE, GREY, save_figure, tidy
from hatllm.files import write_text
from hatllm.tables.writers import markdown_table

SLICES = {
    "all": "all rows",
    "no_shared_words": "no shared word",
    "no_words_no_transition": "neither word nor transition",
}
METRICS = ("trie_NLL", "NDCG@10", "HR@10")
TWO_SIDED = float(norm.ppf(0.975))
POWERED = TWO_SIDED + float(norm.ppf(0.8))  # standard errors that are seen four times in five


@dataclass(frozen=True)
class Pooled:
    """A difference over data sets.

    Attributes:
        mean: The weighted mean.
        se: Its standard error.
        tau: Standard deviation of the true differences between data sets, beyond their errors.
    """

    mean: float
    se: float
    tau: float

    @property
    def interval(self) -> tuple[float, float]:
        """95 %, normal."""
        return self.mean - TWO_SIDED * self.se, self.mean + TWO_SIDED * self.se

    @property
    def smallest_effect(self) -> float:
        """A true difference of this size leaves zero out of its interval with power 0.8."""
        return POWERED * self.se


def pool(means: Sequence[float], errors: Sequence[float]) -> Pooled:
    """Random effects after DerSimonian and Laird.

    Args:
        means: The difference in each data set.
        errors: Its standard error, above 0.
    """
    mean_D, variance_D = np.asarray(means, float), np.square(np.asarray(errors, float))
    fixed_D = 1 / variance_D
    spread = float(fixed_D @ (mean_D - fixed_D @ mean_D / fixed_D.sum()) ** 2)
    room = float(fixed_D.sum() - fixed_D @ fixed_D / fixed_D.sum())
    tau_squared = max(0.0, (spread - (len(mean_D) - 1)) / room) if len(mean_D) > 1 else 0.0
    weight_D = 1 / (variance_D + tau_squared)
    mean = float(weight_D @ mean_D / weight_D.sum())
    return Pooled(mean, float(weight_D.sum() ** -0.5), tau_squared**0.5)


def pooled_frame(folders: Sequence[Path], arm: str, reference: str) -> pl.DataFrame:
    """A row a metric and slice: each data set's difference, and the pooled one.

    Args:
        folders: Of tables, each with a slices.csv.
        arm: First of the pair.
        reference: Second of the pair.

    Raises:
        ValueError: If a table does not compare this pair, or is none of `task=table`.
    """
    pairs = pl.concat([_pairs(folder, arm, reference) for folder in folders])
    rows = []
    for metric in METRICS:
        low, high = f"{metric}_difference_low", f"{metric}_difference_high"
        for name in SLICES:
            # An arm without a hit beside another without one says nothing about hits.
            known = pairs.filter(pl.col("slice") == name, pl.col(high) > pl.col(low))
            if known.is_empty():
                continue
            errors = ((known[high] - known[low]) / (2 * TWO_SIDED)).to_list()
            found = pool(known[f"{metric}_difference"].to_list(), errors)
            each = known["data", f"{metric}_difference", low, high].rows()
            rows.append({
                "metric": metric, "slice": name, "rows": known["count"].sum(),
                "of_each": "; ".join(f"{data} {_with_interval(*of)}" for data, *of in each),
                "difference": found.mean, "low": found.interval[0], "high": found.interval[1],
                "tau": found.tau, "smallest_effect": found.smallest_effect,
            })  # fmt: skip
    return pl.DataFrame(rows)


def _pairs(folder: Path, arm: str, reference: str) -> pl.DataFrame:
    path = folder / "slices.csv"
    slices = pl.read_csv(path, infer_schema_length=None)
    differences = [
        f"{metric}_difference{end}" for metric in METRICS for end in ("", "_low", "_high")
    ]
    wanted = ["data", "label", "slice", "count", "compared_with", *differences]
    if missing := [name for name in wanted if name not in slices.columns]:
        raise ValueError(f"{path} has no column {missing[0]!r}: make it by task=table")
    pairs = slices.filter(pl.col("label") == arm, pl.col("compared_with") == reference)
    if pairs.is_empty():
        raise ValueError(f"{path} does not compare {arm!r} with {reference!r}")
    # A column without any number is read as text.
    return pairs.select("data", "slice", "count", pl.col(differences).cast(pl.Float64))


def _with_interval(mean: float, low: float, high: float) -> str:
    return f"{mean:+.4f} [{low:+.4f}, {high:+.4f}]"


def draw(pooled: pl.DataFrame, pair: str) -> Figure:
    """The pooled differences with their intervals, a panel a metric."""
    figure = Figure((10, 2.4), layout="constrained")
    panels = figure.subplots(1, len(METRICS), sharey=True)
    heights = {name: -place for place, name in enumerate(SLICES)}
    for axes, metric in zip(panels, METRICS, strict=True):
        shown = pooled.filter(pl.col("metric") == metric)
        height = [heights[name] for name in shown["slice"]]
        axes.hlines(height, shown["low"], shown["high"], color=BLUE)
        axes.plot(shown["difference"], height, "o", color=BLUE)
        axes.axvline(0, color=GREY, linewidth=1)
        axes.locator_params(axis="x", nbins=3)
        tidy(axes, metric)
    panels[0].set_yticks(list(heights.values()), list(SLICES.values()))
    panels[0].set_ylim(0.5 - len(SLICES), 0.5)
    panels[0].set_xlabel(f"{pair}, 95 % interval over users")
    return figure


def main() -> None:
    """Pool, write and draw."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folders", nargs="+", type=Path, help="of tables with a slices.csv")
    parser.add_argument("--arm", default="hatllm")
    parser.add_argument("--reference", default="causal")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent)
    args = parser.parse_args()
    try:
        pooled = pooled_frame(args.folders, args.arm, args.reference)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    write_text(args.output / "pooled.csv", pooled.write_csv())
    write_text(args.output / "pooled.md", markdown_table(
        ["metric, slice", "rows", "each data set", "pooled", "tau", "smallest effect"],
        [[f"{row['metric']}, {SLICES[row['slice']]}", str(row["rows"]), row["of_each"],
          _with_interval(row["difference"], row["low"], row["high"]),
          f"{row['tau']:.4f}", f"{row['smallest_effect']:.4f}"] for row in pooled.to_dicts()],
    ) + "\n")  # fmt: skip
    pair = f"{args.arm} - {args.reference}"
    save_figure(draw(pooled, pair), args.output / "pooled.png")


if __name__ == "__main__":
    main()
