"""A finished run answers for the data that it was made of, and for no other."""

import json
import sys
from pathlib import Path

from pytorch_lightning.utilities import rank_zero_only

from hatllm.config import Config
from hatllm.data.prepare import prepare_dataset, tables_key
from hatllm.tasks.run_folder import RUN_FILE

HASHES = ("data_hash", "split_hash")
REPLACE = "task.force=true runs it anew on today's and replaces it, output_root=... keeps both"
RUN_ANEW = "task.force=true, in the run's own command, runs it anew on today's"


def other_data(config: Config, folder: Path, hashes: tuple[str, ...] = HASHES) -> str | None:
    """How the data of a finished run differ from those that its settings give today.

    Where the source files have the names, sizes and times that they had, nothing is read. Files
    that are not on this machine cannot differ; that is said.

    Args:
        config: The run's settings, with today's places.
        folder: Its folder.
        hashes: Those of HASHES to compare; rows of another sample have another split_hash.

    Returns:
        What differs, ``data_hash=... (now ...)``; None = nothing.

    Raises:
        ValueError: If today's files cannot be read.
    """
    run = json.loads((folder / RUN_FILE).read_text())
    root = None if config.data_root is None else Path(config.data_root).expanduser()
    key = tables_key(config.data, root, Path(config.cache_root))
    if key is None and rank_zero_only.rank == 0:
        print(f"note: data={config.data.name} is not here to compare {folder} with it",
              file=sys.stderr)  # fmt: skip
    if key is None or key == run.get("tables_key"):
        return None
    now = prepare_dataset(config.data, root, Path(config.cache_root)).manifest
    changes = [
        f"{name}={run[name][:12]} (now {now[name][:12]})"
        for name in hashes
        if run[name] != now[name]
    ]
    return ", ".join(changes) or None


def refuse_other_data(
    config: Config, folder: Path, hashes: tuple[str, ...] = HASHES, advice: str = REPLACE
) -> None:
    """Refuse a finished run whose data have changed.

    Args:
        config: As in `other_data`.
        folder: As there.
        hashes: As there.
        advice: What to do.

    Raises:
        ValueError: If they have.
    """
    if (changes := other_data(config, folder, hashes)) is not None:
        raise ValueError(f"{folder} is a finished run on other data, {changes}: {advice}")
