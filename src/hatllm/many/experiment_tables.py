"""Tables and figures of an experiment from its finished cells; nothing is run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
from omegaconf import OmegaConf
from rich.console import Console

from hatllm.config import Config
from hatllm.figures.comparison_plot import bars
from hatllm.figures.sweep_plots import heat_map, lines
from hatllm.files import write_csv, write_text
from hatllm.runs.cell import Cell
from hatllm.runs.folder import load_config
from hatllm.runs.run_files import hardware_text, read_environment, read_manifest
from hatllm.tables.comparison import Comparison, compare
from hatllm.tables.example_users import example_users
from hatllm.tables.published import read_published
from hatllm.tables.views import (
    EFFICIENCY_NOTE,
    efficiency_frame,
    frame_markdown,
)
from hatllm.tables.writers import (
    comparison_frame,
    latex,
    markdown,
    rich_differences,
    rich_table,
    write_comparison,
    write_slices,
)

console = Console()


def write_results_of(config: Config, cells: list[Cell]) -> Path:
    """Write ``results.*``, ``slices.*``, the experiment's views, and each data set's table.

    Args:
        config: The experiment.
        cells: All of its cells; those without a finished run are shown as missing.

    Returns:
        Folder of the tables; each data set's comparison lies in it, or in a folder of its own
        below where the experiment names data sets.

    Raises:
        ValueError: If no cell of a data set is finished, or finished ones do not belong together.
    """
    experiment = config.experiment
    target = Path(experiment.folder or Path(config.output_root) / "table").expanduser()
    published = None if experiment.published is None else read_published(Path(experiment.published))
    finished = _begun(config, cells)
    cut_offs = config.metrics.cut_offs
    found = [
        compare(runs, experiment.reference, experiment.compared_with, cut_offs, data)
        for data, runs in finished.items()
    ]
    target.mkdir(parents=True, exist_ok=True)
    for block, runs in zip(found, finished.values(), strict=True):
        _warn(block)
        if experiment.compared_with:  # beside it all arms against the one reference
            block = compare(runs, experiment.reference, {}, cut_offs, block.data)
        below = target / str(block.data) if experiment.datasets else target
        show(block, [run for run in runs if run.is_finished], below)
    facts = _facts(config, cells, finished)
    write_text(target / "results.md", markdown(found, published, facts))
    write_text(target / "results.tex", latex(found, published))
    write_csv(target / "results.csv", comparison_frame(found))
    write_slices(found, target)
    _write_views(config, cells, finished, found, target)
    console.print(f"tables and figures: {target}")
    return target


def _begun(config: Config, cells: list[Cell]) -> dict[str, list[Cell]]:
    """Data set -> its cells, of which at least one is finished.

    Raises:
        ValueError: If there is no such data set.
    """
    by_data: dict[str, list[Cell]] = {}
    for cell in cells:
        by_data.setdefault(cell.data, []).append(cell)
    begun = {data: runs for data, runs in by_data.items() if any(run.is_finished for run in runs)}
    if not begun:
        raise ValueError(
            f"experiment={config.experiment.name}: none of its {len(cells)} runs is finished in "
            f"{config.output_root!r}; run them with task=experiment, or give output_root=..."
        )
    return begun


def _warn(block: Comparison) -> None:
    for warning in block.warnings:
        console.print(f"warning: {block.data}: {warning}", markup=False)
    for arm in block.arms:
        if len(arm.seeds) < arm.num_planned:
            console.print(f"{block.data}: {arm.label}: {arm.seeds_text} runs finished")


def show(comparison: Comparison, runs: Sequence[Cell], target: Path) -> None:
    """Write and print one data set's comparison and some example users.

    Args:
        comparison: Of the runs, and of others that are not finished.
        runs: The finished ones.
        target: Folder, made if it is not there.
    """
    write_comparison(comparison, target)
    console.print(rich_table(comparison))
    if (differences := rich_differences(comparison)) is not None:
        console.print(differences)
    text = example_users(runs, list(dict.fromkeys(run.label for run in runs)))
    write_text(target / "examples.md", text)
    console.print(text, markup=False, highlight=False)


def _facts(config: Config, cells: list[Cell], finished: dict[str, list[Cell]]) -> list[str]:
    """What a reader must know to judge and repeat the table."""
    folders = [run.folder for runs in finished.values() for run in runs if run.is_finished]
    environments = [read_environment(folder) for folder in folders]
    hardware = [hardware_text(e) for e in environments if "hardware" in e]
    hashes = [str(e.get("data_hash", "unknown"))[:12] for e in environments]
    models = [str(load_config(folder).model.name) for folder in folders]
    codes = [str(e.get("code_hash", "unknown")) for e in environments]
    commits = [str(e.get("commit", "unknown")) for e in environments]
    missing = dict.fromkeys(cell.data for cell in cells if cell.data not in finished)
    return [
        f"experiment {config.experiment.name}, scale {config.scale}, models {_listed(models)}",
        f"{len(folders)} of {len(cells)} runs finished, seeds {_listed(config.experiment.seeds)}",
        f"hardware: {_listed(hardware)}",
        f"commit: {_listed(commits)}; code hash: {_listed(codes)}; data hash: {_listed(hashes)}",
        *(f"no finished run on {data}" for data in missing),
    ]


def _write_views(
    config: Config,
    cells: list[Cell],
    finished: dict[str, list[Cell]],
    found: list[Comparison],
    target: Path,
) -> None:
    frame = comparison_frame(found)
    for view in config.experiment.views:
        match view:
            case "bars":
                pairs = config.experiment.compared_with
                ndcg = found[0].tested_metrics[0]
                note = f"{ndcg} ± standard error over users"
                note += "\norange: an arm that the table compares with a blue one" if pairs else ""
                bars(frame, ndcg, pairs, note, target / "bars.png")
            case "grid":
                _write_grid(config, cells, frame, found[0].tested_metrics, target)
            case "efficiency":
                frames = [
                    efficiency_frame(data, runs, _rows_trained(runs))
                    for data, runs in finished.items()
                ]
                efficiency = pl.concat(frames, how="vertical_relaxed")
                write_csv(target / "efficiency.csv", efficiency)
                text = f"{frame_markdown(efficiency)}\n\n{EFFICIENCY_NOTE}\n"
                write_text(target / "efficiency.md", text)


def _write_grid(
    config: Config, cells: list[Cell], frame: pl.DataFrame, metrics: Sequence[str], target: Path
) -> None:
    """Heat maps and lines of the grid's cells, one pair a data set and metric."""
    places = {
        (cell.data, cell.label): (cell.config.mask.split_layer, cell.config.mask.num_cross_layers)
        for cell in cells
        if cell.config is not None and cell.label not in config.experiment.cells
    }
    grid = pl.DataFrame(
        [(*name, *place) for name, place in places.items()],
        schema=["data", "label", "split_layer", "num_cross_layers"],
        orient="row",
    ).join(frame, on=["data", "label"], how="inner")
    for (data,), table in grid.group_by("data", maintain_order=True):
        write_csv(target / f"grid-{data}.csv", table)
        for metric in metrics:
            if table[metric].is_null().all():
                continue  # no cell of the grid is finished
            name = f"{data}-{metric.replace('@', '')}.png"
            heat_map(table, "split_layer", "num_cross_layers", metric, target / f"grid-{name}")
            lines(table, "split_layer", metric, f"{metric}_se", "num_cross_layers",
                  target / f"lines-{name}")  # fmt: skip


def _rows_trained(runs: list[Cell]) -> dict[Path, int]:
    """Rows over all epochs of the LLM runs; not known of runs that may stop early."""
    rows = {}
    for run in runs:
        if not run.is_finished:
            continue
        saved = OmegaConf.to_object(load_config(run.folder))
        assert isinstance(saved, Config)
        stops_early = saved.trainer.early_stopping_patience is not None
        if saved.model.kind != "llm" or saved.model.tuning == "none" or stops_early:
            continue
        manifest = read_manifest(run.folder)
        steps = saved.trainer.num_steps(manifest["rows"]["train"]["after_sampling"])
        rows[run.folder] = steps * saved.trainer.global_batch_size
    return rows


def _listed(values: list[Any]) -> str:
    return ", ".join(dict.fromkeys(map(str, values))) or "unknown"
