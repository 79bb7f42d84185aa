"""Finished runs side by side: one row a label, paired against a reference.

Metrics are means over examples, then over seeds. Differences are paired by example: each example's
values are first averaged over the seeds that both labels ran, then subtracted. A run that no seed
can change (popularity, kNN, an untuned backbone) has the seed ``NO_SEED``: it shares none, and is
compared with the average over all seeds of the other label. Several that differ in the seed alone
count once. Labels that have seeds and share none are not compared.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isnan
from pathlib import Path
from typing import Any

import polars as pl
from omegaconf import OmegaConf

from hatllm.config import OTHER_RUNS, can_seed_change, makes_steps, settings_that_count
from hatllm.report.evaluation import NLL_COLUMNS, example_metrics, uniform_guess
from hatllm.report.examples import describe_examples, pick_examples
from hatllm.report.statistics import (
    PairedDifference,
    example_differences,
    mean_and_standard_error,
    mean_and_std_over_seeds,
    summarize_differences,
)

NO_SEED = -1
CUT_OFFS = (5, 10)
METRICS = ("HR@5", "HR@10", "NDCG@5", "NDCG@10", "trie_NLL", "vocab_NLL")
PAIRED_METRICS = ("NDCG@10", "trie_NLL")


@dataclass(frozen=True)
class FinishedRun:
    """What a comparison needs to know of one run folder."""

    folder: Path
    label: str
    seed: int  # NO_SEED where none can change the run
    split_hash: str
    settings: dict[str, Any]  # those that can change its numbers, the seed aside
    values: pl.DataFrame  # output of example_metrics


@dataclass(frozen=True)
class Cell:
    """One metric of one label."""

    mean: float  # over seeds
    standard_error: float  # over users, of the values averaged over seeds; NaN for one user
    std: float  # over seeds; NaN for one seed
    by_seed: dict[int, float]


@dataclass(frozen=True)
class Row:
    """One label of the table."""

    label: str
    cells: dict[str, Cell]  # metric -> cell; a metric the label lacks is absent
    # metric -> label minus reference; none for itself, nor where they share no seed
    differences: dict[str, PairedDifference]
    num_users: int
    num_examples: int
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Comparison:
    """A table of labels on one split."""

    rows: tuple[Row, ...]
    reference: str | None
    best: dict[str, str]  # metric -> the label that is better than every other beyond chance
    split_hash: str
    guess: str | None  # a NLL to measure the others by, in words


def compare_runs(
    folders: list[Path], reference: str | None, labels: Sequence[str] | None = None
) -> Comparison:
    """Put finished runs beside each other.

    Args:
        folders: Run folders with ``run.json``, ``config.yaml`` and ``predictions.parquet``, in the
            order in which their labels shall stand.
        reference: The label that paired differences are taken against; None = no differences.
        labels: What to call the runs; None = as they call themselves.

    Returns:
        One row a label.

    Raises:
        ValueError: If a run is not finished, runs answered different splits or examples, a label
            has two runs of one seed, or there is no run of the reference.
    """
    runs = load_alike_runs(folders, labels)
    by_label = values_by_label(runs)
    if reference is not None and reference not in by_label:
        raise ValueError(f"reference={reference!r} must be one of {', '.join(by_label)}")
    rows = tuple(label_row(label, by_label, reference) for label in by_label)
    best = {metric: _clear_winner(metric, rows, by_label) for metric in METRICS}
    return Comparison(
        rows=rows,
        reference=reference,
        best={metric: label for metric, label in best.items() if label is not None},
        split_hash=runs[0].split_hash,
        guess=uniform_guess(runs[0].folder),
    )


def load_alike_runs(
    folders: Sequence[Path], labels: Sequence[str] | None = None
) -> list[FinishedRun]:
    """Read finished runs that belong in one table.

    Of runs that no seed can change, the first of each label and settings stands for its twins. A
    run that only decodes the weights of another run of the table has no NLL here: it would be the
    other's, tested a second time.

    Raises:
        ValueError: As :func:`compare_runs`.
    """
    names: Sequence[str | None] = labels or [None] * len(folders)
    runs: list[FinishedRun] = []
    for folder, name in zip(folders, names, strict=True):
        run = load_run(folder, name)
        if not any(_are_twins(run, other) for other in runs):
            runs.append(run)
    _refuse_unlike_runs(runs)
    names_here = {run.folder.name for run in runs}
    return [_without_nll(run) if _decoded_again(run) in names_here else run for run in runs]


def values_by_label(runs: Sequence[FinishedRun]) -> dict[str, dict[int, pl.DataFrame]]:
    """Label -> seed -> metrics of every example, in the order of the runs."""
    by_label: dict[str, dict[int, pl.DataFrame]] = {}
    for run in runs:
        by_label.setdefault(run.label, {})[run.seed] = run.values
    return by_label


def load_run(folder: Path, label: str | None = None) -> FinishedRun:
    """Read one finished run, under its own label or the one given.

    Raises:
        ValueError: If ``run.json``, ``config.yaml`` or ``predictions.parquet`` is missing, or a
            key in the first.
    """
    identity = _read_identity(folder)
    settings = OmegaConf.load(folder / "config.yaml")
    predictions = pl.read_parquet(folder / "predictions.parquet")
    return FinishedRun(
        folder=folder,
        label=label or str(identity["label"]),
        seed=int(identity["seed"]) if is_seeded(settings) else NO_SEED,
        split_hash=str(identity["split_hash"]),
        settings=_settings_that_count(settings),
        values=example_metrics(predictions, CUT_OFFS),
    )


def is_seeded(settings: Any) -> bool:
    """Whether two seeds could have given two results."""
    kind, tuning, max_steps, *other_runs = (
        OmegaConf.select(settings, name)
        for name in ("model.kind", "model.tuning", "trainer.max_steps", *map(".".join, OTHER_RUNS))
    )
    return can_seed_change(kind, tuning, max_steps, other_runs)


def _settings_that_count(settings: Any) -> dict[str, Any]:
    """Those that can change a run's numbers, the seed aside."""
    values: Any = OmegaConf.to_container(settings)
    return settings_that_count({name: values[name] for name in values if name != "seed"})


def _are_twins(run: FinishedRun, other: FinishedRun) -> bool:
    """Whether two runs that no seed can change are the same but for the seed."""
    ours, theirs = ((r.label, r.seed, r.split_hash, r.settings) for r in (run, other))
    return run.seed == NO_SEED and ours == theirs


def _decoded_again(run: FinishedRun) -> str | None:
    """Name of the folder whose weights the run decodes without training them further."""
    model: dict[str, Any] = run.settings["model"]
    start_from = model.get("start_from")
    if start_from is None or makes_steps(model["tuning"], run.settings["trainer"]["max_steps"]):
        return None
    return Path(start_from).name


def _without_nll(run: FinishedRun) -> FinishedRun:
    return replace(run, values=run.values.drop(NLL_COLUMNS, strict=False))


def example_users(
    folders: Sequence[Path],
    labels: Sequence[str],
    n: int = 3,
    names: Sequence[str] | None = None,
) -> str:
    """Example users of several arms as text, the answers of the last label listed.

    Args:
        folders: Run folders, with ``examples.parquet`` and ``items.parquet`` beside the rest.
        labels: Arms whose ranks are shown; the top five are those of the last one.
        n: Users; those for whom some arm hits come first.
        names: What to call the runs; None = as they call themselves.

    Returns:
        One block of text: history titles, the true next title, its ranks, the top five.

    Raises:
        ValueError: If a label has no run or a run is not finished.
    """
    first: dict[str, tuple[int, Path]] = {}
    for at, folder in enumerate(folders):
        identity = _read_identity(folder)
        label = names[at] if names is not None else str(identity["label"])
        seed = int(identity["seed"])
        if label not in first or seed < first[label][0]:
            first[label] = (seed, folder)
    missing = [label for label in labels if label not in first]
    if missing or not labels:
        raise ValueError(f"labels={list(labels)} must be among {', '.join(first)}")
    predictions = {
        label: pl.read_parquet(first[label][1] / "predictions.parquet") for label in labels
    }
    folder = first[labels[-1]][1]
    return describe_examples(
        pick_examples(list(predictions.values()), n),
        pl.read_parquet(folder / "examples.parquet"),
        pl.read_parquet(folder / "items.parquet"),
        predictions,
        shown=labels[-1],
    )


def _read_identity(folder: Path) -> dict[str, Any]:
    """``run.json`` of a finished run."""
    for name in ("run.json", "config.yaml", "predictions.parquet"):
        if not (folder / name).exists():
            raise ValueError(f"{folder} has no {name}: the run is not finished")
    identity: dict[str, Any] = json.loads((folder / "run.json").read_text())
    for key in ("label", "seed", "split_hash"):
        if key not in identity:
            raise ValueError(f"{folder / 'run.json'} has no {key!r}")
    return identity


def _refuse_unlike_runs(runs: Sequence[FinishedRun]) -> None:
    """Raise unless all runs answered one split and no two are the same cell."""
    if not runs:
        raise ValueError("folders=[] must hold at least one finished run")
    seen: dict[tuple[str, int], Path] = {}
    for run in runs:
        if run.split_hash != runs[0].split_hash:
            raise ValueError(
                f"{run.folder} has split_hash {run.split_hash}, {runs[0].folder} has "
                f"{runs[0].split_hash}: numbers of different splits do not belong in one table"
            )
        if (other := seen.get((run.label, run.seed))) is not None:
            raise ValueError(
                f"{other} and {run.folder} are both label {run.label!r}, seed {run.seed}: "
                "leave one out"
            )
        seen[run.label, run.seed] = run.folder
        if not run.values["example_id"].equals(runs[0].values["example_id"]):
            raise ValueError(
                f"{run.folder} and {runs[0].folder} answer different examples "
                f"({len(run.values)} and {len(runs[0].values)})"
            )


def label_row(
    label: str, by_label: Mapping[str, Mapping[int, pl.DataFrame]], reference: str | None
) -> Row:
    """Cells of one label and its differences to the reference."""
    seeds = by_label[label]
    average = _average(list(seeds.values()))
    cells: dict[str, Cell] = {}
    for metric in METRICS:
        if metric not in average.columns:
            continue
        by_seed = {seed: _mean(seeds[seed], metric) for seed in sorted(seeds)}
        mean, std = mean_and_std_over_seeds(list(by_seed.values()))
        _, error = mean_and_standard_error(average[metric], average["user_id"])
        cells[metric] = Cell(mean, error, std, by_seed)
    differences: dict[str, PairedDifference] = {}
    for metric in PAIRED_METRICS:
        if reference is not None and label != reference:
            difference = _difference(metric, seeds, by_label[reference])
            differences |= {} if difference is None else {metric: difference}
    return Row(
        label=label,
        cells=cells,
        differences=differences,
        num_users=average["user_id"].n_unique(),
        num_examples=len(average),
        seeds=tuple(sorted(seeds)),
    )


def paired_examples(
    metric: str, first: Mapping[int, pl.DataFrame], second: Mapping[int, pl.DataFrame]
) -> pl.DataFrame | None:
    """First minus second over shared seeds, by example.

    None if they share no seed though both have some, or one of them lacks the metric.
    """
    paired = _paired_seeds(first, second)
    if not all(paired):
        return None
    averages = [_average(tables) for tables in paired]
    if any(metric not in average.columns for average in averages):
        return None
    return example_differences(averages[0], averages[1], metric)


def paired_mean(
    metric: str, first: Mapping[int, pl.DataFrame], second: Mapping[int, pl.DataFrame]
) -> float:
    """The mean of the second, which has the metric, over the seeds of :func:`paired_examples`."""
    return _mean(_average(_paired_seeds(first, second)[1]), metric)


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


def _difference(
    metric: str, first: Mapping[int, pl.DataFrame], second: Mapping[int, pl.DataFrame]
) -> PairedDifference | None:
    differences = paired_examples(metric, first, second)
    return None if differences is None else summarize_differences(differences)


def _average(tables: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """Each example's metrics averaged over seeds; only metrics that every seed has."""
    names = [name for name in tables[0].columns if all(name in table.columns for table in tables)]
    stacked = pl.concat([table.select(names) for table in tables])
    metrics = pl.exclude("example_id", "user_id").mean()
    return stacked.group_by("example_id").agg(pl.first("user_id"), metrics).sort("example_id")


def _mean(values: pl.DataFrame, metric: str) -> float:
    return mean_and_standard_error(values[metric], values["user_id"])[0]


def _clear_winner(
    metric: str, rows: Sequence[Row], by_label: Mapping[str, Mapping[int, pl.DataFrame]]
) -> str | None:
    """The best label, if its interval to every other one lies on the good side of 0.

    To every other one, not to the runner-up alone: where some have more seeds than others, means
    over all seeds may stand in another order than those over the shared ones.
    """
    labels = [row.label for row in ranked(metric, rows)]
    if len(labels) < 2:
        return None
    best, *others = labels
    found = [_difference(metric, by_label[best], by_label[other]) for other in others]
    clear = all(difference is not None and is_better(metric, difference) for difference in found)
    return best if clear else None


def ranked(metric: str, rows: Sequence[Row]) -> list[Row]:
    """The rows that have the metric, best mean first."""
    return sorted(
        (row for row in rows if metric in row.cells and not isnan(row.cells[metric].mean)),
        key=lambda row: row.cells[metric].mean,
        reverse=not metric.endswith("NLL"),
    )


def is_better(metric: str, difference: PairedDifference) -> bool:
    """Whether the whole interval says that the first is better than the second."""
    return difference.high < 0 if metric.endswith("NLL") else difference.low > 0
