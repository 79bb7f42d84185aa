"""task=table: one table, with paired differences and figures, from finished runs."""

import json
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from hatllm.config import Config
from hatllm.report.comparison import compare_runs, example_users
from hatllm.report.comparison_table import rich_table, write_comparison
from hatllm.report.results import refuse_other_origins
from hatllm.tasks.results import results
from hatllm.whole_files import write_text


def table(config: Config, compose: Callable[[list[str]], Config]) -> Path:
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
        return results(config, compose)
    root = Path(config.task.run_folder or config.output_root).expanduser()
    data_of = {
        path.parent: json.loads(path.read_text())["data"]
        for path in sorted(root.glob("*/run.json"))
    }
    if not data_of:
        raise ValueError(f"task.run_folder={str(root)!r} holds no finished run")
    folders = [folder for folder, data in data_of.items() if data == config.data.name]
    if not folders:
        raise ValueError(
            f"data={config.data.name!r}: task.run_folder={str(root)!r} holds runs on "
            f"{', '.join(sorted(set(data_of.values())))} only; give data=..."
        )
    console = Console()
    for warning in refuse_other_origins(folders):
        console.print(f"warning: {warning}", markup=False)
    comparison = compare_runs(folders, config.experiment.reference)
    target = Path(config.experiment.folder or Path(config.output_root) / "table").expanduser()
    write_comparison(comparison, target)
    console.print(rich_table(comparison))
    text = example_users(folders, [row.label for row in comparison.rows], 3)
    write_text(target / "examples.md", text)
    console.print(text, markup=False, highlight=False)
    console.print(f"table and figures: {target}")
    return target
