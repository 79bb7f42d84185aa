"""What lies in a run folder: the name of every file, and how each is read.

A run is finished once ``RUN_FILE`` is there, which is written last.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from hatllm.files import read_json
from hatllm.trusted import settings_of

RUN_FILE = "run.json"  # label, seed and hashes
CONFIG_FILE = "config.yaml"
METRICS_FILE = "metrics.json"
ENVIRONMENT_FILE = "environment.json"  # command, commit, hashes, versions, hardware, seconds
MANIFEST_FILE = "split_manifest.json"
PREDICTIONS_FILE = "predictions.parquet"
VALID_PREDICTIONS_FILE = "valid_predictions.parquet"
EXAMPLES_FILE = "examples.parquet"
ITEMS_FILE = "items.parquet"
USERS_FILE = "users.parquet"
CURVES_FILE = "curves.csv"
REPORT_FILE = "report.md"
CURVES_PICTURE = "curves.png"
WEIGHTS_FILE = "model.safetensors"  # of a baseline
POPULARITY_FILE = "popularity.parquet"  # of popularity
TITLE_SHARES_FILE = "title_shares.parquet"  # of an LLM under loss.prior
NEIGHBOURS_FILE = "neighbours.parquet"  # of kNN
FUSION_FILE = "fusion.json"  # share of the first run, and what every share was worth on valid
TRANSITIONS_FILE = "transitions.parquet"  # of the title rule with transitions
SENTENCES_FILE = "sentence_vectors.safetensors"  # of the title rule by meaning
CHECKPOINT_FILE = Path("checkpoints") / "last.ckpt"  # until the run is finished
SHARDS = "shards"  # folder of shards, while there are any
EVALUATIONS = "evaluations"  # folder of what task=evaluate leaves, a folder each

PREDICTIONS = {"valid": VALID_PREDICTIONS_FILE, "test": PREDICTIONS_FILE}


def check_files(folder: Path, *names: str) -> None:
    """Refuse a folder that lacks one of the files that a finished run has.

    Raises:
        ValueError: If one is missing; names the first.
    """
    for name in names:
        if not (folder / name).exists():
            raise ValueError(f"{folder} has no {name}: the run is not finished")


def read_identity(folder: Path, *keys: str) -> dict[str, Any]:
    """``run.json`` of a finished run.

    Args:
        folder: The run's.
        keys: What must stand in it.

    Raises:
        ValueError: If the file or a key is missing, or the file is damaged.
    """
    check_files(folder, RUN_FILE)
    identity = read_json(folder / RUN_FILE)
    for key in keys:
        if key not in identity:
            raise ValueError(f"{folder / RUN_FILE} has no {key!r}")
    return identity


def read_settings(folder: Path) -> Any:
    """``config.yaml`` as it stands there: plain values, without the schema's types.

    Raises:
        ValueError: If it is no such file.
    """
    settings = settings_of(folder / CONFIG_FILE)
    if not isinstance(settings, dict):
        raise ValueError(f"{folder / CONFIG_FILE} must hold settings by name")
    return settings


def read_metrics(folder: Path) -> dict[str, dict[str, float]]:
    """``metrics.json``: split -> name -> value."""
    return read_json(folder / METRICS_FILE)


def read_environment(folder: Path) -> dict[str, Any]:
    """``environment.json``; empty where there is none."""
    path = folder / ENVIRONMENT_FILE
    return read_json(path) if path.exists() else {}


def read_manifest(folder: Path) -> dict[str, Any]:
    """``split_manifest.json``: what the run's data are."""
    return read_json(folder / MANIFEST_FILE)


def read_predictions(folder: Path, split: str = "test") -> pl.DataFrame:
    """The predictions table of a split, one row an example.

    Args:
        folder: The run's.
        split: ``valid`` or ``test``.
    """
    return pl.read_parquet(folder / PREDICTIONS[split])


def hardware_text(environment: Mapping[str, Any]) -> str:
    """The GPUs of a run, or the processor where it had none."""
    hardware = environment["hardware"]
    return ", ".join(hardware["gpu"] or [hardware["processor"]])
