"""Bulk recommendation on Ray Data: actors that load the model once and answer chunk after chunk.

What travels through Ray is which chunk is next and how many histories it held; histories are read
and shards are written by the actors, so that the driver's memory does not grow. All machines need
the run folder, the histories and the cache at the same paths (a shared file system).
"""

from pathlib import Path
from typing import Any

import torch

from hatllm.config import Config
from hatllm.ray_cluster import missing_package, room_on_ray
from hatllm.recommend.chunk_writer import ChunkWriter, progress, without_shard
from hatllm.recommend.histories import Chunk


class ChunkActor:
    """A Ray Data actor: one model, one chunk a call."""

    def __init__(self, config: Config, path: Path, folder: Path) -> None:
        torch.set_num_threads(config.num_threads or 1)
        self.write = ChunkWriter(config, path, folder, num_histories=None)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Answer the chunks of a batch (of one)."""
        numbers = zip(*(batch[name].tolist() for name in Chunk._fields), strict=True)
        for values in numbers:
            self.write(Chunk(*values))
        return {"num_rows": batch["num_rows"]}


def answer_on_ray(config: Config, path: Path, folder: Path, chunks: list[Chunk]) -> None:
    """Answer the chunks that have no shard on the Ray cluster that this process can reach.

    There are as many actors as the cluster has room for.

    Args:
        config: A finished run's settings with the command line's on top, with absolute paths.
        path: The histories, as `as_parquet` gives them.
        folder: Where shards go.
        chunks: All chunks of the file.

    Raises:
        ValueError: If Ray is not installed, or the cluster has no room for one actor.
    """
    todo = without_shard(folder, chunks)
    if not todo:
        return
    room = room_on_ray(config)
    try:
        import ray.data
    except ImportError as error:
        raise missing_package(error) from error
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    rows = [chunk._asdict() for chunk in todo]
    done = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        ChunkActor,
        fn_constructor_args=(config, path, folder),
        batch_size=1,
        concurrency=(1, min(room.num_actors, len(rows))),
        **room.options,
    )
    with progress(chunks, todo) as bar:
        for row in done.iter_rows():
            bar.update(int(row["num_rows"]))
