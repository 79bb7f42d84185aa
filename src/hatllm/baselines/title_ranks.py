"""From scores of all items to ranks and the predictions table.

Every item of the catalogue is a candidate, the user's own history included, as for the LLM arms.
Equal scores are ordered by a hash of the item id, which knows nothing of the target: a model that
tells nothing apart ranks at random.

Dimension key: B examples of a batch, N items by ascending id, T titles, K answers, E items whose
title an item with a lower id has too.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from hatllm.metrics.ties import scrambled


@dataclass(frozen=True)
class TitleIndex:
    """Which items make one answer, and who comes first among equals.

    Attributes:
        item_id_N: Ascending item ids.
        title_N: Title number of each item; titles are numbered in tie order.
        tie_N: Place of each item in tie order.
        first_T: The item number with the lowest id of each title.
        extra_E: Item numbers that are no title's first.
    """

    item_id_N: NDArray[np.int64]
    title_N: Tensor
    tie_N: Tensor
    first_T: Tensor
    extra_E: Tensor

    @classmethod
    def of(cls, items: pl.DataFrame) -> "TitleIndex":
        """Index a catalogue with the columns item_id and title."""
        items = items.select(pl.col("item_id").cast(pl.Int64), "title").sort("item_id")
        number = pl.int_range(pl.len()).alias("number")
        items = items.with_columns(number, tie=scrambled(items["item_id"]))
        by_tie = items.sort("tie", "item_id")
        tie_N = by_tie.with_columns(place=pl.int_range(pl.len())).sort("number")["place"]
        firsts = items.unique("title", keep="first", maintain_order=True).sort("tie", "item_id")
        titles = firsts.select("title", title_number=pl.int_range(pl.len()))
        title_N = items.join(titles, on="title", maintain_order="left")["title_number"]
        first_T = _tensor(firsts["number"])
        is_extra_N = torch.ones(len(items), dtype=torch.bool)
        is_extra_N[first_T] = False
        return cls(
            items["item_id"].to_numpy(), _tensor(title_N), _tensor(tie_N), first_T,
            is_extra_N.nonzero().flatten(),
        )  # fmt: skip

    def title_scores(self, score_BN: Tensor) -> Tensor:
        """The best score among each title's items, shape (B, T)."""
        score_BT = score_BN[:, self.first_T.to(score_BN.device)]
        if len(self.extra_E) == 0:
            return score_BT
        extra_E = self.extra_E.to(score_BN.device)
        title_BE = self.title_N.to(score_BN.device)[extra_E].expand(len(score_BN), -1)
        return score_BT.scatter_reduce(1, title_BE, score_BN[:, extra_E], "amax")


def target_ranks(score_BN: Tensor, target_B: Tensor, index: TitleIndex) -> tuple[Tensor, Tensor]:
    """Exact ranks of the targets among all titles and among all items.

    Args:
        score_BN: Higher is better. Shape (B, N), float, finite.
        target_B: Item numbers. Shape (B,), int64.
        index: The catalogue.

    Returns:
        Rank of the target's title and of the target itself, each from 1; (B,), int64.

    Raises:
        ValueError: If a score is not finite.
    """
    if not score_BN.isfinite().all():
        raise ValueError("score_BN must be finite; was the learning rate too high?")
    device = score_BN.device
    tie_N, title_N = index.tie_N.to(device), index.title_N.to(device)
    score_BT = index.title_scores(score_BN)
    order_T = torch.arange(score_BT.shape[1], device=device)
    title_rank_B = _ranks(score_BT, title_N[target_B], order_T)
    return title_rank_B, _ranks(score_BN, target_B, tie_N)


def predictions_of(
    examples: pl.DataFrame, batches: Iterable[tuple[Tensor, Tensor]], index: TitleIndex, top_k: int
) -> pl.DataFrame:
    """The predictions table, with the columns of the other arms.

    Args:
        examples: Examples to answer: example_id, user_id, history, target.
        batches: score_BN and target_B of the examples, in their order.
        index: The catalogue.
        top_k: Titles answered for each example; ranks beyond it are null.

    Returns:
        One row an example. ``top_items`` holds each title's lowest id; ``top_log_probs`` is the
        log-softmax of the title scores, which falls along the list but is a probability only for
        a model trained with a softmax. Teacher-forced log-probabilities are null.

    Raises:
        ValueError: If a score is not finite.
    """
    parts = [_answers(score_BN, target_B, index, top_k) for score_BN, target_B in batches]
    title_rank_R, item_rank_R, top_RK, log_prob_RK, ambiguous_R = (
        torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True)
    )
    ranks = {"target_rank": title_rank_R, "target_item_rank": item_rank_R}
    table = examples.select(
        pl.col("example_id", "user_id").cast(pl.Int64),
        target_item=pl.col("target").cast(pl.Int64),
        history_length=pl.col("history").list.len().cast(pl.Int64),
    )
    table = table.with_columns(
        *(pl.Series(name, rank_R) for name, rank_R in ranks.items()),
        pl.Series("top_items", index.item_id_N[top_RK]).cast(pl.List(pl.Int64)),
        pl.Series("top_log_probs", log_prob_RK).cast(pl.List(pl.Float64)),
        pl.Series("ambiguous", ambiguous_R),
    )
    return table.select(
        "example_id",
        "user_id",
        "target_item",
        *(pl.when(pl.col(name) <= top_k).then(name).alias(name) for name in ranks),
        "top_items",
        "top_log_probs",
        target_trie_log_prob=pl.lit(None, pl.Float64),
        target_vocab_log_prob=pl.lit(None, pl.Float64),
        history_length="history_length",
        ambiguous="ambiguous",
    )


def _answers(
    score_BN: Tensor, target_B: Tensor, index: TitleIndex, top_k: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Title ranks, item ranks, first items and log-probs of the top K, shared titles."""
    title_rank_B, item_rank_B = target_ranks(score_BN, target_B, index)
    score_BT = index.title_scores(score_BN)
    # Stable: columns stand in tie order, so equal scores stay in it.
    top_BK = score_BT.argsort(dim=1, descending=True, stable=True)[:, :top_k]
    log_prob_BK = score_BT.double().log_softmax(dim=1).gather(1, top_BK)
    num_items_T = index.title_N.bincount()
    title_B = index.title_N[target_B.cpu()]
    return (
        title_rank_B, item_rank_B, index.first_T[top_BK.cpu()], log_prob_BK,
        num_items_T[title_B] > 1,
    )  # fmt: skip


def _ranks(score_BC: Tensor, own_B: Tensor, tie_C: Tensor) -> Tensor:
    """1 + the columns that score more, or equal and come first in tie order."""
    own_score_B1 = score_BC.gather(1, own_B[:, None])
    better_BC = score_BC > own_score_B1
    earlier_BC = (score_BC == own_score_B1) & (tie_C < tie_C[own_B][:, None])
    return 1 + (better_BC | earlier_BC).sum(dim=1)


def _tensor(column: pl.Series) -> Tensor:
    return torch.from_numpy(column.cast(pl.Int64).to_numpy(writable=True))
