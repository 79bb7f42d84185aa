"""Test users of a finished run: what they had, what came next, where the run ranked it."""

from collections.abc import Mapping
from pathlib import Path

import polars as pl

from hatllm.data.sources.source_tables import read_parquet
from hatllm.runs.run_files import EXAMPLES_FILE, PREDICTIONS_FILE
from hatllm.serve.schema import User


class UserTable:
    """The rows of a run's test split."""

    def __init__(self, folder: Path, title: Mapping[int, str], max_history_items: int) -> None:
        """Read examples and predictions.

        Args:
            folder: The run's; without the two files there are no users.
            title: Of each item id.
            max_history_items: Newest items that the run reads.
        """
        self.title, self.max_history_items = title, max_history_items
        examples, predictions = folder / EXAMPLES_FILE, folder / PREDICTIONS_FILE
        self.rows = pl.DataFrame()
        if examples.exists() and predictions.exists():
            columns = ["example_id", "source_user_id", "history", "target"]
            ranks = read_parquet(predictions, ["example_id", "target_rank"])
            self.rows = read_parquet(examples, columns).join(
                ranks, on="example_id", maintain_order="left"
            )

    def __len__(self) -> int:
        return self.rows.height

    def page(self, offset: int, limit: int) -> list[User]:
        """Some of them, in the order of the split."""
        return [
            User(
                user=user,
                history=[self.title[item] for item in history[-self.max_history_items :]],
                target=self.title[target],
                target_rank=rank,
            )
            for _, user, history, target, rank in self.rows.slice(offset, limit).iter_rows()
        ]
