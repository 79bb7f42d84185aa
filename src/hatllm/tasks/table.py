"""task=table: one table, with paired differences and figures, from finished runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from hatllm.compose import Compose, checked
from hatllm.config import Config
from hatllm.many.experiment_cells import plan_cells
from hatllm.runs.folder import finished_config, load_config
from hatllm.runs.name import of_any_seed, settings_by_name
from hatllm.runs.run_files import RUN_FILE, read_identity


def table(config: Config, compose: Compose) -> Path:
    """Compare finished runs: an experiment's, or all on one data set under ``task.run_folder``.

    Args:
        config: Names the experiment, or the folder of runs (null: ``output_root``) and the data.
        compose: Gives the config of an experiment's cell from its overrides.

    Returns:
        Folder of the table.

    Raises:
        ValueError: If there is no finished run, or they do not belong in one table.
    """
    if config.experiment.cells or config.experiment.grid is not None:
        cells = plan_cells(config, compose, to_run=False)
        from hatllm.many.experiment_tables import write_results_of  # late: wrong cells come first

        return write_results_of(config, cells)
    return _write(config, _finished_runs(config))


def _finished_runs(config: Config) -> list[Path]:
    """The folders of all finished runs on the data.

    Raises:
        ValueError: If there is none.
    """
    root = Path(config.task.run_folder or config.output_root).expanduser()
    data_of = {
        path.parent: read_identity(path.parent, "data")["data"]
        for path in sorted(root.glob(f"*/{RUN_FILE}"))
    }
    if not data_of:
        raise ValueError(f"task.run_folder={str(root)!r} holds no finished run")
    folders = [folder for folder, data in data_of.items() if data == config.data.name]
    if not folders:
        raise ValueError(
            f"data={config.data.name!r}: task.run_folder={str(root)!r} holds runs on "
            f"{', '.join(sorted(set(data_of.values())))} only; give data=..."
        )
    return folders


def _write(config: Config, folders: Sequence[Path]) -> Path:
    from hatllm.many.experiment_tables import show  # late: a missing run is said at once
    from hatllm.tables.alike_runs import cells_of
    from hatllm.tables.comparison import compare_runs

    console = Console()
    names = _names(folders)
    comparison = compare_runs(
        folders, config.experiment.reference, names, config.metrics.cut_offs, config.data.name
    )
    for warning in comparison.warnings:
        console.print(f"warning: {warning}", markup=False)
    target = Path(config.experiment.folder or Path(config.output_root) / "table").expanduser()
    show(comparison, cells_of(folders, names), target)
    console.print(f"table and figures: {target}")
    return target


def _names(folders: Sequence[Path]) -> list[str]:
    """What to call each run: its label, and where runs of one label differ in settings, these."""
    labels = [str(read_identity(folder, "label")["label"]) for folder in folders]
    settings = [_flat_settings(folder) for folder in folders]
    names = []
    for label, values in zip(labels, settings, strict=True):
        alike = [other for name, other in zip(labels, settings, strict=True) if name == label]
        keys = sorted(set().union(*alike))
        differing = [key for key in keys if any(o.get(key) != alike[0].get(key) for o in alike)]
        names.append(" ".join([label, *(f"{key}={values.get(key)}" for key in differing)]))
    return names


def _flat_settings(folder: Path) -> dict[str, Any]:
    """Every setting that can change a finished run's numbers, of any seed, by its dotted name."""

    def find(other: str) -> Config | None:
        # Runs that were moved together still lie beside each other.
        return finished_config(Path(other)) or finished_config(folder.parent / Path(other).name)

    return settings_by_name(of_any_seed(checked(load_config(folder)), find))
