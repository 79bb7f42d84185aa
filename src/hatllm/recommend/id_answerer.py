"""A finished baseline run, loaded once, that answers one batch of histories after another."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import torch
from torch import Tensor

from hatllm.baselines.knn import knn_scores
from hatllm.baselines.ranks_of_scores import TitleIndex, predictions_of, top_titles
from hatllm.baselines.sequences import Sequences, sequences_of
from hatllm.baselines.title_graph import transition_bonus, with_bonus
from hatllm.baselines.title_rule import title_scores, title_vectors
from hatllm.config import Config
from hatllm.data.sources.source_tables import read_parquet
from hatllm.recommend.answers import Answer, Asked
from hatllm.runs.run_files import NEIGHBOURS_FILE, POPULARITY_FILE, TRANSITIONS_FILE
from hatllm.training.id_model import scores
from hatllm.training.sequence_run import load_sequence_run

ROWS_A_BATCH = 256

# From histories to the scores of all items, batch by batch, and the targets that nobody needs.
Scored = Callable[[Sequences], Iterator[tuple[Tensor, Tensor]]]


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
        folder, self.index = Path(config.task.run_folder), TitleIndex.of(items)
        self.scored: Scored
        self.num_read = config.data.max_history_items
        match config.model.kind:
            case "popularity":
                table = read_parquet(folder / POPULARITY_FILE, ["item_id", "log_prob"])
                self.scored = partial(_by_popularity, table)
            case "knn":
                table = read_parquet(
                    folder / NEIGHBOURS_FILE, ["item_id", "neighbour", "similarity"]
                )
                self.scored, self.num_read = partial(_by_knn, table, self.index), 1
            case "titles":
                self.scored = self._title_rule(config, items)
            case "titles_graph":
                table = read_parquet(folder / TRANSITIONS_FILE, ["item_id", "next_item", "count"])
                counted = config.model.transitions
                assert counted is not None
                bonus = transition_bonus(table, counted.weight, self.index.item_id_I)
                by_words = self._title_rule(config, items)
                self.scored = lambda rows: with_bonus(by_words(rows), bonus, rows)
            case _:
                model, _ = load_sequence_run(
                    str(folder), self.index.item_id_I, "task.run_folder", {}
                )
                assert config.model.sequence is not None
                size = config.model.sequence.batch_size
                self.scored = lambda rows: scores(model, rows, size)

    def _title_rule(self, config: Config, items: pl.DataFrame) -> Scored:
        titles = config.model.titles
        assert titles is not None
        vectors = title_vectors(items.sort("item_id")["title"].to_list(), titles)
        self.num_read = titles.last_items
        return lambda rows: title_scores(vectors, rows, titles)

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

    @torch.inference_mode()
    def predictions(
        self, examples: pl.DataFrame, top_k: int, exclude_history: bool
    ) -> pl.DataFrame:
        """The predictions table of examples, as the run itself makes it.

        Args:
            examples: example_id, user_id, history, target.
            top_k: Titles answered for each example.
            exclude_history: Whether titles of an example's history are no answers.

        Raises:
            ValueError: If an item is not in the catalogue.
        """
        rows = sequences_of(examples, self.index.item_id_I, self.num_read)
        return predictions_of(examples, self.scored(rows), self.index, top_k, exclude_history)

    def _scores(self, histories: Sequence[Sequence[int]]) -> Iterator[Tensor]:
        """Scores of all items, (B, I), batch by batch."""
        # A target is asked for, and nothing of the scores depends on it.
        targets = np.full(len(histories), self.index.item_id_I[0])
        examples = pl.DataFrame(
            {"history": [list(h) for h in histories], "target": targets},
            schema={"history": pl.List(pl.Int64), "target": pl.Int64},
        )
        rows = sequences_of(examples, self.index.item_id_I, self.num_read)
        return (score_BI for score_BI, _ in self.scored(rows))

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


def _by_popularity(table: pl.DataFrame, rows: Sequences) -> Iterator[tuple[Tensor, Tensor]]:
    """Everybody the same: the log-probability of each item's title."""
    log_prob_I = torch.tensor(table.sort("item_id")["log_prob"].to_list(), dtype=torch.float64)
    for target_B in torch.split(rows.target_G, ROWS_A_BATCH):
        yield log_prob_I.expand(len(target_B), -1), target_B


def _by_knn(
    table: pl.DataFrame, index: TitleIndex, rows: Sequences
) -> Iterator[tuple[Tensor, Tensor]]:
    return knn_scores(table, rows, index)
