"""Recommendations for a file of histories, chunk by chunk, on one process, several, or Ray.

A chunk's answers are one shard, written whole or not at all. So a run that was stopped goes on with
the chunks that have none, and chunks may be answered anywhere, in any order: the shards are the
same.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import torch
from filelock import Timeout
from rich.console import Console

from hatllm.config import Config
from hatllm.files import write_json
from hatllm.recommend.answers import catalogue_of
from hatllm.recommend.chunk_writer import (
    ChunkWriter,
    progress,
    refused_path,
    shard_path,
    without_shard,
)
from hatllm.recommend.histories import (
    NO_KNOWN_ITEM,
    Chunk,
    as_parquet,
    chunks_of,
    holds_strings,
)
from hatllm.recommend.item_finder import note_on_titles_that_are_ids
from hatllm.runs.lock import RunBusyError, run_lock
from hatllm.runs.name import config_hash

console = Console()


def recommend_in_bulk(config: Config) -> Path:
    """Answer every history of ``data.histories`` that has no answer yet.

    Args:
        config: A finished run's settings with the command line's on top.

    Returns:
        Folder ``recommendations/NAME-HASH`` in the run's: ``shards/`` (user_id, rank, item, title,
        score, log_prob, num_skipped), ``refused/`` (row, user_id, reason), and once all is answered
        ``summary.json``. Another file, other settings or weights give another folder.

    Raises:
        ValueError: If the file, or a setting, does not fit.
        RunBusyError: If another process does this process's share.
    """
    given = Path(str(config.data.histories)).expanduser()
    if not given.is_file():
        raise ValueError(f"data.histories={str(given)!r}: no such file")
    config = _with_whole_paths(config, given)
    folder = _folder(config, given)
    for name in ("shards", "refused"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    with run_lock(folder / "histories"):  # one process lays the file out, the others wait
        path = as_parquet(given, folder)
    if own_share()[0] == 0 and holds_strings(path):
        note = note_on_titles_that_are_ids(catalogue_of(config), None)
        if note is not None:
            console.print(f"note: {note}", soft_wrap=True, markup=False)
    chunks = chunks_of(path, config.task.chunk_rows)
    if config.task.engine == "ray":
        from hatllm.recommend.bulk_ray import answer_on_ray

        answer_on_ray(config, path, folder, chunks)
    else:
        _answer_here(config, path, folder, chunks)
    if left := without_shard(folder, chunks):
        console.print(f"this share is done; {len(left)} of {len(chunks)} chunks are left to others")
    else:
        _sum_up(folder, chunks)
    return folder


def own_share() -> tuple[int, int]:
    """This process and how many there are, as torchrun or SLURM's srun says."""
    # A batch script without srun has SLURM_NTASKS too, and is alone.
    for rank, world_size in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")):
        if rank in os.environ and world_size in os.environ:
            return int(os.environ[rank]), int(os.environ[world_size])
    return 0, 1


def _answer_here(config: Config, path: Path, folder: Path, chunks: list[Chunk]) -> None:
    rank, world_size = own_share()
    if torch.cuda.is_available() and config.trainer.accelerator != "cpu":
        torch.cuda.set_device(rank % torch.cuda.device_count())
    mine = chunks[rank::world_size]
    todo = without_shard(folder, mine)
    if not todo:
        return
    lock = run_lock(folder / f"process-{rank}")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise RunBusyError(f"{folder} is being written by another process; wait for it") from None
    num_histories = sum(chunk.num_rows for chunk in todo) if world_size == 1 else None
    write = ChunkWriter(config, path, folder, num_histories)
    with lock, progress(mine, todo, disable=rank > 0) as bar:
        for chunk in todo:
            write(chunk)
            bar.update(chunk.num_rows)


def _sum_up(folder: Path, chunks: list[Chunk]) -> None:
    """Write ``summary.json``: how many histories were answered, read in part, refused and why."""
    reasons: dict[str, int] = {}
    for frame in _refused(folder, chunks):
        kinds = frame["reason"].str.replace(rf"^({NO_KNOWN_ITEM}).*", "$1")
        for kind, count in kinds.value_counts().rows():
            reasons[kind] = reasons.get(kind, 0) + count
    total, refused = sum(chunk.num_rows for chunk in chunks), sum(reasons.values())
    skipped = _skipped(folder, chunks)
    summary: dict[str, Any] = {
        "histories": total,
        "answered": total - refused,
        "answered_with_skipped_entries": int((skipped > 0).sum()),
        "skipped_entries": int(skipped.sum()),
        "refused": dict(sorted(reasons.items())),
        "shards": len(chunks),
    }
    write_json(folder / "summary.json", summary)
    why = "; ".join(f"{kind}: {count}" for kind, count in summary["refused"].items())
    listed = f" ({why}; listed in {folder / 'refused'})" if refused else ""
    in_part = ""
    if summary["skipped_entries"]:
        in_part = (
            f" ({summary['skipped_entries']} entries of "
            f"{summary['answered_with_skipped_entries']} histories name no item and were skipped: "
            "num_skipped)"
        )
    console.print(
        f"{total - refused} of {total} histories answered{in_part}, {refused} refused{listed}: "
        f"{folder / 'shards'}",
        soft_wrap=True, markup=False,
    )  # fmt: skip


def _skipped(folder: Path, chunks: list[Chunk]) -> pl.Series:
    """How many entries of each answered history were skipped."""
    best = pl.col("rank") == 1
    shards = (
        pl.read_parquet(shard_path(folder, chunk), columns=["rank", "num_skipped"])
        for chunk in chunks
    )
    return pl.concat(
        [pl.Series(dtype=pl.Int64), *(shard.filter(best)["num_skipped"] for shard in shards)]
    )


def _refused(folder: Path, chunks: list[Chunk]) -> Iterator[pl.DataFrame]:
    for chunk in chunks:
        if (path := refused_path(folder, chunk)).exists():
            yield pl.read_parquet(path)


def _with_whole_paths(config: Config, histories: Path) -> Config:
    """The same settings with paths that mean the same in every process and folder."""

    def whole(path: str | None) -> str | None:
        return None if path is None else str(Path(path).expanduser().resolve())

    return replace(
        config,
        data=replace(config.data, histories=whole(str(histories))),
        task=replace(config.task, run_folder=whole(config.task.run_folder)),
        cache_root=str(whole(config.cache_root)),
    )


def _folder(config: Config, given: Path) -> Path:
    """Named by the file and by all that can change an answer."""
    assert config.task.run_folder is not None
    run = Path(config.task.run_folder)
    same_answers = replace(config, data=replace(config.data, histories=None))
    file = given.stat()
    known = [config_hash(same_answers), config.task.chunk_rows, given.name, file.st_size,
             file.st_mtime_ns, *map(_digest, sorted(run.glob("*/*.safetensors"))),
             *map(_digest, sorted(run.glob("*.safetensors")))]  # fmt: skip
    digest = hashlib.sha256(json.dumps(known).encode()).hexdigest()[:8]
    return run / "recommendations" / f"{given.stem}-{digest}"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
