"""task=experiment: run every cell of an experiment in a process of its own, then make its table.

A finished cell is not run again, a broken one resumes, so the same command always goes on where it
stopped. A cell that fails is tried once more and stops no other.
"""

import sys
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from hatllm.config import Config
from hatllm.report.results_table import read_published
from hatllm.tasks.attention import write_attention_of
from hatllm.tasks.cells import PlannedCell, check_same_code, chosen_cells, plan_cells
from hatllm.tasks.child import INTERRUPTED, ending, run_retried
from hatllm.tasks.results import write_results_of
from hatllm.tasks.run_folder import is_finished
from hatllm.tasks.run_lock import BUSY, run_lock

console = Console()


def run_experiment(config: Config, compose: Callable[[list[str]], Config], script: Path) -> Path:
    """Run the cells that are not finished, then write table and figures of those that are.

    Cells that another process runs come last. Cells that failed are named at the end, with exit
    code 1.

    Args:
        config: The experiment.
        compose: Gives the config of a cell from its overrides; every cell is checked before the
            first one starts.
        script: ``run.py``.

    Returns:
        Folder of the table.

    Raises:
        ValueError: If there are no cells, a cell's settings are wrong, finished cells were made by
            other code, or none could be finished.
    """
    cells = plan_cells(config, compose)
    check_same_code(cells)
    if config.experiment.published is not None:
        read_published(Path(config.experiment.published))  # now, not after hours of runs
    failed: list[tuple[PlannedCell, str]] = []
    busy = []
    chosen = chosen_cells(config, cells)
    for number, cell in enumerate(chosen, start=1):
        what = f"cell {number}/{len(chosen)}: {_name(cell)}"
        if is_finished(cell.folder):
            console.print(f"{what}: finished already")
            continue
        console.rule(what)
        code = _run(config, cell, script)
        if code == BUSY:
            busy.append(cell)
        elif code != 0:
            failed.append((cell, ending(code)))
    for cell in busy:
        console.print(f"waiting for the process that runs {_name(cell)}")
        with run_lock(cell.folder):
            pass
        if not is_finished(cell.folder) and (code := _run(config, cell, script)) != 0:
            failed.append((cell, ending(code)))
    for cell, why in failed:
        print(f"failed: {_name(cell)}: {why}; its message is above", file=sys.stderr)
    if config.task.attention:
        finished = [cell for cell in cells if is_finished(cell.folder)]
        write_attention_of(config, [(cell.label, cell.folder) for cell in finished])
    folder = write_results_of(config, cells)
    if failed:
        again = "the same command runs them again and nothing else"
        print(f"{len(failed)} of {len(chosen)} cells failed; {again}", file=sys.stderr)
        sys.exit(1)
    return folder


def _run(config: Config, cell: PlannedCell, script: Path) -> int:
    words = list(cell.words)
    if config.logger.group is None:  # one W&B group, unless the command names another
        words.append(f"logger.group={config.experiment.name}")
    code = run_retried([sys.executable, str(script), *words])
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    return code


def _name(cell: PlannedCell) -> str:
    return f"{cell.label} on {cell.data}, seed {cell.seed}"
