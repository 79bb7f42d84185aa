"""A finished baseline run, loaded once, that answers one batch of histories after another."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import polars as pl

from hatllm.baselines.knn import knn_answers
from hatllm.baselines.ranks_of_scores import TitleIndex, predictions_of
from hatllm.baselines.sequences import sequences_of
from hatllm.baselines.title_graph import titles_graph_predictions
from hatllm.baselines.title_rule import titles_predictions
from hatllm.config import Config
from hatllm.data.sources.source_tables import read_parquet
from hatllm.recommend.answers import Answer
from hatllm.runs.run_files import NEIGHBOURS_FILE, PREDICTIONS_FILE, TRANSITIONS_FILE
from hatllm.training.baseline_run import load_sequence_run
from hatllm.training.id_model import SequenceModel, scores

Answered = Callable[[pl.DataFrame], pl.DataFrame]  # examples -> top_items, top_log_probs


class IdAnswerer:
    """Finds the best titles with a model that knows items by id only."""

    def __init__(self, config: Config, items: pl.DataFrame) -> None:
        """Load what the run has learned.

        Args:
            config: The run's settings with the command line's on top.
            items: Its catalogue: item_id, title.

        Raises:
            ValueError: If a file of the run is missing or damaged, or holds fewer answers than
                `decode.top_k`.
        """
        assert config.task.run_folder is not None
        folder, index = Path(config.task.run_folder), TitleIndex.of(items)
        self.anything = int(index.item_id_I[0])
        self.answer: Answered
        match config.model.kind:
            case "popularity":
                self.answer = partial(_same_for_all, _popular(folder, config.decode.top_k))
            case "knn":
                table = read_parquet(
                    folder / NEIGHBOURS_FILE, ["item_id", "neighbour", "similarity"]
                )
                self.answer = partial(_of_knn, table, items, config.decode.top_k)
            case "titles":
                self.answer = partial(_of_titles, items, config)
            case "titles_graph":
                table = read_parquet(folder / TRANSITIONS_FILE, ["item_id", "next_item", "count"])
                self.answer = partial(_of_titles_graph, table, items, config)
            case _:
                model, _ = load_sequence_run(str(folder), index.item_id_I, "task.run_folder", {})
                self.answer = partial(_of_model, model, index, config)

    def __call__(self, histories: list[list[int]]) -> list[list[Answer]]:
        """As `Answerer`; score and log-probability are one number."""
        if not histories:
            return []
        rows = range(len(histories))
        # A target is asked for, and nothing of the answers depends on it.
        examples = pl.DataFrame(
            {"example_id": rows, "user_id": rows, "history": histories,
             "target": [self.anything] * len(histories)},
        )  # fmt: skip
        found = self.answer(examples).select("top_items", "top_log_probs").rows()
        return [
            [Answer(item, value, value) for item, value in zip(*answers, strict=True)]
            for answers in found
        ]


def _popular(folder: Path, top_k: int) -> pl.DataFrame:
    """The answer that everybody gets: top_items and top_log_probs, one row."""
    path = folder / PREDICTIONS_FILE
    first = read_parquet(path, ["top_items", "top_log_probs"]).head(1)
    num_answers = first["top_items"].list.len().sum()
    if num_answers < top_k:
        raise ValueError(
            f"decode.top_k={top_k} must be at most {num_answers}, the titles that the popularity "
            f"run in {folder} was asked for"
        )
    return first.select(pl.all().list.head(top_k))


def _same_for_all(answer: pl.DataFrame, examples: pl.DataFrame) -> pl.DataFrame:
    return pl.concat([answer] * examples.height)


def _of_knn(
    table: pl.DataFrame, items: pl.DataFrame, top_k: int, examples: pl.DataFrame
) -> pl.DataFrame:
    return knn_answers(table, examples, items, top_k)


def _of_titles(items: pl.DataFrame, config: Config, examples: pl.DataFrame) -> pl.DataFrame:
    assert config.model.titles is not None
    return titles_predictions(examples, items, config.model.titles, config.decode.top_k)


def _of_titles_graph(
    table: pl.DataFrame, items: pl.DataFrame, config: Config, examples: pl.DataFrame
) -> pl.DataFrame:
    titles, counted = config.model.titles, config.model.transitions
    assert titles is not None and counted is not None
    top_k = config.decode.top_k
    return titles_graph_predictions(table, counted.weight, examples, items, titles, top_k)


def _of_model(
    model: SequenceModel, index: TitleIndex, config: Config, examples: pl.DataFrame
) -> pl.DataFrame:
    assert config.model.sequence is not None
    rows = sequences_of(examples, index.item_id_I, config.data.max_history_items)
    batches = scores(model, rows, config.model.sequence.batch_size)
    return predictions_of(examples, batches, index, config.decode.top_k)
