"""The numbers of a sweep: one row a cell, then means over seeds with their errors."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl

from hatllm.config import SweepConfig, cut_off_of
from hatllm.metrics.best_step import is_lower_better
from hatllm.metrics.from_predictions import NLL_COLUMNS, example_metrics
from hatllm.runs.run_files import (
    PREDICTIONS,
    read_identity,
    read_metrics,
    read_predictions,
    read_settings,
)
from hatllm.tables.alike_runs import is_seeded, top_k_of
from hatllm.tables.numbers import columns_of, cut_offs_of, over_seeds, ranking_metrics
from hatllm.tables.paired_arms import mean_of, numbers_of


def metric_names(folders: Sequence[Path], config: SweepConfig) -> list[str]:
    """The metrics of a sweep: those it is about, then whatever its runs have of the usual ones."""
    names = [config.objective, *config.metrics]
    for split in PREDICTIONS:
        for folder in folders:
            found = read_metrics(folder)[split]
            usual = (*ranking_metrics(cut_offs_of(found)), *NLL_COLUMNS)
            names += [f"{split}/{name}" for name in usual]
    return list(dict.fromkeys(names))


def cell_table(
    settings: Sequence[Mapping[str, str]], folders: Sequence[Path], metrics: Sequence[str]
) -> pl.DataFrame:
    """One row a cell: cell (its number), the settings, seed, seed_counts, run, every metric.

    Args:
        settings: setting -> value, for each cell; a column of numbers becomes one.
        folders: The finished run of each cell.
        metrics: Output of `metric_names`.

    Returns:
        The rows, in the order of the cells; seed_counts: whether another seed could have given
        another result; run: the name of its folder; a metric that a run lacks is null.
    """
    rows = []
    for number, (values, folder) in enumerate(zip(settings, folders, strict=True), start=1):
        numbers = {name: _value(folder, name) for name in metrics}
        can_change = is_seeded(read_settings(folder))
        seed = read_identity(folder, "seed")["seed"]
        cell = {"cell": number, **values, "seed": seed, "seed_counts": can_change}
        rows.append({**cell, "run": folder.name, **numbers})
    types = dict.fromkeys(metrics, pl.Float64())
    table = pl.DataFrame(rows, schema_overrides=types, infer_schema_length=None)
    return table.with_columns(_numeric(table[name]) for name in settings[0])


def seeds_table(
    cells: pl.DataFrame,
    settings: Sequence[str],
    folders: Sequence[Path],
    metrics: Sequence[str],
    config: SweepConfig,
) -> pl.DataFrame:
    """One row a combination of settings: number of seeds, and every metric's mean and errors.

    Args:
        cells: Output of `cell_table`.
        settings: Its columns of settings.
        folders: The finished runs.
        metrics: Output of `metric_names`.
        config: A search is ordered by its objective, best first; a grid by its settings.

    Returns:
        ``METRIC`` holds the mean over seeds, ``METRIC_se`` its standard error over users,
        ``METRIC_std`` the standard deviation over seeds (null for one seed); ``SPLIT/num_users``.
    """
    cells = cells.unique("run", maintain_order=True)  # a search may propose a run twice
    # What no seed can change (popularity, an untuned backbone) is one run under every seed.
    is_first = pl.struct(*settings, "seed_counts").is_first_distinct()
    cells = cells.filter(pl.col("seed_counts") | is_first)
    groups = cells.partition_by(settings, maintain_order=True) if settings else [cells]
    by_name = {folder.name: folder for folder in folders}
    rows = []
    for group in groups:
        row = {name: group[name][0] for name in settings} | {"num_seeds": len(group)}
        rows.append(row | _numbers(group, [by_name[run] for run in group["run"]], metrics))
    table = pl.DataFrame(rows, infer_schema_length=None)
    if config.is_search:
        return table.sort(config.objective, descending=not is_lower_better(config.objective))
    numeric = [name for name in settings if table[name].dtype.is_numeric()]
    return table.sort(numeric, maintain_order=True) if numeric else table


def _numbers(
    cells: pl.DataFrame, folders: Sequence[Path], metrics: Sequence[str]
) -> dict[str, float | None]:
    """The columns of every metric, of one combination of settings, and ``SPLIT/num_users``."""
    found: dict[str, float | None] = {}
    for split in PREDICTIONS:
        names = [name for name in metrics if name.startswith(f"{split}/")]
        tables = dict(enumerate(_example_values(folder, split, names) for folder in folders))
        measured = numbers_of(tables, [name.split("/")[1] for name in names])
        for name in names:
            values = cells[name].drop_nulls().to_list()
            users = measured.get(name.split("/")[1])
            error = None if users is None else users.standard_error
            number = over_seeds(dict(enumerate(values)), error) if values else None
            found |= columns_of(name, number)
        found[f"{split}/num_users"] = len(set().union(*(t["user_id"] for t in tables.values())))
    return found


def _example_values(folder: Path, split: str, names: Sequence[str]) -> pl.DataFrame:
    """The metrics of every example that the run's lists are long enough for."""
    top_k = top_k_of(read_settings(folder))
    wanted = {k for name in names if (k := cut_off_of(name)) is not None and k <= top_k}
    return example_metrics(read_predictions(folder, split), sorted(wanted))


def _value(folder: Path, name: str) -> float | None:
    """One metric; measured anew where the run was made with other cut-offs."""
    split, metric = name.split("/")
    found = read_metrics(folder)[split]
    if metric in found or cut_off_of(metric) is None:
        return found.get(metric)
    values = _example_values(folder, split, [name])
    return mean_of(values, metric) if metric in values.columns else None


def _numeric(values: pl.Series) -> pl.Series:
    """The column as integers or floats where all its words are such."""
    for kind in (pl.Int64, pl.Float64):
        cast = values.cast(kind, strict=False)
        if cast.null_count() == 0:
            return cast
    return values
