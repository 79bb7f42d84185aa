"""The part of task=train that answers for a rule that counts train, or not even that."""

from pathlib import Path

import polars as pl
from safetensors.torch import save_file

from hatllm.baselines.knn import neighbours
from hatllm.config import Config
from hatllm.data.prepare import Dataset
from hatllm.data.train_interactions import interactions_of, transition_counts
from hatllm.files import write_table, written_whole
from hatllm.model.sentence_encoder import sentence_vectors
from hatllm.runs.run_files import NEIGHBOURS_FILE, PREDICTIONS, SENTENCES_FILE, TRANSITIONS_FILE
from hatllm.training.scored_run import scored_run


def counted_answers(config: Config, folder: Path, dataset: Dataset) -> dict[str, pl.DataFrame]:
    """Write what the rule has counted, and answer both splits with what stands there."""
    _write_counts(config, folder, dataset)
    rule, top_k = scored_run(folder, config, dataset.items, "run_name"), config.decode.top_k
    return {
        split: rule.predictions(
            dataset.splits[split], dataset.items, top_k, config.decode.exclude_history
        )
        for split in PREDICTIONS
    }


def _write_counts(config: Config, folder: Path, dataset: Dataset) -> None:
    """The file that the rule of the run's kind is made from; titles alone need none."""
    match config.model.kind:
        case "knn":
            knn = config.model.knn
            assert knn is not None
            table = neighbours(_interactions(dataset, knn.train_on), knn)
            write_table(folder / NEIGHBOURS_FILE, table)
        case "titles_graph":
            counted = config.model.transitions
            assert counted is not None
            table = transition_counts(_interactions(dataset, counted.train_on))
            write_table(folder / TRANSITIONS_FILE, table)
        case "sentences":
            titles = config.model.titles
            assert titles is not None and titles.encoder is not None
            texts = dataset.items.sort("item_id")["title"].to_list()
            vector_ID = sentence_vectors(texts, titles.encoder, "model.titles.encoder")
            with written_whole(folder / SENTENCES_FILE) as partial:
                save_file({"vector_ID": vector_ID}, partial)


def _interactions(dataset: Dataset, train_on: str) -> pl.DataFrame:
    """Those of all of train, or of the sampled rows; one of TRAIN_ON."""
    if train_on == "sampled":
        return interactions_of(dataset.splits["train"])
    return dataset.train_interactions
