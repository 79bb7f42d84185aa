"""Prepared tables on disk: written once for each set of settings and source files."""

import json
import logging
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

logger = logging.getLogger(__name__)

TABLES = ("items", "users", "train", "valid", "test")
MANIFEST_FILE = "manifest.json"


@dataclass(frozen=True)
class PreparedTables:
    """All examples of a data set, before any sampling.

    Attributes:
        tables: 'items', 'users' and the three splits, see ``Dataset``.
        manifest: What is known about them (JSON-able).
    """

    tables: dict[str, pl.DataFrame]
    manifest: dict[str, Any]


def save_prepared(prepared: PreparedTables, folder: Path) -> None:
    """Write the tables; ``folder`` appears with everything in it or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        for name, table in prepared.tables.items():
            table.write_parquet(temporary / f"{name}.parquet")
        manifest = json.dumps(prepared.manifest, indent=2)
        (temporary / MANIFEST_FILE).write_text(manifest + "\n", encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def load_prepared(folder: Path) -> PreparedTables | None:
    """Return the tables of ``folder``, or None where there are none or they cannot be read."""
    if not folder.exists():
        return None
    try:
        tables = {name: pl.read_parquet(folder / f"{name}.parquet") for name in TABLES}
        manifest = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, pl.exceptions.PolarsError) as error:
        logger.warning("prepared tables in %s cannot be read and are built anew: %s", folder, error)
        return None
    return PreparedTables(tables=tables, manifest=manifest)
