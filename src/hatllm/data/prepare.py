"""One data set, ready to use: source files -> tables -> examples -> sampled splits."""

import hashlib
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import polars as pl
from filelock import FileLock

from hatllm.config import Config, DataConfig
from hatllm.data.build import SourceFiles, build_tables, locate_source
from hatllm.data.split import SPLITS, sample_rows
from hatllm.data.table_cache import (
    PreparedTables,
    load_prepared,
    prepared_hash,
    save_prepared,
    table_hash,
    tables_hash,
)
from hatllm.memory import peak_memory_mb

TABLES_VERSION = 2  # raise it when the same settings and files give other tables
# Settings that do not change the prepared tables: names, prompts, and the sampling done on top.
NOT_IN_TABLES = ("name", "prompt", "train_rows", "valid_rows", "test_rows", "sample_seed",
                 "train_targets", "target_form", "target_weights")  # fmt: skip


@dataclass(frozen=True)
class Dataset:
    """Items and examples of one data set.

    Attributes:
        name: ``data.name``.
        items: item_id Int64 (unique), title Utf8 (cleaned if ``data.clean_titles``), source_id Utf8
            (the id in the source files); one row per catalogue item, by item_id.
        splits: 'train', 'valid' and 'test', after row sampling: example_id Int64 (unique over all
            splits), user_id Int64, history List(Int64) oldest first, target Int64, timestamp Int64
            (of the target, Unix seconds).
        full_train: The train split before row sampling; its rows overlap.
        train_interactions: What train holds, each interaction once, before row sampling: user_id
            Int64, item_id Int64, place Int64 (from 0, in the user's train sequence), in sequence
            order; for tables see ``split``, for prepared windows ``interactions_of``.
        users: user_id Int64, source_id Utf8; users with at least one example before sampling.
        manifest: Hashes, counts, settings, bad rows and timings, JSON-able.
    """

    name: str
    items: pl.DataFrame
    splits: dict[str, pl.DataFrame]
    full_train: pl.DataFrame
    train_interactions: pl.DataFrame
    users: pl.DataFrame
    manifest: dict[str, Any]


def prepare_dataset(config: DataConfig, data_root: Path | None, cache_root: Path) -> Dataset:
    """Return the data set of a config; a second call with the same settings reads the cache.

    Args:
        config: The data settings.
        data_root: Folder of ready tables, prepared windows or published files; None = none.
        cache_root: Folder of downloads and prepared tables.

    Raises:
        ConnectionError: If source files have to be fetched and cannot be.
        ValueError: If the source files are missing or malformed, or no example is left.
    """
    start = time.perf_counter()
    cache_root = cache_root.expanduser()
    files = locate_source(config, data_root, cache_root)
    located = time.perf_counter()
    folder = cache_root / "prepared" / _tables_key(config, files)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        prepared = load_prepared(folder)
        cached = prepared is not None
        if prepared is None:
            prepared = build_tables(config, files)
            save_prepared(prepared, folder)
    timings = prepared.manifest["timings"] | {"locate_s": round(located - start, 3)}
    dataset = _sampled(config, prepared, timings)
    dataset.manifest["timings"]["total_s"] = round(time.perf_counter() - start, 3)
    dataset.manifest.update(cached=cached, peak_memory_mb=peak_memory_mb())
    return dataset


def current_data_hash(config: DataConfig, data_root: Path | None, cache_root: Path) -> str:
    """``data_hash`` of the source files as they are now.

    Files that are as they were when their tables were prepared are not read again, and neither are
    the tables: the name of their folder holds the files' sizes and times.

    Args:
        config: The data settings.
        data_root: As for `prepare_dataset`.
        cache_root: As for `prepare_dataset`.

    Raises:
        ConnectionError: If source files have to be fetched and cannot be.
        ValueError: If the source files are missing or malformed, or no example is left.
    """
    cache_root = cache_root.expanduser()
    files = locate_source(config, data_root, cache_root)
    known = prepared_hash(cache_root / "prepared" / _tables_key(config, files))
    if known is None:
        known = prepare_dataset(config, data_root, cache_root).manifest["data_hash"]
    return str(known)


def _tables_key(config: DataConfig, files: SourceFiles) -> str:
    settings = {k: v for k, v in asdict(config).items() if k not in NOT_IN_TABLES}
    text = json.dumps([TABLES_VERSION, settings, files.fingerprint()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _sampled(config: DataConfig, prepared: PreparedTables, timings: dict[str, float]) -> Dataset:
    tables = prepared.tables
    limits = {"train": config.train_rows, "valid": config.valid_rows, "test": config.test_rows}
    splits = {name: sample_rows(tables[name], limits[name], config.sample_seed) for name in SPLITS}
    rows = {
        name: {"before_sampling": tables[name].height, "after_sampling": splits[name].height}
        for name in SPLITS
    }
    settings = {key: value for key, value in asdict(config).items() if key != "prompt"}
    manifest = {
        "name": config.name,
        "data_hash": prepared.manifest["data_hash"],
        "split_hash": tables_hash(splits),
        "split_hashes": {name: table_hash(frame) for name, frame in splits.items()},
        "protocol": "windows" if config.source == "windows" else config.protocol,
        "rows": rows,
        "settings": settings,
    }
    manifest |= {key: value for key, value in prepared.manifest.items() if key not in manifest}
    manifest["timings"] = timings
    return Dataset(
        name=config.name,
        items=tables["items"],
        splits=splits,
        full_train=tables["train"],
        train_interactions=tables["train_interactions"],
        users=tables["users"],
        manifest=manifest,
    )


def cache_root(config: Config) -> Path:
    """Folder of downloads and converted files."""
    return Path(config.cache_root).expanduser()


def load_dataset(config: Config) -> Dataset:
    """The prepared examples.

    Raises:
        ValueError: If `data_root` or the data settings do not fit.
    """
    return prepare_dataset(config.data, data_root(config), cache_root(config))


def data_root(config: Config) -> Path | None:
    """Folder of ready tables, prepared windows or published files; None = none.

    Raises:
        ValueError: If it is not a folder.
    """
    root = None if config.data_root is None else Path(config.data_root).expanduser()
    if root is not None and not root.is_dir():
        raise ValueError(f"data_root={config.data_root!r} is not a folder")
    return root
