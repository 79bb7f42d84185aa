"""From scores of all items to ranks and the predictions table.

Every item of the catalogue is a candidate, the user's own history included, as for the LLM arms.
Equal scores are ordered by a hash of the item id, which knows nothing of the target: a model that
tells nothing apart ranks at random.

Dimension key: B examples of a batch, I items by ascending id, J titles, W answers, X items whose
title an item with a lower id has too.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from hatllm.metrics.tie_order import scrambled


@dataclass(frozen=True)
class TitleIndex:
    """Which items make one answer, and who comes first among equals.

    Attributes:
        item_id_I: Ascending item ids.
        title_I: Title number of each item; titles are numbered in tie order.
        tie_I: Place of each item in tie order.
        first_J: The item number with the lowest id of each title.
        extra_X: Item numbers that are no title's first.
    """

    item_id_I: NDArray[np.int64]
    title_I: Tensor
    tie_I: Tensor
    first_J: Tensor
    extra_X: Tensor

    @classmethod
    def of(cls, items: pl.DataFrame) -> "TitleIndex":
        """Index a catalogue with the columns item_id and title."""
        items = items.select(pl.col("item_id").cast(pl.Int64), "title").sort("item_id")
        number = pl.int_range(pl.len()).alias("number")
        items = items.with_columns(number, tie=scrambled(items["item_id"]))
        by_tie = items.sort("tie", "item_id")
        tie_I = by_tie.with_columns(place=pl.int_range(pl.len())).sort("number")["place"]
        firsts = items.unique("title", keep="first", maintain_order=True).sort("tie", "item_id")
        titles = firsts.select("title", title_number=pl.int_range(pl.len()))
        title_I = items.join(titles, on="title", maintain_order="left")["title_number"]
        first_J = _tensor(firsts["number"])
        is_extra_I = torch.ones(len(items), dtype=torch.bool)
        is_extra_I[first_J] = False
        return cls(
            items["item_id"].to_numpy(), _tensor(title_I), _tensor(tie_I), first_J,
            is_extra_I.nonzero().flatten(),
        )  # fmt: skip

    def title_scores(self, score_BI: Tensor) -> Tensor:
        """The best score among each title's items, shape (B, J)."""
        score_BJ = _columns(score_BI, self.first_J)
        if len(self.extra_X) == 0:
            return score_BJ
        extra_X = self.extra_X.to(score_BI.device)
        title_BX = self.title_I.to(score_BI.device)[extra_X].expand(len(score_BI), -1)
        return score_BJ.scatter_reduce(1, title_BX, score_BI[:, extra_X], "amax")


def target_ranks(score_BI: Tensor, target_B: Tensor, index: TitleIndex) -> tuple[Tensor, Tensor]:
    """Exact ranks of the targets among all titles and among all items.

    Args:
        score_BI: Higher is better. Shape (B, I), float, finite.
        target_B: Item numbers. Shape (B,), int64.
        index: The catalogue.

    Returns:
        Rank of the target's title and of the target itself, each from 1; (B,), int64.

    Raises:
        ValueError: If a score is not finite.
    """
    return _both_ranks(score_BI, index.title_scores(score_BI), target_B, index)


def predictions_of(
    examples: pl.DataFrame, batches: Iterable[tuple[Tensor, Tensor]], index: TitleIndex, top_k: int
) -> pl.DataFrame:
    """The predictions table, with the columns of the other arms.

    Args:
        examples: Examples to answer: example_id, user_id, history, target.
        batches: score_BI and target_B of the examples, in their order.
        index: The catalogue.
        top_k: Titles answered for each example; ranks beyond it are null.

    Returns:
        One row an example. ``top_items`` holds each title's lowest id; ``top_log_probs`` is the
        log-softmax of the title scores, which falls along the list but is a probability only for
        a model trained with a softmax. Teacher-forced log-probabilities are null.

    Raises:
        ValueError: If a score is not finite.
    """
    parts = [_answers(score_BI, target_B, index, top_k) for score_BI, target_B in batches]
    title_rank_G, item_rank_G, top_GW, log_prob_GW, ambiguous_G = (
        torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True)
    )
    ranks = {"target_rank": title_rank_G, "target_item_rank": item_rank_G}
    table = examples.select(
        pl.col("example_id", "user_id").cast(pl.Int64),
        target_item=pl.col("target").cast(pl.Int64),
        history_length=pl.col("history").list.len().cast(pl.Int64),
    )
    table = table.with_columns(
        *(pl.Series(name, rank_G) for name, rank_G in ranks.items()),
        pl.Series("top_items", index.item_id_I[top_GW]).cast(pl.List(pl.Int64)),
        pl.Series("top_log_probs", log_prob_GW).cast(pl.List(pl.Float64)),
        pl.Series("ambiguous", ambiguous_G),
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
    score_BI: Tensor, target_B: Tensor, index: TitleIndex, top_k: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Title ranks, item ranks, first items and log-probs of the top K, shared titles."""
    score_BJ = index.title_scores(score_BI)
    title_rank_B, item_rank_B = _both_ranks(score_BI, score_BJ, target_B, index)
    top_BW = _first(score_BJ, top_k)
    log_prob_BW = score_BJ.double().log_softmax(dim=1).gather(1, top_BW)
    num_items_J = index.title_I.bincount()
    title_B = index.title_I[target_B.cpu()]
    return (
        title_rank_B, item_rank_B, index.first_J[top_BW.cpu()], log_prob_BW,
        num_items_J[title_B] > 1,
    )  # fmt: skip


def _first(score_BJ: Tensor, top_k: int) -> Tensor:
    """The columns of the best scores, best first; of equal ones those that stand first.

    As a stable sort of every row would give, without sorting a million titles for ten.
    """
    worst_B = score_BJ.topk(top_k, dim=1).values[:, -1]
    rows = []
    for score_J, worst in zip(score_BJ, worst_B, strict=True):
        (better,) = (score_J > worst).nonzero(as_tuple=True)
        (equal,) = (score_J == worst).nonzero(as_tuple=True)
        rows.append(torch.cat([better, equal[: top_k - len(better)]]))
    column_BW = torch.stack(rows)
    order_BW = score_BJ.gather(1, column_BW).argsort(dim=1, descending=True, stable=True)
    return column_BW.gather(1, order_BW)


def _columns(score_BI: Tensor, column_J: Tensor) -> Tensor:
    """Some columns in a chosen order, shape (B, J); on a CPU numpy takes half of torch's time."""
    if score_BI.device.type != "cpu":
        return score_BI[:, column_J.to(score_BI.device)]
    return torch.from_numpy(np.take(score_BI.numpy(), column_J.numpy(), axis=1))


def _both_ranks(
    score_BI: Tensor, score_BJ: Tensor, target_B: Tensor, index: TitleIndex
) -> tuple[Tensor, Tensor]:
    """As `target_ranks`, with the titles' scores at hand."""
    if not score_BI.sum(dim=1).isfinite().all():
        raise ValueError("score_BI must be finite; was the learning rate too high?")
    device = score_BI.device
    order_J = torch.arange(score_BJ.shape[1], device=device)
    title_rank_B = _ranks(score_BJ, index.title_I.to(device)[target_B], order_J)
    if len(index.extra_X) == 0:  # each title is one item's, in the same order
        return title_rank_B, title_rank_B
    return title_rank_B, _ranks(score_BI, target_B, index.tie_I.to(device))


def _ranks(score_BC: Tensor, own_B: Tensor, tie_C: Tensor) -> Tensor:
    """1 + the columns that score more, or equal and come first in tie order."""
    own_score_B1 = score_BC.gather(1, own_B[:, None])
    better_BC = score_BC > own_score_B1
    earlier_BC = (score_BC == own_score_B1) & (tie_C < tie_C[own_B][:, None])
    return 1 + (better_BC | earlier_BC).sum(dim=1)


def _tensor(column: pl.Series) -> Tensor:
    return torch.from_numpy(column.cast(pl.Int64).to_numpy(writable=True))
