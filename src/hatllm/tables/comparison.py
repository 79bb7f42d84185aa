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
from pathlib import Path
from typing import Any

import polars as pl
from omegaconf import OmegaConf

from hatllm.config import OTHER_RUNS, can_seed_change, makes_steps, only_what_counts
from hatllm.metrics.from_predictions import NLL_COLUMNS, example_metrics, uniform_guess
from hatllm.metrics.uncertainty import (
    PairedDifference,
    mean_and_standard_error,
    mean_and_std_over_seeds,
)
from hatllm.tables.numbers import cut_offs_of, paired_metrics, ranking_metrics
from hatllm.tables.pairing import NO_SEED, average, clear_winner, mean_of, paired_summary


@dataclass(frozen=True)
class FinishedRun:
    """What a comparison needs to know of one run folder."""

    folder: Path
    label: str
    seed: int  # NO_SEED where none can change the run
    split_hash: str
    settings: dict[str, Any]  # those that can change its answers, the seed aside
    top_k: int  # titles kept for each user
    values: pl.DataFrame  # output of example_metrics, for cut-offs of at most top_k


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
    cut_offs: tuple[int, ...]  # ascending; some row's lists are long enough for each
    short: tuple[str, ...]  # labels whose lists are too short for some cut-off

    @property
    def metrics(self) -> tuple[str, ...]:
        """The columns; a row lacks those that its runs cannot tell."""
        return (*ranking_metrics(self.cut_offs), *NLL_COLUMNS)

    @property
    def paired_metrics(self) -> tuple[str, ...]:
        """Those with paired differences."""
        return paired_metrics(self.cut_offs)


def compare_runs(
    folders: list[Path],
    reference: str | None,
    labels: Sequence[str] | None = None,
    cut_offs: Sequence[int] | None = None,
) -> Comparison:
    """Put finished runs beside each other.

    Args:
        folders: Run folders with ``run.json``, ``config.yaml`` and ``predictions.parquet``, in the
            order in which their labels shall stand.
        reference: The label that paired differences are taken against; None = no differences.
        labels: What to call the runs; None = as they call themselves.
        cut_offs: As `load_alike_runs`.

    Returns:
        One row a label.

    Raises:
        ValueError: If a run is not finished, runs answered different splits or examples, a label
            has two runs of one seed, or there is no run of the reference.
    """
    runs = load_alike_runs(folders, labels, cut_offs)
    found = measured_cut_offs(runs)
    by_label = values_by_label(runs)
    if reference is not None and reference not in by_label:
        raise ValueError(f"reference={reference!r} must be one of {', '.join(by_label)}")
    metrics = (*ranking_metrics(found), *NLL_COLUMNS)
    best = {metric: clear_winner(metric, by_label) for metric in metrics}
    return Comparison(
        rows=tuple(label_row(label, by_label, reference, found) for label in by_label),
        reference=reference,
        best={metric: label for metric, label in best.items() if label is not None},
        split_hash=runs[0].split_hash,
        guess=uniform_guess(runs[0].folder),
        cut_offs=found,
        short=short_lists(runs, found),
    )


def load_alike_runs(
    folders: Sequence[Path],
    labels: Sequence[str] | None = None,
    cut_offs: Sequence[int] | None = None,
) -> list[FinishedRun]:
    """Read finished runs that belong in one table.

    Of runs that no seed can change, the first of each label and settings stands for its twins. A
    run that only decodes the weights of another run of the table has no NLL here: it would be the
    other's, tested a second time.

    Args:
        folders: Run folders.
        labels: What to call the runs; None = as they call themselves.
        cut_offs: K of HR@K and NDCG@K, measured anew of the runs' answers; a run whose lists are
            shorter than K lacks the two. None = all that some run was made with.

    Raises:
        ValueError: As :func:`compare_runs`.
    """
    names: Sequence[str | None] = labels or [None] * len(folders)
    if cut_offs is None:
        cut_offs = sorted(set().union(*(_own_cut_offs(folder) for folder in folders)))
    runs: list[FinishedRun] = []
    for folder, name in zip(folders, names, strict=True):
        run = load_run(folder, cut_offs, name)
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


def measured_cut_offs(runs: Sequence[FinishedRun]) -> tuple[int, ...]:
    """The cut-offs that some run can tell of.

    Raises:
        ValueError: If there is none.
    """
    found = sorted({k for run in runs for k in cut_offs_of(run.values.columns)})
    if not found:
        raise ValueError(
            f"metrics.cut_offs must hold a number of at most {max(run.top_k for run in runs)}, "
            "the titles in the longest list of the runs (decode.top_k)"
        )
    return tuple(found)


def short_lists(runs: Sequence[FinishedRun], cut_offs: Sequence[int]) -> tuple[str, ...]:
    """The labels with lists too short for some cut-off."""
    return tuple(dict.fromkeys(run.label for run in runs if run.top_k < max(cut_offs)))


def load_run(folder: Path, cut_offs: Sequence[int], label: str | None = None) -> FinishedRun:
    """Read one finished run, under its own label or the one given.

    Raises:
        ValueError: If ``run.json``, ``config.yaml`` or ``predictions.parquet`` is missing, or a
            key in the first.
    """
    identity = read_identity(folder)
    settings = OmegaConf.load(folder / "config.yaml")
    predictions = pl.read_parquet(folder / "predictions.parquet")
    top_k = int(OmegaConf.select(settings, "decode.top_k"))
    return FinishedRun(
        folder=folder,
        label=label or str(identity["label"]),
        seed=int(identity["seed"]) if is_seeded(settings) else NO_SEED,
        split_hash=str(identity["split_hash"]),
        settings=_settings_that_count(settings),
        top_k=top_k,
        values=example_metrics(predictions, [k for k in cut_offs if k <= top_k]),
    )


def _own_cut_offs(folder: Path) -> set[int]:
    """Those that a run was made with."""
    read_identity(folder)  # an unfinished run is refused as one
    return set(OmegaConf.select(OmegaConf.load(folder / "config.yaml"), "metrics.cut_offs"))


def is_seeded(settings: Any) -> bool:
    """Whether two seeds could have given two results."""
    kind, tuning, max_steps, *other_runs = (
        OmegaConf.select(settings, name)
        for name in ("model.kind", "model.tuning", "trainer.max_steps", *map(".".join, OTHER_RUNS))
    )
    return can_seed_change(kind, tuning, max_steps, other_runs)


def _settings_that_count(settings: Any) -> dict[str, Any]:
    """Those that can change a run's answers, the seed aside."""
    values: Any = OmegaConf.to_container(settings)
    return only_what_counts({name: values[name] for name in values if name != "seed"})


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


def read_identity(folder: Path) -> dict[str, Any]:
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
    label: str,
    by_label: Mapping[str, Mapping[int, pl.DataFrame]],
    reference: str | None,
    cut_offs: Sequence[int],
) -> Row:
    """Cells of one label and its differences to the reference."""
    seeds = by_label[label]
    averages = average(list(seeds.values()))
    cells: dict[str, Cell] = {}
    for metric in (*ranking_metrics(cut_offs), *NLL_COLUMNS):
        if metric not in averages.columns:
            continue
        by_seed = {seed: mean_of(seeds[seed], metric) for seed in sorted(seeds)}
        mean, std = mean_and_std_over_seeds(list(by_seed.values()))
        _, error = mean_and_standard_error(averages[metric], averages["user_id"])
        cells[metric] = Cell(mean, error, std, by_seed)
    differences: dict[str, PairedDifference] = {}
    for metric in paired_metrics(cut_offs):
        if reference is not None and label != reference:
            difference = paired_summary(metric, seeds, by_label[reference])
            differences |= {} if difference is None else {metric: difference}
    return Row(
        label=label,
        cells=cells,
        differences=differences,
        num_users=averages["user_id"].n_unique(),
        num_examples=len(averages),
        seeds=tuple(sorted(seeds)),
    )
