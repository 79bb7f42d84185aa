"""Unfinished runs that a command does not go on with, because one setting differs."""

from pathlib import Path
from pickle import UnpicklingError

import torch

from hatllm.compose import checked
from hatllm.config import Config
from hatllm.tasks.baseline import CHECKPOINT_FILE
from hatllm.tasks.run_folder import is_finished, read_config, settings_by_name
from hatllm.tasks.run_lock import is_held


def unfinished_neighbours(config: Config, folder: Path) -> list[str]:
    """Unfinished runs beside a new one that differ from it in one setting, the seed aside.

    Args:
        config: The new run.
        folder: Its folder.

    Returns:
        A line for each: what differs, where it lies, and at which step it stopped. Runs that
        another process makes are left out.
    """
    ours = settings_by_name(config)
    lines = []
    for checkpoint in sorted(folder.parent.glob(f"*/{CHECKPOINT_FILE}")):
        other = checkpoint.parents[1]
        if other == folder or is_finished(other) or is_held(other):
            continue
        try:
            theirs = settings_by_name(checked(read_config(other, "run folder")))
        except ValueError:  # of another version of the code, which nothing here goes on with
            continue
        names = [n for n in {**ours, **theirs} if ours.get(n) != theirs.get(n)]
        if len(names) == 1 and names != ["seed"]:
            (name,) = names
            lines.append(
                f"{name}={ours.get(name)} begins a run of its own; {other}, unfinished at "
                f"{_place(checkpoint)}, has {name}={theirs.get(name)} and differs in nothing else"
            )
    return lines


def _place(checkpoint: Path) -> str:
    try:  # mapped, not read: only numbers are looked at
        state = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, OSError, EOFError, UnpicklingError):
        return "a checkpoint that is damaged"
    return f"step {state['global_step']}" if "global_step" in state else f"epoch {state['epoch']}"
