"""A finished run of model=fusion: both runs answer, and their lists are fused as it has learned."""

from collections.abc import Callable
from pathlib import Path

import polars as pl

from hatllm.baselines.fusion import fused_lists
from hatllm.config import Config
from hatllm.files import read_json
from hatllm.recommend.answers import Answer, Answerer
from hatllm.runs.run_files import FUSION_FILE


class FusedAnswerer:
    """Finds the best titles by the lists of two answerers."""

    def __init__(self, config: Config, answerer_of: Callable[[str], Answerer]) -> None:
        """Load both.

        Args:
            config: The run's settings with the command line's on top.
            answerer_of: Gives the answerer of another finished run by its setting's name.

        Raises:
            ValueError: If one of the runs is gone, or does not fit.
        """
        assert config.task.run_folder is not None
        learned = read_json(Path(config.task.run_folder) / FUSION_FILE)
        self.share, self.constant = float(learned["share"]), float(learned["constant"])
        self.top_k = config.decode.top_k
        self.first, self.second = answerer_of("first_run"), answerer_of("second_run")

    def __call__(self, histories: list[list[int]]) -> list[list[Answer]]:
        """As `Answerer`; score and log-probability are the log of a title's part of the scores."""
        if not histories:
            return []
        lists = fused_lists(
            _table(self.first(histories)), _table(self.second(histories)),
            self.share, self.constant, self.top_k,
        )  # fmt: skip
        return [
            [Answer(item, value, value) for item, value in zip(*row, strict=True)]
            for row in lists.select("top_items", "top_log_probs").rows()
        ]


def _table(found: list[list[Answer]]) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "example_id": range(len(found)),
            "top_items": [[answer.item_id for answer in answers] for answers in found],
        },
        schema={"example_id": pl.Int64, "top_items": pl.List(pl.Int64)},
    )
