"""The part of task=train that answers for a rule that counts train, or not even that."""

from pathlib import Path

import polars as pl
from safetensors.torch import save_file

from hatllm.baselines.knn import knn_rule, neighbours
from hatllm.baselines.scored import Scored
from hatllm.baselines.title_rules import sentence_rule, title_graph, title_rule
from hatllm.config import Config
from hatllm.data.prepare import Dataset
from hatllm.data.train_interactions import interactions_of, transition_counts
from hatllm.files import write_table, written_whole
from hatllm.model.sentence_encoder import sentence_vectors
from hatllm.runs.run_files import NEIGHBOURS_FILE, PREDICTIONS, SENTENCES_FILE, TRANSITIONS_FILE


def knn_run(config: Config, folder: Path, dataset: Dataset) -> dict[str, pl.DataFrame]:
    """Write what kNN learned, and answer both splits."""
    knn = config.model.knn
    assert knn is not None
    table = neighbours(_interactions(dataset, knn.train_on), knn)
    write_table(folder / NEIGHBOURS_FILE, table)
    return _answers(config, dataset, knn_rule(table, dataset.items))


def titles_run(config: Config, dataset: Dataset) -> dict[str, pl.DataFrame]:
    """Answer both splits with the title rule."""
    titles = config.model.titles
    assert titles is not None
    return _answers(config, dataset, title_rule(dataset.items, titles))


def titles_graph_run(config: Config, folder: Path, dataset: Dataset) -> dict[str, pl.DataFrame]:
    """Write the transitions that were counted, and answer both splits."""
    titles, counted = config.model.titles, config.model.transitions
    assert titles is not None and counted is not None
    table = transition_counts(_interactions(dataset, counted.train_on))
    write_table(folder / TRANSITIONS_FILE, table)
    rule = title_graph(table, counted.weight, dataset.items, titles)
    return _answers(config, dataset, rule)


def sentences_run(config: Config, folder: Path, dataset: Dataset) -> dict[str, pl.DataFrame]:
    """Write the titles' vectors, and answer both splits with them."""
    titles = config.model.titles
    assert titles is not None and titles.encoder is not None
    texts = dataset.items.sort("item_id")["title"].to_list()
    vector_ID = sentence_vectors(texts, titles.encoder, "model.titles.encoder")
    with written_whole(folder / SENTENCES_FILE) as partial:
        save_file({"vector_ID": vector_ID}, partial)
    return _answers(config, dataset, sentence_rule(vector_ID, titles))


def _answers(config: Config, dataset: Dataset, rule: Scored) -> dict[str, pl.DataFrame]:
    top_k, exclude_history = config.decode.top_k, config.decode.exclude_history
    return {
        split: rule.predictions(dataset.splits[split], dataset.items, top_k, exclude_history)
        for split in PREDICTIONS
    }


def _interactions(dataset: Dataset, train_on: str) -> pl.DataFrame:
    """Those of all of train, or of the sampled rows; one of TRAIN_ON."""
    if train_on == "sampled":
        return interactions_of(dataset.splits["train"])
    return dataset.train_interactions
