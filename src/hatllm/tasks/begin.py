"""The beginning of a run: noted in its folder, so that nothing else goes on from its checkpoint."""

import json
import shutil
from pathlib import Path
from typing import Any

from pytorch_lightning.utilities import rank_zero_only
from rich.console import Console

from hatllm.compose import checked
from hatllm.config import Config
from hatllm.data.prepare import Dataset
from hatllm.tasks.baseline import CHECKPOINT_FILE
from hatllm.tasks.decoding import SHARDS
from hatllm.tasks.run_folder import (
    RUN_FILE,
    environment,
    is_finished,
    read_config,
    settings_by_name,
    write_config,
)
from hatllm.tasks.unfinished import begun_otherwise, differences
from hatllm.whole_files import write_json

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
    if rank_zero_only.rank != 0:
        return False
    begun, now = _environment(folder), environment(dataset.manifest, {}, config.model.dtype)
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
        write_json(folder / "environment.json", now)
        for line in begun_otherwise(config, folder):
            console.print(f"note: {line}", markup=False, soft_wrap=True)
    write_config(folder, config)
    return has_weights or any((folder / SHARDS).glob("*/*.parquet"))


def _start_over(folder: Path) -> None:
    # First: nobody may take old and new files together for one finished run.
    (folder / RUN_FILE).unlink(missing_ok=True)
    shutil.rmtree((folder / CHECKPOINT_FILE).parent, ignore_errors=True)
    shutil.rmtree(folder / SHARDS, ignore_errors=True)
    (folder / "curves.csv").unlink(missing_ok=True)


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


def _environment(folder: Path) -> dict[str, Any]:
    path = folder / "environment.json"
    return dict(json.loads(path.read_text())) if path.exists() else {}
