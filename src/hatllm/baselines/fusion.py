"""Late fusion: the lists of two finished runs made one, by reciprocal ranks.

A title scores ``share / (constant + rank)`` in the first list plus ``(1 - share) / (constant +
rank)`` in the second, nothing where it does not stand (reciprocal rank fusion, Cormack et al. 2009,
with weights). Equal scores: the title that stands higher in the first list. Nothing but lists is
needed, so that any two kinds of run fuse, fused ones too.
"""

from collections.abc import Iterator

import numpy as np
import polars as pl
import torch
from torch import Tensor

from hatllm.baselines.ranks_of_scores import TitleIndex, predictions_table, top_titles
from hatllm.baselines.scored import Scored
from hatllm.baselines.sequences import Sequences
from hatllm.config import FusionConfig
from hatllm.metrics.ranking import discounted_gains

ROWS_A_BATCH = 256


def fused_lists(
    first: pl.DataFrame, second: pl.DataFrame, share: float, constant: float, top_k: int
) -> pl.DataFrame:
    """One list an example.

    Args:
        first: example_id, top_items: item ids, best first, none twice.
        second: The same examples.
        share: Of the first run, from 0 to 1.
        constant: Added to every rank, above 0.
        top_k: Titles kept.

    Returns:
        example_id, top_items, top_log_probs (log of a title's part of the scores of all titles of
        the example), by example_id.
    """
    parts = [
        _scored(first, share, constant).rename({"rank": "first"}),
        _scored(second, 1 - share, constant).rename({"rank": "second"}),
    ]
    titles = (
        pl.concat(parts, how="diagonal")
        .group_by("example_id", "item")
        .agg(pl.col("score").sum(), pl.col("first", "second").min())
    )
    titles = titles.filter(pl.col("score") > 0).sort(
        "example_id", "score", "first", "second",
        descending=[False, True, False, False], nulls_last=True,
    )  # fmt: skip
    lists = titles.group_by("example_id", maintain_order=True).agg(
        top_items=pl.col("item").head(top_k),
        top_log_probs=(pl.col("score") / pl.col("score").sum()).log().head(top_k),
    )
    every = first.select("example_id").join(lists, on="example_id", how="left")
    empty = pl.lit([], pl.List(pl.Int64)), pl.lit([], pl.List(pl.Float64))
    return every.with_columns(
        pl.col("top_items").fill_null(empty[0]), pl.col("top_log_probs").fill_null(empty[1])
    ).sort("example_id")


def _scored(frame: pl.DataFrame, weight: float, constant: float) -> pl.DataFrame:
    """Each title of each list, its rank from 1, and what it scores there."""
    long = frame.select("example_id", item="top_items").explode("item").drop_nulls()
    long = long.with_columns(rank=pl.int_range(1, pl.len() + 1).over("example_id"))
    return long.with_columns(score=weight / (constant + pl.col("rank")))


def fused_predictions(
    first: pl.DataFrame,
    second: pl.DataFrame,
    items: pl.DataFrame,
    share: float,
    constant: float,
    top_k: int,
) -> pl.DataFrame:
    """The predictions table of the fused lists.

    Args:
        first: Predictions table of a run.
        second: That of another, of the same examples.
        items: The catalogue: item_id, title.
        share: As `fused_lists`.
        constant: As `fused_lists`.
        top_k: Titles answered for each example; ranks beyond are null.

    Returns:
        One row an example. Log-probabilities of the target are null: lists have none.
    """
    lists = fused_lists(first, second, share, constant, top_k)
    titles = _title_places(items)
    kept = ("example_id", "user_id", "target_item", "history_length", "ambiguous")
    rows = first.select(kept).join(lists, on="example_id")
    rows = rows.join(titles, left_on="target_item", right_on="item_id", how="left")
    rows = rows.join(_ranks(lists, titles), on=["example_id", "lowest"], how="left")
    item_rank = pl.col("items_before") + pl.col("place")
    rows = rows.with_columns(target_rank="rank", target_item_rank=item_rank).sort("example_id")
    return predictions_table(rows, top_k)


def fused_rule(
    first: Scored, second: Scored, items: pl.DataFrame, share: float, constant: float, top_k: int
) -> Scored:
    """The fused lists of two models as scores of all items.

    Args:
        first: A model.
        second: Another, of the same items.
        items: The catalogue: item_id, title.
        share: As `fused_lists`.
        constant: As `fused_lists`.
        top_k: Titles of each model's list.

    Returns:
        An item's score is its title's part of the scores, 0 where the title stands in no list.
    """
    index = TitleIndex.of(items)

    def batches(rows: Sequences) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, len(rows), ROWS_A_BATCH):
            part = rows.cut(slice(start, start + ROWS_A_BATCH))
            lists = [_top_lists(model, part, index, top_k) for model in (first, second)]
            fused = fused_lists(lists[0], lists[1], share, constant, 2 * top_k)
            score_BI = torch.zeros(len(part), part.num_items, dtype=torch.float64)
            for row, chosen, log_probs in fused.iter_rows():
                number = np.searchsorted(index.item_id_I, chosen)
                score_BI[row, number] = torch.tensor(log_probs, dtype=torch.float64).exp()
            yield score_BI, part.target_G

    return Scored(batches, max(first.num_read, second.num_read))


def _top_lists(model: Scored, rows: Sequences, index: TitleIndex, top_k: int) -> pl.DataFrame:
    """A model's best titles by row: example_id (number of the row), top_items."""
    top_k = min(top_k, len(index.first_J))
    batches = model.batches(rows.newest(model.num_read))
    first_GW = torch.cat([top_titles(score_BI, index, top_k, None)[0] for score_BI, _ in batches])
    top_items = index.item_id_I[first_GW.numpy()].tolist()
    return pl.DataFrame({"example_id": range(len(rows)), "top_items": top_items})


def _title_places(items: pl.DataFrame) -> pl.DataFrame:
    """Of each item the lowest id of its title, its place among them, and their number."""
    titles = items.select(pl.col("item_id").cast(pl.Int64), "title").sort("item_id")
    return titles.select(
        "item_id",
        lowest=pl.col("item_id").min().over("title"),
        place=pl.int_range(1, pl.len() + 1).over("title"),
        of_title=pl.len().over("title"),
    )


def _ranks(lists: pl.DataFrame, titles: pl.DataFrame) -> pl.DataFrame:
    """Rank of each title of each list, and how many items stand before its first."""
    long = lists.select("example_id", lowest="top_items").explode("lowest").drop_nulls()
    sizes = titles.unique("lowest").select("lowest", "of_title")
    long = long.join(sizes, on="lowest", maintain_order="left")
    return long.select(
        "example_id",
        "lowest",
        rank=pl.int_range(1, pl.len() + 1).over("example_id"),
        items_before=(pl.col("of_title").cum_sum() - pl.col("of_title")).over("example_id"),
    )


def gain_of_shares(
    first: pl.DataFrame,
    second: pl.DataFrame,
    items: pl.DataFrame,
    config: FusionConfig,
    top_k: int,
) -> dict[float, float]:
    """NDCG@10 (of shorter lists: at their length) by the share of the first run.

    Args:
        first: Predictions table of the first run, of valid examples.
        second: That of the second.
        items: The catalogue.
        config: Constant, and how many shares are tried.
        top_k: Titles answered.

    Returns:
        Share -> NDCG, by ascending share from 0 to 1.
    """
    found = {}
    for number in range(config.steps + 1):
        share = number / config.steps
        table = fused_predictions(first, second, items, share, config.constant, top_k)
        rank_B = torch.tensor(table["target_rank"].fill_null(0).to_list())
        found[share] = float(discounted_gains(rank_B, min(10, top_k)).mean())
    return found


def best_share(gains: dict[float, float]) -> float:
    """The share with the highest gain; of equal ones the largest: the first run's list."""
    return max(gains, key=lambda share: (gains[share], share))
