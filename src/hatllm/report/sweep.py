"""The cells of a sweep as tables and figures: one row a cell, then means over seeds."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl
from omegaconf import OmegaConf

from hatllm.config import SWEEP_METRICS, SweepConfig
from hatllm.report.comparison import compare_runs, is_seeded
from hatllm.report.comparison_plot import draw_comparison
from hatllm.report.evaluation import uniform_guess
from hatllm.report.figures import save_figure
from hatllm.report.run_report import arrow, format_value, markdown_table
from hatllm.report.sweep_plots import heat_map, lines
from hatllm.whole_files import write_csv, write_text


def write_sweep(
    settings: Sequence[Mapping[str, str]],
    folders: Sequence[Path],
    config: SweepConfig,
    target: Path,
) -> str:
    """Write ``cells.csv``, ``table.csv``, ``table.md`` and the figures of a sweep.

    Args:
        settings: What differs between the cells, the seed aside: setting -> value, for each cell.
        folders: The finished run of each cell.
        config: The objective and the metrics to draw.
        target: Folder, made if it is not there.

    Returns:
        The text of ``table.md``.
    """
    target.mkdir(parents=True, exist_ok=True)
    for picture in target.glob("*.png"):
        picture.unlink()  # of an earlier run of the same sweep, with fewer cells
    cells = cell_table(settings, folders)
    names = list(settings[0])
    table = over_seeds(cells, names, config)
    write_csv(target / "cells.csv", cells)
    write_csv(target / "table.csv", table)
    guesses = dict.fromkeys(guess for folder in folders if (guess := uniform_guess(folder)))
    text = _markdown(table, names, config, list(guesses))
    figures, without = _draw(cells, table, names, folders, config, target)
    text += "".join(f"\n![{path.stem}]({path.name})\n" for path in figures)
    text += "" if without is None else f"\nNo figure: {without}.\n"
    codes = {code for folder in folders if (code := _code_hash(folder)) is not None}
    if len(codes) > 1:
        text += (
            f"\nWarning: runs of {len(codes)} versions of the code: {', '.join(sorted(codes))}\n"
        )
    write_text(target / "table.md", text)
    return text


def _code_hash(folder: Path) -> str | None:
    path = folder / "environment.json"
    found = json.loads(path.read_text()).get("code_hash") if path.exists() else None
    return None if found is None else str(found)


def cell_table(settings: Sequence[Mapping[str, str]], folders: Sequence[Path]) -> pl.DataFrame:
    """One row a cell: cell (its number), the settings, seed, seed_counts, run, every metric.

    Args:
        settings: setting -> value, for each cell; a column of numbers becomes one.
        folders: The finished run of each cell.

    Returns:
        The rows, in the order of the cells; seed_counts: whether another seed could have given
        another result; run: the name of its folder; a metric that a run lacks is null.
    """
    rows = []
    for number, (values, folder) in enumerate(zip(settings, folders, strict=True), start=1):
        metrics = json.loads((folder / "metrics.json").read_text())
        seed = json.loads((folder / "run.json").read_text())["seed"]
        numbers = {name: _metric(metrics, name) for name in SWEEP_METRICS}
        can_change = is_seeded(OmegaConf.load(folder / "config.yaml"))
        cell = {"cell": number, **values, "seed": seed, "seed_counts": can_change}
        rows.append({**cell, "run": folder.name, **numbers})
    types = dict.fromkeys(SWEEP_METRICS, pl.Float64())
    table = pl.DataFrame(rows, schema_overrides=types, infer_schema_length=None)
    return table.with_columns(_numbers(table[name]) for name in settings[0])


def over_seeds(cells: pl.DataFrame, settings: Sequence[str], config: SweepConfig) -> pl.DataFrame:
    """One row a combination of settings: number of seeds, and every metric's mean and deviation.

    Args:
        cells: Output of `cell_table`.
        settings: Its columns of settings.
        config: A search is ordered by its objective, best first; a grid by its settings.

    Returns:
        ``METRIC`` holds the mean, ``METRIC_std`` the standard deviation (null for one seed).
    """
    summary = [
        pl.len().alias("num_seeds"),
        *(pl.col(name).mean() for name in SWEEP_METRICS),
        *(pl.col(name).std().alias(f"{name}_std") for name in SWEEP_METRICS),
    ]
    cells = cells.unique("run", maintain_order=True)  # a search may propose a run twice
    # What no seed can change (popularity, an untuned backbone) is one run under every seed.
    is_first = pl.struct(*settings, "seed_counts").is_first_distinct()
    cells = cells.filter(pl.col("seed_counts") | is_first)
    if not settings:
        return cells.select(summary)
    table = cells.group_by(settings, maintain_order=True).agg(summary)
    if config.is_search:
        return table.sort(config.objective, descending=not _is_low_better(config.objective))
    numeric = [name for name in settings if table[name].dtype.is_numeric()]
    return table.sort(numeric, maintain_order=True) if numeric else table


def _draw(
    cells: pl.DataFrame,
    table: pl.DataFrame,
    settings: Sequence[str],
    folders: Sequence[Path],
    config: SweepConfig,
    target: Path,
) -> tuple[list[Path], str | None]:
    """The figures, or why there is none."""
    numeric = [name for name in settings if table[name].dtype.is_numeric()]
    other = [name for name in settings if name not in numeric]
    shown = [name for name in config.metrics if table[name].null_count() < len(table)]
    if config.is_search:
        path = target / "search.png"
        return [lines(cells, "cell", config.objective, None, None, path)], None
    match len(numeric), len(other):
        case (2, 0):
            return [
                heat_map(table, numeric[0], numeric[1], name, target / _file(name))
                for name in shown
            ], None
        case (1, 0 | 1):
            group = other[0] if other else None
            points = table.with_columns(_evenly(table[numeric[0]]))
            return [
                lines(points, numeric[0], name, f"{name}_std", group, target / _file(name))
                for name in shown
            ], None
        case (0, _):
            try:
                comparison = compare_runs(list(folders), None)
            except ValueError as error:  # other data, or one label for two settings
                return [], str(error)
            return [save_figure(draw_comparison(comparison), target / "comparison.png")], None
    return [], f"{len(settings)} settings vary; at most two numbers, or a number and a name, do"


def _markdown(
    table: pl.DataFrame, settings: Sequence[str], config: SweepConfig, guesses: Sequence[str]
) -> str:
    metrics = list(dict.fromkeys([config.objective, *config.metrics]))
    rows = [
        [str(row[name]) for name in settings]
        + [str(row["num_seeds"])]
        + [format_value(name, row[name], row[f"{name}_std"]) for name in metrics]
        for row in table.to_dicts()
    ]
    text = markdown_table([*settings, "seeds", *map(arrow, metrics)], rows)
    nll = "; ".join(["NLL in nats a title", *guesses])
    text += f"\n\nMean ± standard deviation over seeds. {nll}.\n"
    best = table.drop_nulls(config.objective).sort(
        config.objective, descending=not _is_low_better(config.objective)
    )
    if settings and len(best):
        words = " ".join(f"{name}={best[name][0]}" for name in settings)
        value = format_value(config.objective, best[config.objective][0])
        text += f"Best {config.objective}: {value} with `{words}`.\n"
    return text


def _metric(metrics: Mapping[str, Mapping[str, float]], name: str) -> float | None:
    split, metric = name.split("/")
    return metrics[split].get(metric)


def _numbers(values: pl.Series) -> pl.Series:
    """The column as integers or floats where all its words are such."""
    for kind in (pl.Int64, pl.Float64):
        cast = values.cast(kind, strict=False)
        if cast.null_count() == 0:
            return cast
    return values


def _evenly(values: pl.Series) -> pl.Series:
    """Numbers of several decades (learning rates) as words, which are drawn evenly spaced."""
    low, high = float(values.min()), float(values.max())  # type: ignore[arg-type]
    if 0 < low * 100 <= high:
        return pl.Series(values.name, [f"{value:g}" for value in values])
    return values


def _is_low_better(metric: str) -> bool:
    return metric.endswith("NLL")


def _file(metric: str) -> str:
    return metric.replace("/", "_") + ".png"
