"""What every engine of bulk recommendation shares: one chunk's answers, written as one shard."""

from pathlib import Path
from typing import Any

import polars as pl

from hatllm.config import Config
from hatllm.files import write_table
from hatllm.progress import Progress
from hatllm.recommend.answerer import answerer_of
from hatllm.recommend.answers import Answerer, asked_of, catalogue_of, finder_of
from hatllm.recommend.histories import Chunk, read_chunk


class ChunkWriter:
    """Answers chunks into shards; made once in each process, it loads the model at the first."""

    def __init__(self, config: Config, path: Path, folder: Path, num_histories: int | None) -> None:
        """Know where things are.

        Args:
            config: A finished run's settings with the command line's on top.
            path: The histories, as `as_parquet` gives them.
            folder: Where shards go.
            num_histories: As `answerer_of`.
        """
        self.config, self.path, self.folder = config, path, folder
        self.num_histories = num_histories
        self.answerer: Answerer | None = None
        self.items = items = catalogue_of(config)
        self.find = finder_of(config, items)
        ids = items["item_id"].to_list()
        self.source = dict(zip(ids, items["source_id"].to_list(), strict=True))
        self.title = dict(zip(ids, items["title"].to_list(), strict=True))

    def __call__(self, chunk: Chunk) -> int:
        """Write a chunk's shard; rows that cannot be used are listed beside it, before it.

        Returns:
            How many histories were answered.
        """
        if self.answerer is None:
            self.answerer = answerer_of(self.config, self.items, self.num_histories)
        read = read_chunk(self.path, chunk, self.find, self.config.data.max_history_items)
        if read.refused.height:
            write_table(refused_path(self.folder, chunk), read.refused)
        rows: list[tuple[Any, ...]] = []
        found = self.answerer(asked_of(self.config, read.histories))
        for user, answers, skipped in zip(
            read.users.to_list(), found, read.num_skipped, strict=True
        ):
            for rank, answer in enumerate(answers, start=1):
                item = answer.item_id
                row = (user, rank, self.source[item], self.title[item])
                rows.append((*row, answer.score, answer.log_prob, skipped))
        schema: dict[str, Any] = {
            "user_id": read.users.dtype, "rank": pl.Int64, "item": pl.Utf8, "title": pl.Utf8,
            "score": pl.Float64, "log_prob": pl.Float64, "num_skipped": pl.Int64,
        }  # fmt: skip
        write_table(shard_path(self.folder, chunk), pl.DataFrame(rows, schema=schema, orient="row"))
        return len(read.histories)


def shard_path(folder: Path, chunk: Chunk) -> Path:
    """Where the answers of a chunk are."""
    return folder / "shards" / f"{chunk.number:06d}.parquet"


def refused_path(folder: Path, chunk: Chunk) -> Path:
    """Where the rows of a chunk that could not be used are listed, if there are any."""
    return folder / "refused" / f"{chunk.number:06d}.parquet"


def progress(chunks: list[Chunk], todo: list[Chunk], **options: Any) -> Any:
    """A bar over histories: how many are done, the rate, and the time that is left."""
    total, left = (sum(chunk.num_rows for chunk in some) for some in (chunks, todo))
    return Progress(total=total, initial=total - left, desc="recommend", unit="user", **options)


def without_shard(folder: Path, chunks: list[Chunk]) -> list[Chunk]:
    """The chunks that are still to be answered."""
    return [chunk for chunk in chunks if not shard_path(folder, chunk).exists()]
