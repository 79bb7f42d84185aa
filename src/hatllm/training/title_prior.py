"""The shares of titles that a run's scores start from (`loss.prior`): counted, kept, read again."""

from pathlib import Path

import polars as pl
import torch
from torch import Tensor

from hatllm.baselines.popularity import rank_titles
from hatllm.data.prepare import Dataset
from hatllm.data.prompt import IntArray
from hatllm.data.sources.source_tables import read_parquet
from hatllm.data.train_interactions import item_counts
from hatllm.decode.catalogue import Catalogue
from hatllm.files import write_table
from hatllm.runs.run_files import TITLE_SHARES_FILE


def title_log_shares(prior: str, dataset: Dataset) -> Tensor:
    """The log-share of each item's title before any history is read.

    Args:
        prior: ``titles``: all alike. ``popularity``: those of the popularity baseline, counted in
            train with the pseudo-count that is best on valid.
        dataset: Prepared examples.

    Returns:
        Items by ascending id. Shape (I,), float64, nats.
    """
    items = dataset.items.select(pl.col("item_id").cast(pl.Int64), "title").sort("item_id")
    if prior == "titles":
        return torch.full((len(items),), 1 / items["title"].n_unique(), dtype=torch.float64).log()
    counts = item_counts(dataset.train_interactions["item_id"])
    ranked = rank_titles(counts, dataset.splits["valid"], items).sort("item_id")
    return torch.from_numpy(ranked["log_prob"].to_numpy(writable=True))


def write_log_shares(folder: Path, catalogue: Catalogue) -> None:
    """Keep the shares that a run was trained with; nothing where it has none."""
    if catalogue.log_share_I is not None:
        columns = {"item_id": catalogue.book.item_id_I, "log_share": catalogue.log_share_I.numpy()}
        write_table(folder / TITLE_SHARES_FILE, pl.DataFrame(columns))


def read_log_shares(folder: Path, item_id_I: IntArray) -> Tensor:
    """The shares that a finished run was trained with.

    Args:
        folder: The run's.
        item_id_I: The catalogue, ascending.

    Returns:
        Shape (I,), float64, nats.

    Raises:
        ValueError: If they are missing or damaged, or those of another catalogue.
    """
    path = folder / TITLE_SHARES_FILE
    table = read_parquet(path, ["item_id", "log_share"])
    if table["item_id"].to_list() != item_id_I.tolist():
        raise ValueError(f"{path} holds other items than the run's catalogue")
    log_shares = table["log_share"]
    if log_shares.dtype != pl.Float64 or not log_shares.is_finite().fill_null(False).all():
        raise ValueError(f"{path}: log_share must be a finite number, float64, for every item")
    return torch.from_numpy(log_shares.to_numpy(writable=True))
