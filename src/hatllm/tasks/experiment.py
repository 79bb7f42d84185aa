"""task=experiment: run every cell of an experiment in a process of its own, then make its table.

A finished cell is not run again, a broken one resumes, so the same command always goes on where it
stopped.
"""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from hatllm.config import Config
from hatllm.tasks.assemble import check_hardware
from hatllm.tasks.attention import write_attention_of
from hatllm.tasks.run_folder import is_finished, run_folder
from hatllm.tasks.table import write_table_of

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
        ValueError: If there are no cells, a cell's settings are wrong, or a cell failed.
    """
    cells = plan_cells(config, compose)
    for number, (label, seed, overrides, folder) in enumerate(cells, start=1):
        if is_finished(folder):
            console.print(f"cell {number}/{len(cells)} {label} seed {seed}: finished already")
            continue
        console.rule(f"cell {number}/{len(cells)}: {label}, seed {seed}")
        done = subprocess.run([sys.executable, str(script), *overrides], check=False)
        if done.returncode == 130:
            raise KeyboardInterrupt
        if done.returncode != 0:
            raise ValueError(
                f"experiment.cells.{label} seed {seed} failed with exit code {done.returncode}; "
                "its message is above. The same command goes on with this cell"
            )
    if config.task.attention:
        write_attention_of(config, [(label, folder) for label, _, _, folder in cells])
    return write_table_of(config, [folder for *_, folder in cells])


def plan_cells(
    config: Config, compose: Callable[[list[str]], Config]
) -> list[tuple[str, int, list[str], Path]]:
    """Label, seed, overrides and run folder of every cell.

    Raises:
        ValueError: If there are no cells or a cell's settings are wrong.
    """
    experiment = config.experiment
    if not experiment.cells:
        raise ValueError("experiment.cells={} is empty; choose one, such as experiment=demo")
    cells, seen = [], set()
    for seed in experiment.seeds:
        for label, overrides in experiment.cells.items():
            words = ["task=train", *overrides, f"seed={seed}", f"experiment.cell={label}"]
            cell = compose(words)
            check_hardware(cell)
            # What has no randomness gives one run, whatever the seed.
            untuned = cell.model.kind == "llm" and cell.trainer.max_steps == 0
            if untuned or not cell.model.is_seeded:
                words = [w for w in words if not w.startswith("seed=")]
                words.append(f"seed={experiment.seeds[0]}")
                cell = compose(words)
            folder = run_folder(cell)
            if folder not in seen:
                seen.add(folder)
                cells.append((label, cell.seed, words, folder))
    return cells
