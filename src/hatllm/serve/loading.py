"""From a run's folder to what a server holds of it."""

from collections.abc import Sequence
from pathlib import Path

from omegaconf import OmegaConf

from hatllm.compose import checked, with_finished_run
from hatllm.config import Config
from hatllm.runs.folder import load_config


def config_to_serve(folder: Path, config: Config, words: Sequence[str]) -> Config:
    """A finished run's settings with those of the command line on top.

    Args:
        folder: The run's.
        config: The command line's.
        words: Its words, such as ``decode.beam_width=20``.

    Raises:
        ValueError: If the folder holds no finished run, or a word would make it another one.
    """
    keys = ("task.run_folder", "task.run_folders")
    kept = [word for word in words if not word.startswith(keys)]
    merged = with_finished_run(OmegaConf.structured(config), kept, load_config(folder))
    merged.task.run_folder, merged.task.run_folders = str(folder), []
    return checked(merged)
