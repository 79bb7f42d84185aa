"""Arms side by side on one data set: the one comparison that every table and figure is made of.

Metrics are means over examples, then over seeds. An arm is compared with one other arm on the same
examples and seeds (:mod:`hatllm.tables.paired_arms`): bootstrap interval, Wilcoxon's signed-rank
test, and Holm's correction over the arms of the table.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hatllm.metrics.from_predictions import NLL_COLUMNS
from hatllm.runs.cell import Cell
from hatllm.tables.alike_runs import (
    FinishedRun,
    cells_of,
    load_alike,
    measured_cut_offs,
    refuse_other_origins,
    values_by_label,
)
from hatllm.tables.by_slice import Slice, compare_slices, read_slices
from hatllm.tables.numbers import Number, paired_metrics, ranking_metrics, uniform_guess
from hatllm.tables.paired_arms import ByLabel, Tested, clear_winner, numbers_of, tested_differences


@dataclass(frozen=True)
class Arm:
    """One label of the table."""

    label: str
    numbers: dict[str, Number]  # metric -> number; one that the arm lacks is absent
    seeds: tuple[int, ...]  # none: no run of it is finished
    num_planned: int  # seeds that it should have
    compared_with: str | None  # a label; None: with nothing, or that label has no finished run
    # metric -> this arm minus the other; none where they share no seed
    tests: dict[str, Tested] = field(default_factory=dict)

    @property
    def seeds_text(self) -> str:
        """Such as ``3``, or ``2 of 3`` of an arm that is not complete."""
        there = len(self.seeds)
        return str(there) if there == self.num_planned else f"{there} of {self.num_planned}"


@dataclass(frozen=True)
class Comparison:
    """A table of arms on one data set and split."""

    data: str | None
    arms: tuple[Arm, ...]
    reference: str | None  # the arm that the others are compared with
    best: dict[str, str]  # metric -> the arm that is better than every other beyond chance
    split_hash: str
    num_users: int
    num_examples: int
    warnings: tuple[str, ...]
    guess: str | None  # a NLL to measure the others by, in words
    cut_offs: tuple[int, ...]  # ascending; some arm's lists are long enough for each
    short: tuple[str, ...]  # labels whose lists are too short for some cut-off
    slices: tuple[Slice, ...]  # all examples first

    @property
    def metrics(self) -> tuple[str, ...]:
        """The columns; an arm lacks those that its runs cannot tell."""
        return (*ranking_metrics(self.cut_offs), *NLL_COLUMNS)

    @property
    def tested_metrics(self) -> tuple[str, ...]:
        """Those with paired differences; the first is the one that gains are of."""
        return paired_metrics(self.cut_offs)

    @property
    def is_paired(self) -> bool:
        """Whether any arm is compared with another."""
        return any(arm.compared_with is not None for arm in self.arms)

    def gain(self, arm: Arm) -> float | None:
        """How much higher NDCG is than in the arm it is compared with, relative to that one.

        Over the same seeds as the difference itself.
        """
        tested = arm.tests.get(self.tested_metrics[0])
        return tested.difference.mean / tested.base if tested is not None and tested.base else None


def compare_runs(
    folders: Sequence[Path],
    reference: str | None,
    labels: Sequence[str] | None = None,
    cut_offs: Sequence[int] | None = None,
    data: str | None = None,
) -> Comparison:
    """Put finished runs beside each other.

    Args:
        folders: Run folders with ``run.json``, ``config.yaml`` and ``predictions.parquet``, in the
            order in which their labels shall stand.
        reference: The label that paired differences are taken against; None = no differences.
        labels: What to call the runs; None = as they call themselves.
        cut_offs: As `compare`.
        data: Name of the data set.

    Returns:
        One arm a label.

    Raises:
        ValueError: If a run is not finished, there is no run of the reference, or as `compare`.
    """
    runs = cells_of(folders, labels)
    known = dict.fromkeys(run.label for run in runs)
    if runs and reference is not None and reference not in known:
        raise ValueError(f"reference={reference!r} must be one of {', '.join(known)}")
    return compare(runs, reference, {}, cut_offs, data)


def compare(
    runs: Sequence[Cell],
    reference: str | None,
    compared_with: Mapping[str, str],
    cut_offs: Sequence[int] | None,
    data: str | None,
) -> Comparison:
    """Put beside each other what is finished of the runs of a table.

    Args:
        runs: All runs the table should hold, in its order.
        reference: Label that the others are compared with; None = no differences.
        compared_with: Label -> the label it is compared with instead.
        cut_offs: As `load_alike`.
        data: Name of the data set.

    Returns:
        One arm a label, those without a finished run included.

    Raises:
        ValueError: If no run is finished, or runs were made from other data, examples or code.
    """
    loaded, warnings = _alike(runs, cut_offs, data)
    first, found, by_label = loaded[0], measured_cut_offs(loaded), values_by_label(loaded)
    others = _others([run.label for run in runs], by_label, reference, compared_with)
    arms = _arms(runs, by_label, others, found)
    return Comparison(
        data=data,
        arms=arms,
        reference=reference,
        best=_winners(arms, by_label, found),
        split_hash=first.split_hash,
        num_users=first.values["user_id"].n_unique(),
        num_examples=len(first.values),
        warnings=tuple(warnings),
        guess=uniform_guess(first.folder),
        cut_offs=found,
        short=tuple(dict.fromkeys(run.label for run in loaded if run.top_k < max(found))),
        slices=compare_slices(read_slices(first.folder), by_label, others, found),
    )


def _alike(
    runs: Sequence[Cell], cut_offs: Sequence[int] | None, data: str | None
) -> tuple[list[FinishedRun], list[str]]:
    """The finished runs, and what a reader has to be warned of in them."""
    finished = [run for run in runs if run.is_finished]
    if runs and not finished:
        raise ValueError(f"data={data!r}: none of the {len(runs)} runs of the table is finished")
    warnings = refuse_other_origins([run.folder for run in finished])
    return load_alike(finished, cut_offs), warnings


def _others(
    labels: Sequence[str],
    by_label: ByLabel,
    reference: str | None,
    compared_with: Mapping[str, str],
) -> dict[str, str]:
    """Label -> the label it is compared with, where both have a finished run."""
    wanted = {label: compared_with.get(label, reference) for label in labels}
    return {
        label: other
        for label, other in wanted.items()
        if other is not None and other != label and {label, other} <= set(by_label)
    }


def _arms(
    runs: Sequence[Cell],
    by_label: ByLabel,
    others: Mapping[str, str],
    cut_offs: Sequence[int],
) -> tuple[Arm, ...]:
    """Every planned arm with its numbers and its tests."""
    metrics = (*ranking_metrics(cut_offs), *NLL_COLUMNS)
    pairs = {label: (by_label[label], by_label[other]) for label, other in others.items()}
    tests = {metric: tested_differences(metric, pairs) for metric in paired_metrics(cut_offs)}
    arms = []
    for label in dict.fromkeys(run.label for run in runs):
        seeds = by_label.get(label, {})
        num_missing = sum(run.label == label and not run.is_finished for run in runs)
        arms.append(
            Arm(
                label=label,
                numbers=numbers_of(seeds, metrics) if seeds else {},
                seeds=tuple(sorted(seeds)),
                num_planned=len(seeds) + num_missing,
                compared_with=others.get(label),
                tests={metric: found[label] for metric, found in tests.items() if label in found},
            )
        )
    return tuple(arms)


def _winners(arms: Sequence[Arm], by_label: ByLabel, cut_offs: Sequence[int]) -> dict[str, str]:
    """Metric -> the arm that is better than every other beyond chance, where there is one."""
    winners = {}
    for metric in (*ranking_metrics(cut_offs), *NLL_COLUMNS):
        means = {arm.label: arm.numbers[metric].mean for arm in arms if metric in arm.numbers}
        if (best := clear_winner(metric, means, by_label)) is not None:
            winners[metric] = best
    return winners
