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


def counted_answers(config: Config, folder: Path, dataset: Dataset) -> dict[str, pl.DataFrame]:
    """Write what the rule has counted, and answer both splits with it."""
    rule, top_k = _counted(config, folder, dataset), config.decode.top_k
    return {
        split: rule.predictions(
            dataset.splits[split], dataset.items, top_k, config.decode.exclude_history
        )
        for split in PREDICTIONS
    }


def _counted(config: Config, folder: Path, dataset: Dataset) -> Scored:
    """The rule of the run's kind; `hatllm.training.scored_run` makes it again from its files."""
    titles, items = config.model.titles, dataset.items
    match config.model.kind:
        case "knn":
            knn = config.model.knn
            assert knn is not None
            table = neighbours(_interactions(dataset, knn.train_on), knn)
            write_table(folder / NEIGHBOURS_FILE, table)
            return knn_rule(table, items)
        case "titles":
            assert titles is not None
            return title_rule(items, titles)
        case "titles_graph":
            counted = config.model.transitions
            assert titles is not None and counted is not None
            table = transition_counts(_interactions(dataset, counted.train_on))
            write_table(folder / TRANSITIONS_FILE, table)
            return title_graph(table, counted.weight, items, titles)
        case _:
            assert config.model.kind == "sentences"
            assert titles is not None and titles.encoder is not None
            texts = items.sort("item_id")["title"].to_list()
            vector_ID = sentence_vectors(texts, titles.encoder, "model.titles.encoder")
            with written_whole(folder / SENTENCES_FILE) as partial:
                save_file({"vector_ID": vector_ID}, partial)
            return sentence_rule(vector_ID, titles)


def _interactions(dataset: Dataset, train_on: str) -> pl.DataFrame:
    """Those of all of train, or of the sampled rows; one of TRAIN_ON."""
    if train_on == "sampled":
        return interactions_of(dataset.splits["train"])
    return dataset.train_interactions
