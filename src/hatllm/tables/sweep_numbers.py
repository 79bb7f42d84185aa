"""The numbers of a sweep: one row a cell, then means over seeds with their errors."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl
from omegaconf import OmegaConf

from hatllm.config import SweepConfig, cut_off_of
from hatllm.metrics.from_predictions import NLL_COLUMNS, example_metrics
from hatllm.metrics.uncertainty import mean_and_standard_error
from hatllm.tables.comparison import is_seeded
from hatllm.tables.numbers import cut_offs_of, ranking_metrics
from hatllm.tables.pairing import average, mean_of

PREDICTIONS = {"valid": "valid_predictions.parquet", "test": "predictions.parquet"}


def metric_names(folders: Sequence[Path], config: SweepConfig) -> list[str]:
    """The metrics of a sweep: those it is about, then whatever its runs have of the usual ones."""
    names = [config.objective, *config.metrics]
    for split in PREDICTIONS:
        for folder in folders:
            found = _metrics(folder)[split]
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
        found = _metrics(folder)
        seed = json.loads((folder / "run.json").read_text())["seed"]
        numbers = {name: _value(folder, found, name) for name in metrics}
        can_change = is_seeded(OmegaConf.load(folder / "config.yaml"))
        cell = {"cell": number, **values, "seed": seed, "seed_counts": can_change}
        rows.append({**cell, "run": folder.name, **numbers})
    types = dict.fromkeys(metrics, pl.Float64())
    table = pl.DataFrame(rows, schema_overrides=types, infer_schema_length=None)
    return table.with_columns(_numbers(table[name]) for name in settings[0])


def over_seeds(
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
    summary = [
        pl.len().alias("num_seeds"),
        *(pl.col(name).mean() for name in metrics),
        *(pl.col(name).std().alias(f"{name}_std") for name in metrics),
        pl.col("run").alias("runs"),
    ]
    cells = cells.unique("run", maintain_order=True)  # a search may propose a run twice
    # What no seed can change (popularity, an untuned backbone) is one run under every seed.
    is_first = pl.struct(*settings, "seed_counts").is_first_distinct()
    cells = cells.filter(pl.col("seed_counts") | is_first)
    groups = list(map(pl.col, settings)) or [pl.lit(0).alias("all")]  # without settings one group
    table = cells.group_by(groups, maintain_order=True).agg(summary).drop("all", strict=False)
    by_name = {folder.name: folder for folder in folders}
    errors = [errors_over_users([by_name[run] for run in runs], metrics) for runs in table["runs"]]
    table = table.drop("runs").hstack(pl.DataFrame(errors, infer_schema_length=None))
    if config.is_search:
        return table.sort(config.objective, descending=not is_low_better(config.objective))
    numeric = [name for name in settings if table[name].dtype.is_numeric()]
    return table.sort(numeric, maintain_order=True) if numeric else table


def errors_over_users(folders: Sequence[Path], metrics: Sequence[str]) -> dict[str, float | None]:
    """Standard errors of means over the seeds of one combination of settings.

    Args:
        folders: Its runs, one a seed.
        metrics: Output of `metric_names`.

    Returns:
        ``METRIC_se`` -> the error over users; None where a run lacks the metric or has one user.
        And ``SPLIT/num_users``.
    """
    found: dict[str, float | None] = {}
    for split in PREDICTIONS:
        names = [name for name in metrics if name.startswith(f"{split}/")]
        tables = [_example_values(folder, split, names) for folder in folders]
        averages = average(tables)
        for name in names:
            metric, error = name.split("/")[1], None
            if metric in averages.columns:
                _, error = mean_and_standard_error(averages[metric], averages["user_id"])
            found[f"{name}_se"] = None if error is None or math.isnan(error) else error
        found[f"{split}/num_users"] = averages["user_id"].n_unique()
    return found


def _example_values(folder: Path, split: str, names: Sequence[str]) -> pl.DataFrame:
    """The metrics of every example that the run's lists are long enough for."""
    top_k = int(OmegaConf.select(OmegaConf.load(folder / "config.yaml"), "decode.top_k"))
    wanted = {k for name in names if (k := cut_off_of(name)) is not None and k <= top_k}
    return example_metrics(pl.read_parquet(folder / PREDICTIONS[split]), sorted(wanted))


def _metrics(folder: Path) -> dict[str, dict[str, float]]:
    return dict(json.loads((folder / "metrics.json").read_text()))


def _value(folder: Path, metrics: Mapping[str, Mapping[str, float]], name: str) -> float | None:
    """One metric; measured anew where the run was made with other cut-offs."""
    split, metric = name.split("/")
    if metric in metrics[split] or cut_off_of(metric) is None:
        return metrics[split].get(metric)
    values = _example_values(folder, split, [name])
    return mean_of(values, metric) if metric in values.columns else None


def _numbers(values: pl.Series) -> pl.Series:
    """The column as integers or floats where all its words are such."""
    for kind in (pl.Int64, pl.Float64):
        cast = values.cast(kind, strict=False)
        if cast.null_count() == 0:
            return cast
    return values


def is_low_better(metric: str) -> bool:
    """Whether the metric is an NLL."""
    return metric.endswith("NLL")
