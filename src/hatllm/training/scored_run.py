"""A finished baseline run, loaded again as what scores all items."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import polars as pl
import torch
from torch import Tensor

from hatllm.baselines.fusion import fused_rule
from hatllm.baselines.knn import knn_rule
from hatllm.baselines.scored import Scored
from hatllm.baselines.sequences import Sequences
from hatllm.baselines.title_rules import sentence_rule, title_graph, title_rule
from hatllm.config import MODEL_KINDS, Config
from hatllm.data.prompt import IntArray
from hatllm.data.sources.source_tables import read_parquet
from hatllm.files import read_json
from hatllm.model.export import read_tensors
from hatllm.runs.folder import finished_config, load_config, load_items
from hatllm.runs.run_files import (
    FUSION_FILE,
    NEIGHBOURS_FILE,
    POPULARITY_FILE,
    SENTENCES_FILE,
    TRANSITIONS_FILE,
)
from hatllm.training.id_model import scores
from hatllm.training.sequence_run import check_same_items, load_sequence_run

ROWS_A_BATCH = 256


def scored_baseline(folder: str, field: str, item_id_I: IntArray) -> tuple[Scored, Config]:
    """A finished baseline run on known items, and its settings.

    Args:
        folder: The run's.
        field: The setting that names it, for messages.
        item_id_I: The items that it must know, ascending.

    Raises:
        ValueError: If it is not finished, an LLM's, or on other items, or a file is damaged.
    """
    load_config(Path(folder), field)  # refuses by name what is no finished run
    config = finished_config(Path(folder))
    assert config is not None
    check_baseline(config, folder, field)
    check_same_items(Path(folder), item_id_I, field)
    return scored_run(Path(folder), config, load_items(Path(folder)), field), config


def check_baseline(config: Config, folder: str, field: str) -> None:
    """Refuse a run of an LLM, which does not score all items at once.

    Raises:
        ValueError: If it is one.
    """
    if config.model.kind == "llm":
        raise ValueError(
            f"{field}={folder!r} is a run of model={config.model.name}, an LLM; give that of a "
            f"baseline: {', '.join(kind for kind in MODEL_KINDS if kind != 'llm')}"
        )


def scored_run(folder: Path, config: Config, items: pl.DataFrame, field: str) -> Scored:
    """What a finished run scores all items with.

    Args:
        folder: The run's.
        config: Its settings; not of an LLM.
        items: Its catalogue: item_id, title.
        field: The setting that names the run, for messages.

    Returns:
        Higher scores are better ones. Of popularity they are log-probabilities of titles, of a
        model of SEQUENCE_KINDS logits of items, of the others numbers to rank by.

    Raises:
        ValueError: If a file of the run is missing or damaged.
    """
    titles = config.model.titles
    match config.model.kind:
        case "popularity":
            table = read_parquet(folder / POPULARITY_FILE, ["item_id", "log_prob"])
            return Scored(partial(_by_popularity, table), 1)
        case "knn":
            columns = ["item_id", "neighbour", "similarity"]
            return knn_rule(read_parquet(folder / NEIGHBOURS_FILE, columns), items)
        case "titles":
            assert titles is not None
            return title_rule(items, titles)
        case "titles_graph":
            counted = config.model.transitions
            assert titles is not None and counted is not None
            table = read_parquet(folder / TRANSITIONS_FILE, ["item_id", "next_item", "count"])
            return title_graph(table, counted.weight, items, titles)
        case "sentences":
            assert titles is not None
            return sentence_rule(_vectors(folder / SENTENCES_FILE, len(items)), titles)
        case "fusion":
            return _fused_runs(folder, config, items)
        case _:
            return _sequence_model(folder, config, items, field)


def _by_popularity(table: pl.DataFrame, rows: Sequences) -> Iterator[tuple[Tensor, Tensor]]:
    """Everybody the same: the log-probability of each item's title."""
    log_prob_I = torch.tensor(table.sort("item_id")["log_prob"].to_list(), dtype=torch.float64)
    for target_B in torch.split(rows.target_G, ROWS_A_BATCH):
        yield log_prob_I.expand(len(target_B), -1), target_B


def _sequence_model(folder: Path, config: Config, items: pl.DataFrame, field: str) -> Scored:
    item_id_I = items["item_id"].cast(pl.Int64).sort().to_numpy()
    model, _ = load_sequence_run(str(folder), item_id_I, field, {})
    assert config.model.sequence is not None
    batches = partial(scores, model, batch_size=config.model.sequence.batch_size)
    return Scored(batches, config.data.max_history_items)


def _vectors(path: Path, num_items: int) -> Tensor:
    """The titles' vectors, one an item.

    Raises:
        ValueError: If there are others.
    """
    vector_ID = read_tensors(path).get("vector_ID")
    if vector_ID is None or len(vector_ID) != num_items:
        raise ValueError(f"{path} must hold vector_ID, one row for each of {num_items} items")
    return vector_ID


def _fused_runs(folder: Path, config: Config, items: pl.DataFrame) -> Scored:
    """The two runs of a fused one, weighed as it has learned."""
    learned = read_json(folder / FUSION_FILE)
    item_id_I = items["item_id"].cast(pl.Int64).sort().to_numpy()
    first, second = (
        scored_baseline(str(getattr(config.model, name)), f"model.{name}", item_id_I)[0]
        for name in ("first_run", "second_run")
    )
    share, constant = float(learned["share"]), float(learned["constant"])
    return fused_rule(first, second, items, share, constant, config.decode.top_k)
