"""One run, one folder: its name, its settings, where it was made, when it is finished."""

import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import polars as pl
import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hatllm.compose import checked
from hatllm.config import OTHER_RUNS, Config, only_what_counts
from hatllm.data.sources.source_tables import read_parquet
from hatllm.files import write_text
from hatllm.redact import redacted
from hatllm.runs.run_files import CHECKPOINT_FILE as CHECKPOINT_FILE
from hatllm.runs.run_files import CONFIG_FILE, ITEMS_FILE
from hatllm.runs.run_files import RUN_FILE as RUN_FILE
from hatllm.runs.run_files import SHARDS as SHARDS
from hatllm.runs.run_files import WEIGHTS_FILE as WEIGHTS_FILE
from hatllm.trusted import settings_of

CATALOGUE = {"item_id": pl.Int64, "title": pl.Utf8, "source_id": pl.Utf8}
# Code that can change a run's predictions; tables and figures are made from those at any time.
MAKES_NUMBERS = ("data/**/*.py", "masks/*.py", "model/**/*.py", "losses/*.py", "decode/**/*.py",
                 "baselines/*.py", "metrics/*.py", "training/*.py", "tasks/train.py")  # fmt: skip
# In these rooms, but without a say in any prediction.
MAKES_NONE = ("data/report.py", "data/report_picture.py", "data/report_counts.py",
              "metrics/uncertainty.py", "training/loggers.py",
              "training/stop_signals.py")  # fmt: skip
PLACES = (":/src", ":/conf", ":/run.py")  # from the repository's top; tables beside them may change
PACKAGES = ("hatllm", "torch", "transformers", "peft", "pytorch-lightning", "hydra-core",
            "omegaconf", "polars", "numpy", "tokenizers")  # fmt: skip


def config_hash(config: Config) -> str:
    """Twelve hexadecimal digits over every setting that can change the numbers."""
    text = json.dumps(settings_that_count(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def settings_that_count(config: Config) -> dict[str, Any]:
    """Every setting that can change the numbers; other runs by the names of their folders."""
    kept = counted(asdict(config))
    if not config.is_seeded:
        del kept["seed"]
    return kept


def counted(settings: Mapping[str, Any]) -> dict[str, Any]:
    """As `settings_that_count`, of all settings by name, groups as dictionaries, and the seed."""
    kept = only_what_counts(settings)
    for group, setting in OTHER_RUNS:
        folder = kept[group].get(setting)  # a baseline has none
        if folder is not None:
            kept[group][setting] = Path(folder).name
    return kept


def of_any_seed(config: Config, find: Callable[[str], Config | None]) -> Config:
    """Settings that are equal for runs that differ in the seed only, and so in the runs they need.

    Args:
        config: A run.
        find: Gives the settings of another run by its folder; None = there is no such run.

    Returns:
        The run with seed 0, needing others by the names that they have with seed 0; one that is
        not found keeps its folder.
    """
    config = replace(
        config, seed=0, run_name=None, model=replace(config.model), decode=replace(config.decode)
    )
    for group, setting in OTHER_RUNS:
        part = getattr(config, group)
        folder = getattr(part, setting)
        if folder is not None and (run := find(folder)) is not None:
            setattr(part, setting, run_folder(of_any_seed(run, find)).name)
    return config


def settings_by_name(config: Config) -> dict[str, Any]:
    """Every setting that can change the numbers, by its dotted name."""
    return by_dotted_name(settings_that_count(config))


def by_dotted_name(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings, groups as dictionaries, by their dotted names."""

    def flat(values: Mapping[str, Any], start: str = "") -> Iterator[tuple[str, Any]]:
        for name, value in values.items():
            if isinstance(value, Mapping):
                yield from flat(value, f"{start}{name}.")
            else:
                yield f"{start}{name}", value

    return dict(flat(settings))


def run_label(config: Config) -> str:
    """What a table calls this run: equal for runs that differ in the seed only."""
    if config.experiment.cell is not None:
        return config.experiment.cell
    return _settings_label(config)


def _settings_label(config: Config) -> str:
    if config.model.kind != "llm":
        return config.model.name
    tuned = config.trains or config.model.start_from is not None
    mask = config.mask.name if config.mask.layers is None else config.mask.layers
    for short, value in (
        ("split", config.mask.split_layer),
        ("cross", config.mask.num_cross_layers),
    ):
        mask += "" if value is None else f"-{short}{value}"
    return mask if tuned else ("untuned" if mask == "causal" else f"untuned-{mask}")


def run_folder(config: Config) -> Path:
    """Folder of this run under `output_root`; the same settings always give the same folder."""
    return Path(config.output_root).expanduser() / (config.run_name or _name(config))


def _name(config: Config) -> str:
    parts = [config.data.name, config.model.name]
    if config.model.kind == "llm":
        parts += [_settings_label(config), config.loss.name]
    if config.is_seeded:
        parts.append(f"s{config.seed}")
    return "-".join([*parts, config_hash(config)[:8]])


def is_finished(folder: Path) -> bool:
    """Whether the folder holds a finished run."""
    return (folder / RUN_FILE).exists()


def finished_config(folder: Path) -> Config | None:
    """The settings of the run in a folder; None = it holds no finished one."""
    return checked(load_config(folder)) if is_finished(folder) else None


def write_config(folder: Path, config: Config) -> None:
    """The resolved settings, as YAML."""
    write_text(folder / CONFIG_FILE, OmegaConf.to_yaml(OmegaConf.structured(config)))


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


def environment(
    manifest: dict[str, Any], seconds: dict[str, float], dtype: str | None
) -> dict[str, Any]:
    """What another person needs to judge and repeat the run.

    Args:
        manifest: Of its data: data_hash, split_hash.
        seconds: What its parts took.
        dtype: Of the frozen weights; None = there is no model.
    """
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "command": redacted(
            " ".join(["python", Path(sys.argv[0]).name, *map(_quoted, sys.argv[1:])])
        ),
        "commit": commit(),
        "code_hash": code_hash(),
        "python": platform.python_version(),
        "versions": versions,
        "hardware": hardware(),
        "dtype": dtype,
        "data_hash": manifest["data_hash"],
        "split_hash": manifest["split_hash"],
        "seconds": seconds,
    }


@cache
def code_hash() -> str:
    """Twelve hexadecimal digits over the source files that make predictions, committed or not.

    Of the files as they are when first asked for: a run asks at its start, and files that change
    while it goes on did not make its numbers.
    """
    package = Path(__file__).parents[1]
    found = hashlib.sha256()
    for path in sorted(path for place in MAKES_NUMBERS for path in package.glob(place)):
        name = path.relative_to(package).as_posix()
        if name not in MAKES_NONE:
            found.update(f"{name}\0".encode())
            found.update(path.read_bytes())
    return found.hexdigest()[:12]


def hardware() -> dict[str, Any]:
    """Processor, threads, GPU."""
    found: dict[str, Any] = {
        "platform": platform.platform(terse=True),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "gpu": None,
    }
    if torch.cuda.is_available():
        found["gpu"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return found


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown"


@cache
def commit() -> str:
    """The commit of code and settings when first asked for, and whether they differ from it."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        found = git("rev-parse", "HEAD")
    except OSError:
        return "unknown"
    changed = git("status", "--porcelain", "--untracked-files=no", "--", *PLACES)
    return (found or "unknown") + (" with local changes" if changed else "")


def _quoted(word: str) -> str:
    return f"'{word}'" if set(word) & set(' []{}()"') else word
