"""A run begins: noted in its folder, its data compared, unfinished runs like it named."""

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import Timeout
from rich.console import Console

from hatllm.compose import checked
from hatllm.config import Config
from hatllm.data.prepare import Dataset, cache_root, current_data_hash, data_root
from hatllm.files import write_json
from hatllm.runs.folder import is_finished, read_config, write_config
from hatllm.runs.lock import run_lock
from hatllm.runs.name import by_dotted_name, counted, settings_by_name
from hatllm.runs.provenance import environment
from hatllm.runs.run_files import (
    CHECKPOINT_FILE,
    CONFIG_FILE,
    CURVES_FILE,
    ENVIRONMENT_FILE,
    RUN_FILE,
    SHARDS,
    read_environment,
    read_identity,
)
from hatllm.trusted import settings_of

MADE_OF = ("code_hash", "data_hash")  # and of its settings

console = Console()


def begin(config: Config, folder: Path, dataset: Dataset) -> bool:
    """Note what the run is made of, or see that an unfinished one goes on with just that.

    `task.force` starts it over. A run that this very command has begun goes on all the same: a
    cell that is tried again and a job that SLURM queues again have the words of the first time.

    Args:
        config: The run.
        folder: Its folder; only the first process of a distributed run looks and writes.
        dataset: Its prepared examples.

    Returns:
        Whether it goes on from weights or answers of an earlier process; only the first process
        knows.

    Raises:
        ValueError: If the folder holds a checkpoint of other settings, data or code.
    """
    from pytorch_lightning.utilities import rank_zero_only  # late: others only look at runs

    if rank_zero_only.rank != 0:
        return False
    begun, now = read_environment(folder), environment(dataset.manifest, {}, config.model.dtype)
    forced = config.task.force and begun.get("command") != now["command"]
    if is_finished(folder) or forced:
        _start_over(folder)
    elif (folder / CHECKPOINT_FILE).exists() and (changes := _changes(config, folder, begun, now)):
        if not config.task.force:
            raise ValueError(
                f"{folder} holds an unfinished run that was begun with {', '.join(changes)}: go on "
                "with that, or start over with task.force=true, or leave run_name out"
            )
        _start_over(folder)
    has_weights = (folder / CHECKPOINT_FILE).exists()
    if not has_weights:
        write_json(folder / ENVIRONMENT_FILE, now)
        for line in begun_otherwise(config, folder):
            console.print(f"note: {line}", markup=False, soft_wrap=True)
    write_config(folder, config)
    return has_weights or any((folder / SHARDS).glob("*/*.parquet"))


def _start_over(folder: Path) -> None:
    # First: nobody may take old and new files together for one finished run.
    (folder / RUN_FILE).unlink(missing_ok=True)
    shutil.rmtree((folder / CHECKPOINT_FILE).parent, ignore_errors=True)
    shutil.rmtree(folder / SHARDS, ignore_errors=True)
    (folder / CURVES_FILE).unlink(missing_ok=True)


def _changes(config: Config, folder: Path, begun: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What the unfinished run was begun with and would not go on with: ``name=value``."""
    saved = checked(read_config(folder, "run folder"))
    theirs, ours = (settings_by_name(run) for run in (saved, config))
    theirs |= {name: begun.get(name) for name in MADE_OF}
    ours |= {name: now[name] for name in MADE_OF}
    if "fsdp" in (saved.trainer.strategy, config.trainer.strategy):  # checkpoints of its own form
        theirs["trainer.strategy"] = saved.trainer.strategy
        ours["trainer.strategy"] = config.trainer.strategy
    return differences(theirs, ours)


def check_data_unchanged(config: Config, folder: Path) -> None:
    """Refuse a finished run as the answer for data that have changed since.

    Args:
        config: The run; its data are looked up, and prepared where they are not.
        folder: Its folder; an unfinished run is not looked at here.

    Raises:
        ValueError: If the data have changed, or cannot be found or read.
    """
    if not is_finished(folder):
        return
    now = current_data_hash(config.data, data_root(config), cache_root(config))
    then = read_identity(folder).get("data_hash")
    if then != now:
        raise ValueError(
            f"data={config.data.name} has changed since {folder} was finished: "
            f"data_hash={str(then)[:12]} (now {now[:12]}); its metrics are those of the old data: "
            "task=train with task.force=true makes the run anew, another output_root keeps both"
        )


def differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """Settings by dotted names that differ: ``name=value (now value)``."""
    return [
        f"{name}={theirs.get(name)} (now {ours.get(name)})"
        for name in sorted(theirs.keys() | ours.keys())
        if theirs.get(name) != ours.get(name)
    ]


def begun_otherwise(config: Config, folder: Path) -> Iterator[str]:
    """A line for each unfinished run that differs from one that begins in a single setting.

    Runs of another seed are no mistake, and neither are those that a process is working on.

    Args:
        config: The run that begins.
        folder: Its folder; the others lie beside it.
    """
    ours = settings_by_name(config)
    for checkpoint in sorted(folder.parent.glob(f"*/{CHECKPOINT_FILE}")):
        other = checkpoint.parents[1]
        if other == folder or is_finished(other):
            continue
        theirs = _settings_in(other)
        if theirs is None or theirs["seed"] != config.seed:
            continue
        changes = differences(theirs, ours)
        if len(changes) == 1 and not _is_worked_on(other):
            yield (
                f"this run begins anew; {other} is unfinished and differs in one setting only: "
                f"{changes[0]}; with that it would go on"
            )


def _settings_in(folder: Path) -> dict[str, Any] | None:
    """Settings of a run by dotted names; None = not those of such a run."""
    try:
        return by_dotted_name(counted(settings_of(folder / CONFIG_FILE)))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _is_worked_on(folder: Path) -> bool:
    try:
        with run_lock(folder).acquire(timeout=0):
            return False
    except Timeout:
        return True
