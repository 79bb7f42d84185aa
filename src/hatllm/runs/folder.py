"""One run, one folder: whether it is finished, its settings, its catalogue."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hatllm.compose import checked
from hatllm.config import Config
from hatllm.data.sources.source_tables import read_parquet
from hatllm.files import write_text
from hatllm.runs.run_files import CONFIG_FILE, ITEMS_FILE, RUN_FILE
from hatllm.trusted import settings_of

CATALOGUE = {"item_id": pl.Int64, "title": pl.Utf8, "source_id": pl.Utf8}


def is_finished(folder: Path) -> bool:
    """Whether the folder holds a finished run."""
    return (folder / RUN_FILE).exists()


def finished_config(folder: Path) -> Config | None:
    """The settings of the run in a folder; None = it holds no finished one."""
    return checked(load_config(folder)) if is_finished(folder) else None


def write_config(folder: Path, config: Config) -> None:
    """The resolved settings, as YAML.

    Made from plain values: nodes with the schema's types have the same text and take twice as long.
    """
    write_text(folder / CONFIG_FILE, OmegaConf.to_yaml(OmegaConf.create(asdict(config))))


def load_config(folder: Path, field: str = "task.run_folder") -> Any:
    """The settings of a finished run, as `read_config` gives them.

    Args:
        folder: The run's folder.
        field: The setting that names it, for messages.

    Raises:
        ValueError: If the folder holds no finished run.
    """
    if not is_finished(folder):
        there = "no such folder" if not folder.exists() else "the run there is not finished"
        raise ValueError(f"{field}={str(folder)!r}: {there}; give the folder of a finished run")
    return read_config(folder, field)


def read_config(folder: Path, field: str) -> Any:
    """The settings of a run, finished or not, as a typed OmegaConf node.

    Args:
        folder: The run's folder.
        field: What names it, for messages.

    Raises:
        ValueError: If its settings cannot be read.
    """
    path = folder / CONFIG_FILE
    content = settings_of(path)
    if not isinstance(content, dict):
        raise ValueError(f"{field}={str(folder)!r}: {path.name} must hold settings by name")
    try:
        saved = OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.create(content))
    except (OmegaConfBaseException, TypeError, AttributeError, KeyError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"{field}={str(folder)!r}: {path.name} is not a run's: {reason}"
        ) from error
    return saved


def load_items(folder: Path) -> pl.DataFrame:
    """The catalogue of a finished run: item_id, title, source_id.

    Raises:
        ValueError: If it is missing, damaged, or not what a run writes.
    """
    path = folder / ITEMS_FILE
    items = read_parquet(path, list(CATALOGUE))
    if items.schema != CATALOGUE or items.is_empty() or any(items.null_count().row(0)):
        raise ValueError(f"{path} must hold {', '.join(CATALOGUE)} of every item, with no gap")
    return items
