"""task=experiment: run every cell of an experiment in a process of its own, then make its table.

A finished cell is not run again, a broken one resumes, so the same command always goes on where it
stopped.
"""

import sys
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from hatllm.config import Config
from hatllm.tasks.attention import write_attention_of
from hatllm.tasks.cells import check_same_code, plan_cells
from hatllm.tasks.child import INTERRUPTED, run_when_free
from hatllm.tasks.results import write_results_of
from hatllm.tasks.run_folder import is_finished

console = Console()


def run_experiment(config: Config, compose: Callable[[list[str]], Config], script: Path) -> Path:
    """Run the cells that are not finished, then write table and figures.

    Args:
        config: The experiment.
        compose: Gives the config of a cell from its overrides; every cell is checked before the
            first one starts.
        script: ``run.py``.

    Returns:
        Folder of the table.

    Raises:
        ValueError: If there are no cells, a cell's settings are wrong, finished cells were made by
            other code, or a cell failed.
    """
    cells = plan_cells(config, compose)
    check_same_code(cells)
    for number, cell in enumerate(cells, start=1):
        what = f"cell {number}/{len(cells)}: {cell.label} on {cell.data}, seed {cell.seed}"
        if is_finished(cell.folder):
            console.print(f"{what}: finished already")
            continue
        console.rule(what)
        # A cell lives on where only its experiment was killed.
        code = run_when_free([sys.executable, str(script), *cell.words], cell.folder)
        if code == INTERRUPTED:
            raise KeyboardInterrupt
        if code != 0:
            raise ValueError(
                f"experiment.cells.{cell.label} seed {cell.seed} failed with exit code "
                f"{code}; its message is above. The same command goes on with this cell"
            )
    if config.task.attention:
        write_attention_of(config, [(cell.label, cell.folder) for cell in cells])
    return write_results_of(config, cells)
