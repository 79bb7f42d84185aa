"""task=table: one table, with paired differences and figures, from finished runs."""

import json
from pathlib import Path

from rich.console import Console

from hatllm.config import Config
from hatllm.report.comparison import compare_runs, example_users
from hatllm.report.comparison_table import rich_table, write_comparison
from hatllm.tasks.run_folder import is_finished


def table(config: Config) -> Path:
    """Compare the finished runs on one data set under ``task.run_folder`` (null: ``output_root``).

    Returns:
        Folder of the table.

    Raises:
        ValueError: If there is no finished run on ``data``, or they answered different examples.
    """
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
    return write_table_of(config, folders)


def write_table_of(config: Config, folders: list[Path]) -> Path:
    """Write and print the comparison of these runs.

    Args:
        config: Names the reference cell and the folder.
        folders: Finished runs, in the order of the table.

    Returns:
        Folder of the table.
    """
    missing = [folder for folder in folders if not is_finished(folder)]
    if missing:
        raise ValueError(f"{missing[0]} holds no finished run")
    console = Console()
    comparison = compare_runs(folders, config.experiment.reference)
    target = Path(config.experiment.folder or Path(config.output_root) / "table").expanduser()
    write_comparison(comparison, target)
    console.print(rich_table(comparison))
    labels = [row.label for row in comparison.rows]
    text = example_users(folders, labels, 3)
    (target / "examples.md").write_text(text)
    console.print(text, markup=False, highlight=False)
    console.print(f"table and figures: {target}")
    return target
