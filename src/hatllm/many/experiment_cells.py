"""The cells of an experiment: data sets x labels x seeds, each with its overrides and folder."""

from collections.abc import Mapping, Sequence
from math import floor
from pathlib import Path

from hatllm.compose import Compose
from hatllm.config import Config, ExperimentConfig, check_choice
from hatllm.hardware import check_hardware
from hatllm.many.cell_runner import with_group
from hatllm.runs.cell import Cell
from hatllm.runs.provenance import code_hash
from hatllm.runs.run_files import read_environment


def plan_cells(config: Config, compose: Compose, to_run: bool = True) -> list[Cell]:
    """Every cell, data set after data set, seed after seed.

    Args:
        config: The experiment.
        compose: Gives the config of a cell and its whole command line from its overrides.
        to_run: Whether the cells must fit this machine's hardware.

    Raises:
        ValueError: If there are no cells, one that is to run now, or is compared with another, or
            that other, is none of them, or a cell's settings are wrong.
    """
    experiment = config.experiment
    labels = {**experiment.cells, **grid_cells(config)}
    _check_names(config, labels)
    cells, seen = [], set()
    datasets: list[str | None] = [*experiment.datasets]
    for data in datasets or [None]:
        for seed in experiment.seeds:
            folders: dict[str, Path] = {}
            for label, overrides in labels.items():
                more = ["task=train", *_data_words(config, data), *overrides, f"seed={seed}"]
                more = [*_with_folders(more, label, folders), f"experiment.cell={label}"]
                composed, words = compose(more)
                if to_run:
                    check_hardware(composed)
                cell = Cell.of(composed, label, with_group(words, experiment.name))
                folders[label] = cell.folder
                # What has no randomness is one run, of the first seed.
                if (label, cell.folder) not in seen:
                    seen.add((label, cell.folder))
                    cells.append(cell)
    return cells


def _check_names(config: Config, labels: Mapping[str, list[str]]) -> None:
    experiment = config.experiment
    if config.run_name is not None:
        raise ValueError(
            f"run_name={config.run_name!r} must be null with an experiment: its cells would share "
            "one folder; output_root=... keeps its runs apart from others"
        )
    if not labels:
        raise ValueError("experiment.cells={} is empty; choose one, such as experiment=demo")
    if experiment.reference is not None:
        check_choice("experiment.reference", experiment.reference, labels)
    for label in experiment.only:
        check_choice("experiment.only", label, labels)
    for label, other in experiment.compared_with.items():
        check_choice("experiment.compared_with", label, labels)
        check_choice(f"experiment.compared_with.{label}", other, labels)


def words_without_effect(experiment: ExperimentConfig, given: list[str]) -> list[str]:
    """What the command line says and the cells of the experiment set otherwise.

    Args:
        experiment: Cells, data sets and their settings.
        given: Words of the command line.

    Returns:
        A line for each such word: which cells or data sets do not follow it.

    Raises:
        ValueError: If no cell would follow: a data set or a seed beside those of the experiment.
    """
    if not experiment.cells and experiment.grid is None:
        return []
    lines = []
    words = {word.partition("=")[0].lstrip("+"): word for word in given}
    for name, several in (("data", experiment.datasets), ("seed", experiment.seeds)):
        if name in words and several:
            raise ValueError(
                f"{words[name]} has no effect on experiment={experiment.name}, which runs "
                f"experiment.{name}{'sets' if name == 'data' else 's'}={several}: set that instead"
            )
    own = _own_settings(experiment)
    for name, word in words.items():
        theirs = [
            f"{place} ({setting})"
            for place, settings in own.items()
            for setting in settings
            if setting.partition("=")[0] == name and setting != word
        ]
        if theirs:
            lines.append(f"{word} does not reach {', '.join(theirs)}")
    return lines


def _own_settings(experiment: ExperimentConfig) -> dict[str, list[str]]:
    """Part of the experiment -> what it sets, for the data sets and the cells that are run."""
    own = {
        f"experiment.data_overrides.{data}": experiment.data_overrides.get(data, [])
        for data in experiment.datasets
    }
    for label, overrides in experiment.cells.items():
        if not experiment.only or label in experiment.only:
            own[f"experiment.cells.{label}"] = overrides
    if (grid := experiment.grid) is not None:
        depths = [f"mask.split_layer={grid.split_layer}"]
        depths += [f"mask.num_cross_layers={grid.num_cross_layers}"]
        own["experiment.grid"] = [*grid.overrides, *depths]
    return own


def chosen_cells(config: Config, cells: list[Cell]) -> list[Cell]:
    """The cells to run now: those of ``experiment.only``, in its order within a seed, or all."""
    only = config.experiment.only
    if not only:
        return cells
    place = {(cell.data, cell.seed): number for number, cell in reversed([*enumerate(cells)])}
    chosen = [cell for cell in cells if cell.label in only]
    return sorted(chosen, key=lambda cell: (place[cell.data, cell.seed], only.index(cell.label)))


def grid_cells(config: Config) -> dict[str, list[str]]:
    """The cells of ``experiment.grid``: label -> overrides; pairs that do not fit are left out.

    Raises:
        ValueError: If the number of layers is not known before the model is loaded.
    """
    grid, num_layers = config.experiment.grid, config.model.num_layers
    if grid is None:
        return {}
    if num_layers is None:
        raise ValueError(
            "experiment.grid takes shares of the layers, and model.num_layers is null; give "
            "model.num_layers=..."
        )
    splits, crosses = (
        sorted({floor(share * num_layers) for share in shares})
        for shares in (grid.split_layer, grid.num_cross_layers)
    )
    return {
        f"split{split}-cross{cross}": [
            *grid.overrides, f"mask.split_layer={split}", f"mask.num_cross_layers={cross}"
        ]
        for split in splits
        for cross in crosses
        if split + cross <= num_layers
    }  # fmt: skip


def check_same_code(cells: Sequence[Cell], made_anew: Sequence[Cell]) -> None:
    """Refuse to add runs of today's code to finished ones of another.

    Args:
        cells: All of the experiment.
        made_anew: Those that run although they are finished.

    Raises:
        ValueError: If something is still to run and a finished cell was made by other code.
    """
    anew = {cell.folder for cell in made_anew}
    kept = [cell for cell in cells if cell.is_finished and cell.folder not in anew]
    if len(kept) == len(cells):
        return
    ours = code_hash()
    for cell in kept:
        theirs = read_environment(cell.folder).get("code_hash", ours)
        if theirs != ours:
            raise ValueError(
                f"{cell.folder} was made by code {theirs}, what is still to run would be by "
                f"{ours}: delete it, or go on with the code of its commit"
            )


def _with_folders(words: list[str], label: str, folders: dict[str, Path]) -> list[str]:
    """Overrides with ``SETTING=run:LABEL`` made the folder of that cell, same data and seed.

    Raises:
        ValueError: If there is no such cell before this one.
    """
    found = []
    for word in words:
        setting, _, value = word.partition("=")
        if value.startswith("run:"):
            if (other := value.removeprefix("run:")) not in folders:
                raise ValueError(
                    f"experiment.cells.{label}: {word} must name a cell that stands before it: "
                    f"{', '.join(folders) or 'there is none'}"
                )
            word = f"{setting}={folders[other]}"
        found.append(word)
    return found


def _data_words(config: Config, data: str | None) -> list[str]:
    if data is None:
        return []
    return [f"data={data}", *config.experiment.data_overrides.get(data, [])]
