"""The part of task=train that answers for a rule that counts train, or not even that."""

from pathlib import Path

import polars as pl

from hatllm.baselines.knn import knn_answers, neighbours
from hatllm.baselines.title_graph import titles_graph_predictions
from hatllm.baselines.title_rule import titles_predictions
from hatllm.config import Config
from hatllm.data.prepare import Dataset
from hatllm.data.train_interactions import interactions_of, transition_counts
from hatllm.files import write_table
from hatllm.runs.run_files import NEIGHBOURS_FILE, PREDICTIONS, TRANSITIONS_FILE


def knn_run(config: Config, folder: Path, dataset: Dataset) -> dict[str, pl.DataFrame]:
    """Write what kNN learned, and answer both splits."""
    knn = config.model.knn
    assert knn is not None
    table = neighbours(_interactions(dataset, knn.train_on), knn)
    write_table(folder / NEIGHBOURS_FILE, table)
    return {
        split: knn_answers(
            table,
            dataset.splits[split],
            dataset.items,
            config.decode.top_k,
            config.decode.exclude_history,
        )
        for split in PREDICTIONS
    }


def titles_run(config: Config, dataset: Dataset) -> dict[str, pl.DataFrame]:
    """Answer both splits with the title rule."""
    titles = config.model.titles
    assert titles is not None
    return {
        split: titles_predictions(
            dataset.splits[split],
            dataset.items,
            titles,
            config.decode.top_k,
            config.decode.exclude_history,
        )
        for split in PREDICTIONS
    }


def titles_graph_run(config: Config, folder: Path, dataset: Dataset) -> dict[str, pl.DataFrame]:
    """Write the transitions that were counted, and answer both splits."""
    titles, counted = config.model.titles, config.model.transitions
    assert titles is not None and counted is not None
    table = transition_counts(_interactions(dataset, counted.train_on))
    write_table(folder / TRANSITIONS_FILE, table)
    examples = {split: dataset.splits[split] for split in PREDICTIONS}
    return {
        split: titles_graph_predictions(
            table,
            counted.weight,
            rows,
            dataset.items,
            titles,
            config.decode.top_k,
            config.decode.exclude_history,
        )
        for split, rows in examples.items()
    }


def _interactions(dataset: Dataset, train_on: str) -> pl.DataFrame:
    """Those of all of train, or of the sampled rows; one of TRAIN_ON."""
    if train_on == "sampled":
        return interactions_of(dataset.splits["train"])
    return dataset.train_interactions
