"""Finished runs that belong in one table, and the refusal of those that do not.

A run that no seed can change (popularity, kNN, an untuned backbone) has the seed ``NO_SEED``;
several that differ in the seed alone count once.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from hatllm.config import OTHER_RUNS, can_seed_change, makes_steps, only_what_counts
from hatllm.metrics.from_predictions import NLL_COLUMNS, example_metrics
from hatllm.runs.cell import Cell
from hatllm.runs.run_files import (
    CONFIG_FILE,
    PREDICTIONS_FILE,
    RUN_FILE,
    check_files,
    read_environment,
    read_identity,
    read_predictions,
    read_settings,
)
from hatllm.tables.numbers import cut_offs_of
from hatllm.tables.paired_arms import NO_SEED, ByLabel


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


def cells_of(folders: Sequence[Path], labels: Sequence[str] | None = None) -> list[Cell]:
    """The finished runs in some folders.

    Args:
        folders: Run folders.
        labels: What to call the runs; None = as they call themselves.

    Raises:
        ValueError: If a run is not finished.
    """
    found = []
    for at, folder in enumerate(folders):
        check_files(folder, RUN_FILE, CONFIG_FILE, PREDICTIONS_FILE)
        identity = read_identity(folder, "label", "seed", "split_hash")
        label = str(identity["label"]) if labels is None else labels[at]
        found.append(Cell(label, int(identity["seed"]), folder))
    return found


def load_alike(runs: Sequence[Cell], cut_offs: Sequence[int] | None) -> list[FinishedRun]:
    """Read finished runs that belong in one table.

    Of runs that no seed can change, the first of each label and settings stands for its twins. A
    run that only decodes the weights of another run of the table has no NLL here: it would be the
    other's, tested a second time.

    Args:
        runs: All of them finished.
        cut_offs: K of HR@K and NDCG@K, measured anew of the runs' answers; a run whose lists are
            shorter than K lacks the two. None = all that some run was made with.

    Raises:
        ValueError: If there is no run, runs answered different splits or examples, or a label has
            two runs of one seed.
    """
    if cut_offs is None:
        cut_offs = sorted(set().union(*(_own_cut_offs(run.folder) for run in runs)))
    found: list[FinishedRun] = []
    for run in runs:
        loaded = load_run(run.folder, cut_offs, run.label)
        if not any(_are_twins(loaded, other) for other in found):
            found.append(loaded)
    _refuse_unlike(found)
    names = {run.folder.name for run in found}
    return [_without_nll(run) if _decoded_again(run) in names else run for run in found]


def load_run(folder: Path, cut_offs: Sequence[int], label: str) -> FinishedRun:
    """Read one finished run.

    Raises:
        ValueError: If a file is missing, or a key in ``run.json``.
    """
    (run,) = cells_of([folder], [label])
    settings = read_settings(folder)
    top_k = top_k_of(settings)
    return FinishedRun(
        folder=folder,
        label=label,
        seed=run.seed if is_seeded(settings) else NO_SEED,
        split_hash=str(read_identity(folder)["split_hash"]),
        settings=_settings_that_count(settings),
        top_k=top_k,
        values=example_metrics(read_predictions(folder), [k for k in cut_offs if k <= top_k]),
    )


def values_by_label(runs: Sequence[FinishedRun]) -> ByLabel:
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


def refuse_other_origins(folders: Sequence[Path]) -> list[str]:
    """Refuse runs that were not made from the same data by the same code.

    Args:
        folders: Finished runs.

    Returns:
        Warnings: what could not be checked, because a run does not say.

    Raises:
        ValueError: If two data hashes or two code hashes differ; names both runs.
    """
    warnings = []
    for key, name in (("data_hash", "data"), ("code_hash", "code")):
        hashes = {folder: read_environment(folder).get(key) for folder in folders}
        unknown = [folder for folder, value in hashes.items() if value is None]
        with_hash = [folder for folder, value in hashes.items() if value is not None]
        for folder in with_hash:
            if hashes[folder] != hashes[with_hash[0]]:
                raise ValueError(
                    f"{folder} has {key} {hashes[folder]}, {with_hash[0]} has "
                    f"{hashes[with_hash[0]]}: runs of different {name} do not belong in one table; "
                    "delete one of them and run it again"
                )
        if unknown:
            warnings.append(
                f"{name} hash unknown for {len(unknown)} of {len(folders)} runs, "
                f"such as {unknown[0].name}"
            )
    return warnings


def is_seeded(settings: Any) -> bool:
    """Whether two seeds could have given two results."""
    kind, tuning, max_steps, *other_runs = (
        _value_of(settings, name)
        for name in ("model.kind", "model.tuning", "trainer.max_steps", *map(".".join, OTHER_RUNS))
    )
    return can_seed_change(kind, tuning, max_steps, other_runs)


def top_k_of(settings: Any) -> int:
    """How many titles a run kept for each user."""
    return int(settings["decode"]["top_k"])


def _own_cut_offs(folder: Path) -> set[int]:
    """Those that a run was made with."""
    return set(read_settings(folder)["metrics"]["cut_offs"])


def _settings_that_count(settings: Any) -> dict[str, Any]:
    """Those that can change a run's answers, the seed aside."""
    return only_what_counts({name: settings[name] for name in settings if name != "seed"})


def _value_of(settings: Any, name: str) -> Any:
    """One setting by its dotted name; None where an older run does not have it."""
    for key in name.split("."):
        settings = settings.get(key) if isinstance(settings, dict) else None
    return settings


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


def _refuse_unlike(runs: Sequence[FinishedRun]) -> None:
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
