"""task=experiment: run every cell of an experiment in a process of its own, then make its table.

A finished cell is not run again, a broken one resumes, so the same command always goes on where it
stopped. A cell that fails is tried once more and stops no other.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from hatllm.compose import Compose
from hatllm.config import Config
from hatllm.many.cell_runner import finish, refuse_stale, run_cells
from hatllm.many.experiment_cells import check_same_code, chosen_cells, plan_cells
from hatllm.runs.cell import Cell


def run_experiment(config: Config, compose: Compose, script: Path) -> None:
    """Run the cells that are not finished, then write table and figures of those that are.

    Cells that another process runs come last, and with them those that need their runs. Cells that
    failed are named at the end, with exit code 1. `task.force` runs finished cells too.

    Args:
        config: The experiment.
        compose: Gives the config of a cell from its overrides; every cell is checked before the
            first one starts.
        script: ``run.py``.

    Raises:
        ValueError: If there are no cells, a cell's settings are wrong, finished cells were made by
            other code or of data that have changed since, attention is asked for on several data
            sets, or none could be finished.
    """
    _check_attention(config, config.experiment.datasets)  # before minutes of composing
    cells = plan_cells(config, compose)
    chosen = chosen_cells(config, cells)
    check_same_code(cells, chosen if config.task.force else [])
    _check_ends(config, cells)
    for cell in chosen:
        refuse_stale(cell)
    run_cells(chosen, script)
    if finish(chosen, script, lambda: _write(config, cells)):
        sys.exit(1)


def _check_ends(config: Config, cells: list[Cell]) -> None:
    """Refuse now, not after hours of runs, what their table or figure could not be made with."""
    if config.experiment.published is not None:
        from hatllm.tables.published import read_published

        read_published(Path(config.experiment.published))
    _check_attention(config, [cell.data for cell in cells])


def _check_attention(config: Config, every: Sequence[str]) -> None:
    datasets = list(dict.fromkeys(every))
    if config.task.attention and len(datasets) > 1:
        raise ValueError(
            f"task.attention=true is for one data set, got {', '.join(datasets)}: leave it out, "
            "and measure the finished runs with task=attention data=NAME"
        )


def _write(config: Config, cells: list[Cell]) -> None:
    from hatllm.many.experiment_tables import write_results_of  # late: the runs come first

    write_results_of(config, cells)
    if config.task.attention:
        from hatllm.tasks.attention import write_attention_of

        finished = [cell for cell in cells if cell.is_finished]
        write_attention_of(config, [(cell.label, cell.folder) for cell in finished])
