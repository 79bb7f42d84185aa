"""From scores of all items to ranks and the predictions table.

Every item of the catalogue is a candidate, the user's own history included unless the run excludes
it, as for the LLM arms.
Equal scores are ordered by a hash of the item id, which knows nothing of the target: a model that
tells nothing apart ranks at random.

Dimension key: B examples of a batch, I items by ascending id, J titles, W answers, X items whose
title an item with a lower id has too.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from hatllm.metrics.tie_order import scrambled

RANKS = ("target_rank", "target_item_rank")


def predictions_table(rows: pl.DataFrame, top_k: int) -> pl.DataFrame:
    """Lay rows out as a predictions table.

    Args:
        rows: example_id, user_id, target_item, target_rank and target_item_rank (from 1; null = not
            found), top_items, top_log_probs, history_length, ambiguous; target_trie_log_prob (nats)
            where the model has one.
        top_k: Titles answered for each example; ranks beyond are no ranks.

    Returns:
        One row an example, in their order. target_vocab_log_prob is null: no baseline writes words.
    """
    trie_log_prob = "target_trie_log_prob"
    return rows.select(
        pl.col("example_id", "user_id", "target_item").cast(pl.Int64),
        *(pl.when(pl.col(name) <= top_k).then(name).cast(pl.Int64).alias(name) for name in RANKS),
        "top_items",
        "top_log_probs",
        pl.col(trie_log_prob) if trie_log_prob in rows.columns
        else pl.lit(None, pl.Float64).alias(trie_log_prob),
        target_vocab_log_prob=pl.lit(None, pl.Float64),
        history_length=pl.col("history_length").cast(pl.Int64),
        ambiguous="ambiguous",
    )  # fmt: skip


Answers = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]  # of one batch: see `table_of`


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

    def holds(self, items: pl.Series) -> Tensor:
        """Which titles stand in each list of item ids. Shape (rows, J), bool.

        Raises:
            ValueError: If an item is not in the catalogue.
        """
        ids = items.explode().drop_nulls().cast(pl.Int64).to_numpy()
        number = np.searchsorted(self.item_id_I, ids).clip(max=len(self.item_id_I) - 1)
        if (self.item_id_I[number] != ids).any():
            unknown = ids[self.item_id_I[number] != ids][0]
            raise ValueError(f"item_id {unknown} is not in the catalogue")
        row = np.repeat(np.arange(len(items)), items.list.len().to_numpy())
        holds_BJ = torch.zeros(len(items), len(self.first_J), dtype=torch.bool)
        holds_BJ[torch.from_numpy(row), self.title_I[torch.from_numpy(number)]] = True
        return holds_BJ

    def title_scores(self, score_BI: Tensor) -> Tensor:
        """The best score among each title's items, shape (B, J)."""
        score_BJ = _columns(score_BI, self.first_J)
        if len(self.extra_X) == 0:
            return score_BJ
        extra_X = self.extra_X.to(score_BI.device)
        title_BX = self.title_I.to(score_BI.device)[extra_X].expand(len(score_BI), -1)
        return score_BJ.scatter_reduce(1, title_BX, score_BI[:, extra_X], "amax")


def target_ranks(
    score_BI: Tensor, target_B: Tensor, index: TitleIndex, is_gone_BJ: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Exact ranks of the targets among all titles and among all items.

    Args:
        score_BI: Higher is better. Shape (B, I), float, finite.
        target_B: Item numbers. Shape (B,), int64.
        index: The catalogue.
        is_gone_BJ: Titles that are no answers; None = all are. Shape (B, J), bool.

    Returns:
        Rank of the target's title and of the target itself, each from 1; (B,), int64. A target
        whose title is gone comes after all titles, after all items.

    Raises:
        ValueError: If a score is not finite.
    """
    return _both_ranks(score_BI, index.title_scores(score_BI), target_B, index, is_gone_BJ)


def predictions_of(
    examples: pl.DataFrame,
    batches: Iterable[tuple[Tensor, Tensor]],
    index: TitleIndex,
    top_k: int,
    exclude_history: bool = False,
) -> pl.DataFrame:
    """The predictions table, with the columns of the other arms.

    Args:
        examples: Examples to answer: example_id, user_id, history, target.
        batches: score_BI and target_B of the examples, in their order.
        index: The catalogue.
        top_k: Titles answered for each example; ranks beyond it are null.
        exclude_history: Whether the titles of an example's whole history are no answers. A target
            among them has no rank; log-probabilities stay those among all titles.

    Returns:
        One row an example. ``top_items`` holds each title's lowest id; ``top_log_probs`` is the
        log-softmax of the title scores, which falls along the list but is a probability only for
        a model trained with a softmax. Teacher-forced log-probabilities are null.

    Raises:
        ValueError: If a score is not finite.
    """
    gone = examples["history"] if exclude_history else None
    return table_of(examples, list(_parts(batches, index, top_k, gone)), index, top_k)


def table_of(
    examples: pl.DataFrame, parts: list[Answers], index: TitleIndex, top_k: int
) -> pl.DataFrame:
    """The predictions table of what was found for each batch.

    Args:
        examples: As `predictions_of`.
        parts: Title ranks, item ranks, first items and log-probabilities of the best titles, and
            whether another item has the target's title; of the examples in their order.
        index: As `predictions_of`.
        top_k: As `predictions_of`.
    """
    title_rank_G, item_rank_G, top_GW, log_prob_GW, ambiguous_G = (
        torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True)
    )
    rows = examples.select(
        "example_id",
        "user_id",
        target_item="target",
        history_length=pl.col("history").list.len(),
    )
    rows = rows.with_columns(
        pl.Series("target_rank", title_rank_G),
        pl.Series("target_item_rank", item_rank_G),
        *_lists(index.item_id_I[top_GW], log_prob_GW, top_GW >= 0),
        pl.Series("ambiguous", ambiguous_G),
    )
    return predictions_table(rows, top_k)


def _parts(
    batches: Iterable[tuple[Tensor, Tensor]], index: TitleIndex, top_k: int, gone: pl.Series | None
) -> Iterator[Answers]:
    """`_answers` of each batch; gone are the items of each row whose titles are no answers."""
    start = 0
    for score_BI, target_B in batches:
        is_gone_BJ = None
        if gone is not None:
            is_gone_BJ = index.holds(gone.slice(start, len(score_BI))).to(score_BI.device)
        yield _answers(score_BI, target_B, index, top_k, is_gone_BJ)
        start += len(score_BI)


def _answers(
    score_BI: Tensor,
    target_B: Tensor,
    index: TitleIndex,
    top_k: int,
    is_gone_BJ: Tensor | None,
) -> Answers:
    """Title ranks, item ranks, first items and log-probs of the top K, shared titles."""
    score_BJ = index.title_scores(score_BI)
    title_rank_B, item_rank_B = _both_ranks(score_BI, score_BJ, target_B, index, is_gone_BJ)
    first_BW, log_prob_BW = _top_titles(score_BJ, index, top_k, is_gone_BJ)
    num_items_J = index.title_I.bincount()
    title_B = index.title_I[target_B.cpu()]
    return title_rank_B, item_rank_B, first_BW, log_prob_BW, num_items_J[title_B] > 1


def top_titles(
    score_BI: Tensor, index: TitleIndex, top_k: int, is_gone_BJ: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The best titles of each row.

    Args:
        score_BI: Higher is better. Shape (B, I), float, finite.
        index: The catalogue.
        top_k: Titles a row, at most all.
        is_gone_BJ: Titles that are no answers; None = all are. Shape (B, J), bool.

    Returns:
        Number of each title's first item, -1 where no title is left, on the CPU, and the title's
        log-softmax among all titles; each (B, top_k).
    """
    return _top_titles(index.title_scores(score_BI), index, top_k, is_gone_BJ)


def _top_titles(
    score_BJ: Tensor, index: TitleIndex, top_k: int, is_gone_BJ: Tensor | None
) -> tuple[Tensor, Tensor]:
    log_prob_BJ = score_BJ.double().log_softmax(dim=1)
    if is_gone_BJ is not None:
        score_BJ = score_BJ.masked_fill(is_gone_BJ, -torch.inf)
    top_BW = _first(score_BJ, top_k)
    is_left_BW = (score_BJ.gather(1, top_BW) > -torch.inf).cpu()
    return (
        index.first_J[top_BW.cpu()].masked_fill(~is_left_BW, -1),
        log_prob_BJ.gather(1, top_BW),
    )


def _lists(
    item_GW: NDArray[np.int64], log_prob_GW: NDArray[np.float64], is_left_GW: NDArray[np.bool_]
) -> list[pl.Series]:
    """top_items and top_log_probs, without the places that no title is left for."""
    columns = []
    for name, value_GW in (("top_items", item_GW), ("top_log_probs", log_prob_GW)):
        kind = pl.List(pl.Int64 if name == "top_items" else pl.Float64)
        if is_left_GW.all():
            columns.append(pl.Series(name, value_GW).cast(kind))
        else:
            rows = [row[kept].tolist() for row, kept in zip(value_GW, is_left_GW, strict=True)]
            columns.append(pl.Series(name, rows, dtype=kind))
    return columns


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
    score_BI: Tensor,
    score_BJ: Tensor,
    target_B: Tensor,
    index: TitleIndex,
    is_gone_BJ: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """As `target_ranks`, with the titles' scores at hand."""
    if not score_BI.sum(dim=1).isfinite().all():
        raise ValueError("score_BI must be finite; was the learning rate too high?")
    device = score_BI.device
    title_I = index.title_I.to(device)
    order_J = torch.arange(score_BJ.shape[1], device=device)
    if is_gone_BJ is not None:
        score_BJ = score_BJ.masked_fill(is_gone_BJ, -torch.inf)
        score_BI = score_BI.masked_fill(is_gone_BJ[:, title_I], -torch.inf)
    item_rank_B = title_rank_B = _ranks(score_BJ, title_I[target_B], order_J)
    if len(index.extra_X) > 0:  # else each title is one item's, in the same order
        item_rank_B = _ranks(score_BI, target_B, index.tie_I.to(device))
    if is_gone_BJ is None:
        return title_rank_B, item_rank_B
    has_none_B = is_gone_BJ.gather(1, title_I[target_B][:, None])[:, 0]
    return (
        title_rank_B.masked_fill(has_none_B, score_BJ.shape[1] + 1),
        item_rank_B.masked_fill(has_none_B, score_BI.shape[1] + 1),
    )


def _ranks(score_BC: Tensor, own_B: Tensor, tie_C: Tensor) -> Tensor:
    """1 + the columns that score more, or equal and come first in tie order."""
    own_score_B1 = score_BC.gather(1, own_B[:, None])
    better_BC = score_BC > own_score_B1
    earlier_BC = (score_BC == own_score_B1) & (tie_C < tie_C[own_B][:, None])
    return 1 + (better_BC | earlier_BC).sum(dim=1)


def _tensor(column: pl.Series) -> Tensor:
    return torch.from_numpy(column.cast(pl.Int64).to_numpy(writable=True))
