"""Prepared tables on disk: written once for each set of settings and source files."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from hatllm.whole_files import (
    POLARS_ERRORS,
    damaged_file,
    folder_written_whole,
    record_checksums,
    write_json,
    write_table,
)

logger = logging.getLogger(__name__)

TABLES = ("items", "users", "train", "valid", "test", "train_interactions")
MANIFEST_FILE = "manifest.json"


@dataclass(frozen=True)
class PreparedTables:
    """All examples of a data set, before any sampling.

    Attributes:
        tables: 'items', 'users', the three splits and 'train_interactions', see ``Dataset``.
        manifest: What is known about them (JSON-able).
    """

    tables: dict[str, pl.DataFrame]
    manifest: dict[str, Any]


def save_prepared(prepared: PreparedTables, folder: Path) -> None:
    """Write the tables; ``folder`` appears with everything in it or not at all."""
    with folder_written_whole(folder) as partial:
        for name, table in prepared.tables.items():
            write_table(partial / f"{name}.parquet", table)
        write_json(partial / MANIFEST_FILE, prepared.manifest)
        record_checksums(partial)


def load_prepared(folder: Path) -> PreparedTables | None:
    """Return the tables of ``folder``, or None where there are none or one is damaged."""
    if not folder.exists():
        return None
    if (damaged := damaged_file(folder)) is not None:
        logger.warning("%s is not as it was written: the prepared tables are built anew", damaged)
        return None
    try:
        tables = {name: pl.read_parquet(folder / f"{name}.parquet") for name in TABLES}
        manifest = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, *POLARS_ERRORS) as error:
        logger.warning("prepared tables in %s cannot be read and are built anew: %s", folder, error)
        return None
    return PreparedTables(tables=tables, manifest=manifest)


def prepared_hash(folder: Path) -> str | None:
    """``data_hash`` of the tables of ``folder``; None where there are none."""
    try:
        found: dict[str, Any] = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found.get("data_hash")
