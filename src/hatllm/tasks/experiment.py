"""task=experiment: run every cell of an experiment in a process of its own, then make its table.

A finished cell is not run again, a broken one resumes, so the same command always goes on where it
stopped. A cell that fails is tried once more and stops no other.
"""

import sys
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from hatllm.config import Config
from hatllm.many.cell_runner import Cell
from hatllm.many.cells import PlannedCell, check_same_code, chosen_cells, plan_cells
from hatllm.many.experiment_tables import write_results_of
from hatllm.runs.begin import check_data_unchanged
from hatllm.runs.folder import is_finished
from hatllm.tables.published import read_published
from hatllm.tasks.attention import write_attention_of

console = Console()


def run_experiment(config: Config, compose: Callable[[list[str]], Config], script: Path) -> Path:
    """Run the cells that are not finished, then write table and figures of those that are.

    Cells that another process runs come last, and with them those that need their runs. Cells that
    failed are named at the end, with exit code 1.

    Args:
        config: The experiment.
        compose: Gives the config of a cell from its overrides; every cell is checked before the
            first one starts.
        script: ``run.py``.

    Returns:
        Folder of the table.

    Raises:
        ValueError: If there are no cells, a cell's settings are wrong, finished cells were made by
            other code or of data that have changed since, attention is asked for on several data
            sets, or none could be finished.
    """
    cells = plan_cells(config, compose)
    check_same_code(cells)
    if config.experiment.published is not None:
        read_published(Path(config.experiment.published))  # now, not after hours of runs
    datasets = list(dict.fromkeys(cell.data for cell in cells))
    if config.task.attention and len(datasets) > 1:
        raise ValueError(
            f"task.attention=true is for one data set, got {', '.join(datasets)}: leave it out, "
            "and measure the finished runs with task=attention data=NAME"
        )
    chosen = chosen_cells(config, cells)
    for cell in chosen:
        check_data_unchanged(compose(list(cell.words)), cell.folder)
    num_failed = _run_all(config, chosen, script)
    folder = write_results_of(config, cells)
    if num_failed:
        again = "the same command runs them again and nothing else"
        print(f"{num_failed} of {len(chosen)} cells failed; {again}", file=sys.stderr)
    if config.task.attention:
        finished = [cell for cell in cells if is_finished(cell.folder)]
        write_attention_of(config, [(cell.label, cell.folder) for cell in finished])
    if num_failed:
        sys.exit(1)
    return folder


def _run_all(config: Config, chosen: list[PlannedCell], script: Path) -> int:
    """Run the cells, name those that failed, and count these."""
    names = [f"{planned.label} on {planned.data}, seed {planned.seed}" for planned in chosen]
    cells = [
        Cell(number, planned.words, _command(config, planned, script), planned.folder)
        for number, planned in enumerate(chosen)
    ]
    later: list[Cell] = []
    for cell in cells:
        console.rule(f"cell {cell.number + 1}/{len(cells)}: {names[cell.number]}")
        if _needs_one_of(later, cell):
            console.print("later: it needs a run that another process makes")
            later.append(cell)
            continue
        cell.run(force=False, wait=False)
        if cell.is_busy:
            later.append(cell)
    for cell in later:
        console.rule(f"cell {cell.number + 1}/{len(cells)}: {names[cell.number]}")
        cell.run(force=False, wait=True)
    failed = [cell for cell in cells if cell.failure is not None]
    for cell in failed:
        print(f"failed: {names[cell.number]}: {cell.failure}", file=sys.stderr)
    return len(failed)


def _needs_one_of(others: list[Cell], cell: Cell) -> bool:
    """Whether a setting of the cell names the folder of one of the others."""
    values = {word.partition("=")[2] for word in cell.words}
    return any(str(other.folder) in values for other in others)


def _command(config: Config, planned: PlannedCell, script: Path) -> list[str]:
    words = list(planned.words)
    if config.logger.group is None:  # one W&B group, unless the command names another
        words.append(f"logger.group={config.experiment.name}")
    return [sys.executable, str(script), *words]
