"""The results of an experiment on one data set, cells that are not finished included.

Every arm is compared with one other arm on the same examples and seeds: bootstrap interval,
Wilcoxon's signed-rank test, and Holm's correction over the arms of the table.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from hatllm.metrics.from_predictions import uniform_guess
from hatllm.metrics.uncertainty import (
    LEVEL,
    PairedDifference,
    holm,
    summarize_differences,
    wilcoxon_p_value,
)
from hatllm.runs.cell import Cell
from hatllm.tables.comparison import (
    Row,
    label_row,
    load_alike_runs,
    measured_cut_offs,
    short_lists,
    values_by_label,
)
from hatllm.tables.numbers import paired_metrics, ranking_metrics
from hatllm.tables.pairing import clear_winner, paired_examples, paired_mean


@dataclass(frozen=True)
class Tested:
    """A difference and how sure it is."""

    difference: PairedDifference
    p_value: float  # Wilcoxon
    corrected: float  # after Holm's correction over the arms of the table
    base: float  # mean of the other arm over the seeds of the difference

    @property
    def holds(self) -> bool:
        """Whether it is significant after correction and the mean itself is clear of 0.

        Wilcoxon's test is about the centre of the users' differences. Where these are skewed, it
        can be sure of a direction that the mean does not have.
        """
        return self.corrected < LEVEL and self.difference.excludes_zero


@dataclass(frozen=True)
class Arm:
    """One label of the table."""

    label: str
    row: Row | None  # None: no run of it is finished
    num_planned: int  # seeds
    compared_with: str | None  # a label; None: with nothing, or that label has no finished run
    tests: dict[str, Tested]  # metric -> this arm minus the other


@dataclass(frozen=True)
class Results:
    """The table of one data set."""

    data: str
    arms: tuple[Arm, ...]
    best: dict[str, str]  # metric -> the arm that is better than all others beyond chance
    split_hash: str
    warnings: tuple[str, ...]
    guess: str | None  # a NLL to measure the others by, in words
    cut_offs: tuple[int, ...]  # ascending; some arm's lists are long enough for each
    short: tuple[str, ...]  # labels whose lists are too short for some cut-off

    @property
    def metrics(self) -> tuple[str, ...]:
        """The columns; an arm lacks those that its runs cannot tell."""
        return (*ranking_metrics(self.cut_offs), "trie_NLL")

    @property
    def tested_metrics(self) -> tuple[str, ...]:
        """Those that arms are compared by: NDCG first, of which the gain is."""
        return paired_metrics(self.cut_offs)

    def gain(self, arm: Arm) -> float | None:
        """Relative difference of NDCG to the arm it is compared with; None where that has 0.

        Over the same seeds as the difference itself.
        """
        tested = arm.tests.get(self.tested_metrics[0])
        return tested.difference.mean / tested.base if tested is not None and tested.base else None


def collect_results(
    data: str,
    runs: Sequence[Cell],
    reference: str | None,
    compared_with: Mapping[str, str],
    wanted: Sequence[int] | None = None,
) -> Results:
    """Read what is finished of an experiment on one data set.

    Args:
        data: Name of the data set.
        runs: All runs the table should hold, in its order.
        reference: Label that the others are compared with.
        compared_with: Label -> the label it is compared with instead.
        wanted: Cut-offs, as `load_alike_runs`.

    Returns:
        One arm a label, those without a finished run included.

    Raises:
        ValueError: If no run is finished, or runs were made from other data, examples or code.
    """
    finished = [run for run in runs if run.is_finished]
    if not finished:
        raise ValueError(f"data={data!r}: none of the {len(runs)} runs of the table is finished")
    warnings = refuse_other_origins([run.folder for run in finished])
    folders, names = [run.folder for run in finished], [run.label for run in finished]
    loaded = load_alike_runs(folders, names, wanted)
    cut_offs = measured_cut_offs(loaded)
    by_label = values_by_label(loaded)
    others = _others([run.label for run in runs], by_label, reference, compared_with)
    tests = {metric: _tests(metric, others, by_label) for metric in paired_metrics(cut_offs)}
    arms = []
    for label in dict.fromkeys(run.label for run in runs):
        row = label_row(label, by_label, None, cut_offs) if label in by_label else None
        num_planned = sum(run.label == label for run in runs)
        found = {metric: tests[metric][label] for metric in tests if label in tests[metric]}
        arms.append(Arm(label, row, num_planned, others.get(label), found))
    metrics = (*ranking_metrics(cut_offs), "trie_NLL")
    best = {metric: clear_winner(metric, by_label) for metric in metrics}
    return Results(
        data=data,
        arms=tuple(arms),
        best={metric: label for metric, label in best.items() if label is not None},
        split_hash=loaded[0].split_hash,
        warnings=tuple(warnings),
        guess=uniform_guess(loaded[0].folder),
        cut_offs=cut_offs,
        short=short_lists(loaded, cut_offs),
    )


def refuse_other_origins(folders: Sequence[Path]) -> list[str]:
    """Refuse runs that were not made from the same data by the same code.

    Args:
        folders: Finished runs.

    Returns:
        Warnings: what could not be checked, because the run is older than the check.

    Raises:
        ValueError: If two data hashes or two code hashes differ; names both runs.
    """
    warnings = []
    for key, name in (("data_hash", "data"), ("code_hash", "code")):
        known = {folder: _environment(folder).get(key) for folder in folders}
        unknown = [folder for folder, value in known.items() if value is None]
        with_hash = [folder for folder in folders if known[folder] is not None]
        for folder in with_hash:
            if known[folder] != known[with_hash[0]]:
                raise ValueError(
                    f"{folder} has {key} {known[folder]}, {with_hash[0]} has "
                    f"{known[with_hash[0]]}: runs of different {name} do not belong in one table; "
                    "delete one of them and run it again"
                )
        if unknown:
            warnings.append(
                f"{name} hash unknown for {len(unknown)} of {len(folders)} runs, "
                f"such as {unknown[0].name}"
            )
    return warnings


def _environment(folder: Path) -> dict[str, Any]:
    path = folder / "environment.json"
    return dict(json.loads(path.read_text())) if path.exists() else {}


def _others(
    labels: Sequence[str],
    by_label: Mapping[str, object],
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


def _tests(
    metric: str,
    others: Mapping[str, str],
    by_label: Mapping[str, Mapping[int, pl.DataFrame]],
) -> dict[str, Tested]:
    """Each arm against the other it is compared with; one family of tests a metric."""
    found, base = {}, {}
    for label, other in others.items():
        differences = paired_examples(metric, by_label[label], by_label[other])
        if differences is not None:
            found[label] = differences
            base[label] = paired_mean(metric, by_label[label], by_label[other])
    p_values = {label: wilcoxon_p_value(differences) for label, differences in found.items()}
    corrected = holm(p_values)
    return {
        label: Tested(
            summarize_differences(differences), p_values[label], corrected[label], base[label]
        )
        for label, differences in found.items()
    }
