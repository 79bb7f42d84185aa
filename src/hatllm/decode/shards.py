"""Predictions on their way: files of a few batches each, whole or not there at all.

Every process writes its own files into one folder and asks nobody. A process that starts again
leaves out what any file holds, and when all examples are there the files are one table. What may
lie in one folder is the caller's to say: the folder's name is a hash of everything that predictions
depend on.
"""

import os
import shutil
import time
import uuid
from pathlib import Path

import polars as pl

from hatllm.files import POLARS_ERRORS
from hatllm.processes import process_rank

SECONDS_BETWEEN_LOOKS = 0.2  # while other processes are still decoding


class Shards:
    """The files of one split under one state of the weights."""

    def __init__(self, folder: Path, batches_a_file: int | None) -> None:
        """Open the folder, which may hold what an earlier process has left.

        Args:
            folder: On a disk that all processes share.
            batches_a_file: Batches of users between two writes; None = one write, at the end.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.batches_a_file = folder, batches_a_file
        self.rank, self.world_size = process_rank()
        self.parent = os.getppid()
        self.tables: dict[Path, pl.DataFrame] = {}  # files read so far

    def read(self) -> pl.DataFrame | None:
        """The rows of all files, each example once, by example_id; None where there is no file."""
        for path in self.folder.glob("*.parquet"):
            if path not in self.tables:
                try:
                    self.tables[path] = pl.read_parquet(path)
                except (OSError, *POLARS_ERRORS):
                    path.unlink(missing_ok=True)  # cut off by a power failure: decoded again
        if not self.tables:
            return None
        rows = pl.concat(self.tables.values())
        return rows.unique("example_id", keep="any").sort("example_id")

    def left_of(self, frame: pl.DataFrame) -> pl.DataFrame:
        """This process's share of the examples, without those that are done.

        The share is every `world_size`-th row whatever is done, so that processes that start at
        different moments leave nothing out.
        """
        share, done = frame[self.rank :: self.world_size], self.read()
        return share if done is None else share.join(done, on="example_id", how="anti")

    def write(self, rows: pl.DataFrame) -> None:
        """One more file of this process.

        Raises:
            SystemExit: If the first process, which started this one, is gone.
        """
        self._check_parent()
        path = self.folder / f"{self.rank:04}-{uuid.uuid4().hex[:12]}.parquet"
        partial = path.with_suffix(".part")
        rows.write_parquet(partial)
        partial.replace(path)

    def _check_parent(self) -> None:
        if self.rank and os.getppid() != self.parent:
            raise SystemExit(1)  # the command, started again, does the rest

    def wait_for(self, example_ids: pl.Series) -> pl.DataFrame:
        """The rows of all files, once they hold all examples.

        Args:
            example_ids: All of them.

        Returns:
            One row an example, by example_id.

        Raises:
            SystemExit: If the first process, which started this one, is gone.
        """
        missing = example_ids.n_unique()
        while True:
            rows = self.read()
            missing = example_ids.n_unique() - (0 if rows is None else rows.height)
            if rows is not None and missing == 0:
                return rows
            assert self.world_size > 1, f"{missing} examples are in no shard"
            self._check_parent()
            time.sleep(SECONDS_BETWEEN_LOOKS)

    def remove(self) -> None:
        """Delete the folder, when its rows lie elsewhere."""
        shutil.rmtree(self.folder, ignore_errors=True)
