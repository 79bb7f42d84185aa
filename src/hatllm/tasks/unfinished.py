"""Unfinished runs beside one that begins: did the user mean to go on with one of them?"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import Timeout

from hatllm.config import Config
from hatllm.tasks.baseline import CHECKPOINT_FILE
from hatllm.tasks.run_folder import by_dotted_name, counted, is_finished, settings_by_name
from hatllm.tasks.run_lock import run_lock
from hatllm.trusted import settings_of


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
        return by_dotted_name(counted(settings_of(folder / "config.yaml")))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _is_worked_on(folder: Path) -> bool:
    try:
        with run_lock(folder).acquire(timeout=0):
            return False
    except Timeout:
        return True
