"""A finished baseline run, loaded once, that answers one batch of histories after another."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import polars as pl
import torch
from torch import Tensor

from hatllm.baselines.ranks_of_scores import TitleIndex, top_titles
from hatllm.baselines.sequences import sequences_of
from hatllm.config import Config
from hatllm.recommend.answers import Answer, Asked
from hatllm.training.scored_run import scored_run


class IdAnswerer:
    """Finds the best titles with a model that scores all items at once."""

    def __init__(self, config: Config, items: pl.DataFrame) -> None:
        """Load what the run has learned.

        Args:
            config: The run's settings with the command line's on top.
            items: Its catalogue: item_id, title.

        Raises:
            ValueError: If a file of the run is missing or damaged.
        """
        assert config.task.run_folder is not None
        self.index = TitleIndex.of(items)
        self.rule = scored_run(Path(config.task.run_folder), config, items, "task.run_folder")

    @torch.inference_mode()
    def __call__(self, asked: Sequence[Asked]) -> list[list[Answer]]:
        """As `Answerer`; score and log-probability are one number."""
        found: list[list[Answer]] = []
        for score_BI in self._scores([one.history for one in asked]):
            part = asked[len(found) : len(found) + len(score_BI)]
            top_k = min(max(one.k for one in part), len(self.index.first_J))
            is_gone_BJ = self._gone(part)
            if is_gone_BJ is not None:
                is_gone_BJ = is_gone_BJ.to(score_BI.device)
            first_BW, log_prob_BW = top_titles(score_BI, self.index, top_k, is_gone_BJ)
            rows = zip(part, first_BW.tolist(), log_prob_BW.tolist(), strict=True)
            for one, numbers, values in rows:
                pairs = [pair for pair in zip(numbers, values, strict=True) if pair[0] >= 0]
                found.append([self._answer(*pair) for pair in pairs[: one.k]])
        return found

    @torch.inference_mode()
    def score(self, history: Sequence[int], item_ids: Sequence[int]) -> list[Answer]:
        """As `Answerer.score`: the log-softmax of the scores among all titles."""
        (score_BI,) = self._scores([history])
        log_prob_J = self.index.title_scores(score_BI)[0].double().log_softmax(0).cpu()
        title_M = self.index.title_I[np.searchsorted(self.index.item_id_I, list(item_ids))]
        values = log_prob_J[title_M].tolist()
        # Titles are numbered in the order of equal ones.
        rows = zip(item_ids, title_M.tolist(), values, strict=True)
        ordered = sorted(rows, key=lambda row: (-row[2], row[1]))
        return [Answer(item, value, value) for item, _, value in ordered]

    def _scores(self, histories: Sequence[Sequence[int]]) -> Iterator[Tensor]:
        """Scores of all items, (B, I), batch by batch."""
        # A target is asked for, and nothing of the scores depends on it.
        targets = np.full(len(histories), self.index.item_id_I[0])
        examples = pl.DataFrame(
            {"history": [list(h) for h in histories], "target": targets},
            schema={"history": pl.List(pl.Int64), "target": pl.Int64},
        )
        rows = sequences_of(examples, self.index.item_id_I, self.rule.num_read)
        return (score_BI for score_BI, _ in self.rule.batches(rows))

    def _gone(self, asked: Sequence[Asked]) -> Tensor | None:
        """Titles that are no answers, (B, J); None = all are."""
        if not any(len(one.exclude) or one.only is not None for one in asked):
            return None
        kind = pl.List(pl.Int64)
        is_gone_BJ = self.index.holds(pl.Series([list(one.exclude) for one in asked], dtype=kind))
        only = pl.Series([list(one.only or ()) for one in asked], dtype=kind)
        has_list_B = torch.tensor([one.only is not None for one in asked])
        return is_gone_BJ | (has_list_B[:, None] & ~self.index.holds(only))

    def _answer(self, number: int, value: float) -> Answer:
        return Answer(int(self.index.item_id_I[number]), value, value)
