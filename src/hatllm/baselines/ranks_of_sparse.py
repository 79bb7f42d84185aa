"""From scores that are zero for most items to ranks and answers, without rows of all items.

A row is the items that score above zero; all others are equal, and stand in tie order behind them.
The answers are those of :mod:`hatllm.baselines.ranks_of_scores`, which is the oracle in the tests;
a million titles take a fraction of its time.

Dimension key: B examples of a batch, I items by ascending id, J titles, W answers, P items of a row
that score, T titles of a row that score, C any of a row's columns that score, X columns that are
no answers.
"""

from collections.abc import Iterable, Iterator
from itertools import pairwise

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from torch import Tensor

from hatllm.baselines.ranks_of_scores import Answers, TitleIndex, table_of

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
NOTHING: Ints = np.empty(0, np.int64)


def sparse_predictions_of(
    examples: pl.DataFrame,
    batches: Iterable[csr_matrix],
    target_G: Tensor,
    index: TitleIndex,
    top_k: int,
    exclude_history: bool = False,
) -> pl.DataFrame:
    """The predictions table, as `predictions_of` makes it of dense scores.

    Args:
        examples: Examples to answer: example_id, user_id, history, target.
        batches: Scores of the examples in their order, none below zero. Shape (B, I) each.
        target_G: Item number of each example's target. Shape (G,), int64.
        index: The catalogue.
        top_k: Titles answered for each example.
        exclude_history: As `predictions_of`.
    """
    ranker, target = SparseRanker(index, top_k), target_G.tolist()
    gone = examples["history"] if exclude_history else None
    return table_of(examples, list(_parts(batches, target, ranker, gone)), index, top_k)


def _parts(
    batches: Iterable[csr_matrix], target: list[int], ranker: "SparseRanker", gone: pl.Series | None
) -> Iterator[Answers]:
    start = 0
    for score_BI in batches:
        score_BI.eliminate_zeros()
        rows, edges = [], score_BI.indptr.tolist()
        for number, (first, last) in enumerate(pairwise(edges), start=start):
            without = () if gone is None else gone[number].to_list()
            item_P, value_P = score_BI.indices[first:last], score_BI.data[first:last]
            rows.append(ranker(item_P, value_P, target[number], without))
        start += len(rows)
        yield _stacked(rows)


def _stacked(rows: list[tuple[int, int, Ints, Floats, bool]]) -> Answers:
    title_rank_B, item_rank_B, first_BW, log_prob_BW, shared_B = zip(*rows, strict=True)
    return (
        torch.tensor(title_rank_B),
        torch.tensor(item_rank_B),
        torch.from_numpy(np.stack(first_BW)),
        torch.from_numpy(np.stack(log_prob_BW)),
        torch.tensor(shared_B),
    )


class SparseRanker:
    """Ranks the target of one row after the other, and finds the row's best titles."""

    def __init__(self, index: TitleIndex, top_k: int) -> None:
        self.index, self.top_k = index, top_k
        self.title_I, self.tie_I = index.title_I.numpy(), index.tie_I.numpy()
        self.first_J, self.has_extra = index.first_J.numpy(), len(index.extra_X) > 0
        self.is_extra_I = np.isin(np.arange(len(self.title_I)), index.extra_X.numpy())
        self.num_items_J = np.bincount(self.title_I)
        self.item_of_title_I = np.argsort(self.title_I, kind="stable")
        self.start_J = np.cumsum(self.num_items_J) - self.num_items_J
        self.best_J = np.zeros(len(self.first_J))  # zero between rows

    def __call__(
        self, item_P: Ints, value_P: Floats, target: int, without: Iterable[int]
    ) -> tuple[int, int, Ints, Floats, bool]:
        """Answer one row.

        Args:
            item_P: Numbers of the items that score. Shape (P,).
            value_P: Their scores, above zero. Shape (P,).
            target: Number of the target.
            without: Item ids whose titles are no answers.

        Returns:
            Rank of the target's title and of the target, numbers of the best titles' first items
            and their log-probabilities, (W,) each, whether another item has the target's title.
        """
        gone_X, own = self._gone_titles(without), int(self.title_I[target])
        title_T, value_T = self._titles(item_P, value_P)
        log_total = _log_total(value_T, len(self.first_J) - len(title_T))
        left_T, left_value_T = _left(title_T, value_T, gone_X)
        title_rank = _rank(left_T, left_value_T, own, gone_X, len(self.first_J))
        item_rank = title_rank
        if self.has_extra:  # else each title is one item's, in the same order
            item_rank = self._item_rank(item_P, value_P, target, gone_X)
        first_W, log_prob_W = self._best(left_T, left_value_T, gone_X, log_total)
        return title_rank, item_rank, first_W, log_prob_W, bool(self.num_items_J[own] > 1)

    def _gone_titles(self, item_ids: Iterable[int]) -> Ints:
        number = np.searchsorted(self.index.item_id_I, np.fromiter(item_ids, np.int64))
        return np.unique(self.title_I[number]) if len(number) else NOTHING

    def _titles(self, item_P: Ints, value_P: Floats) -> tuple[Ints, Floats]:
        """The titles that score, in no order, each by its best item."""
        title_P, is_extra_P = self.title_I[item_P], self.is_extra_I[item_P]
        if not is_extra_P.any():
            return title_P, value_P
        first_T, more_T = title_P[~is_extra_P], title_P[is_extra_P]
        self.best_J[first_T] = value_P[~is_extra_P]
        new_T = np.unique(more_T[self.best_J[more_T] == 0])
        np.maximum.at(self.best_J, more_T, value_P[is_extra_P])
        title_T = np.concatenate([first_T, new_T])
        value_T = self.best_J[title_T]
        self.best_J[title_T] = 0
        return title_T, value_T

    def _item_rank(self, item_P: Ints, value_P: Floats, target: int, gone_X: Ints) -> int:
        spans = (slice(self.start_J[x], self.start_J[x] + self.num_items_J[x]) for x in gone_X)
        items = [self.item_of_title_I[span] for span in spans]
        gone_items_X = self.tie_I[np.concatenate(items)] if items else NOTHING
        left_P, value_P = _left(self.tie_I[item_P], value_P, gone_items_X)
        return _rank(left_P, value_P, int(self.tie_I[target]), gone_items_X, len(self.tie_I))

    def _best(
        self, title_T: Ints, value_T: Floats, gone_X: Ints, log_total: float
    ) -> tuple[Ints, Floats]:
        """The first items of the best titles, -1 where no title is left, and log-probabilities."""
        if len(title_T) > self.top_k:
            worst = np.partition(value_T, -self.top_k)[-self.top_k]
            title_T, value_T = title_T[value_T >= worst], value_T[value_T >= worst]
        order_W = np.lexsort((title_T, -value_T))[: self.top_k]
        title_W, value_W = title_T[order_W], value_T[order_W]
        missing = self.top_k - len(title_W)
        if missing:
            taken = np.concatenate([title_T, gone_X])
            some = np.arange(min(len(self.first_J), self.top_k + len(taken)))
            title_W = np.concatenate([title_W, np.setdiff1d(some, taken)[:missing]])
            value_W = np.concatenate([value_W, np.zeros(missing)])
        first_W = np.full(self.top_k, -1)
        first_W[: len(title_W)] = self.first_J[title_W]
        return first_W, value_W - log_total


def _log_total(value_T: Floats, num_zeros: int) -> float:
    """Log of the sum of exp(score) over all titles."""
    highest = max(float(value_T.max(initial=0.0)), 0.0)
    total = num_zeros * np.exp(-highest) + np.exp(value_T - highest).sum()
    return highest + float(np.log(total))


def _left(column_C: Ints, value_C: Floats, gone_X: Ints) -> tuple[Ints, Floats]:
    """Without the columns that are no answers."""
    if len(gone_X) == 0:
        return column_C, value_C
    is_left_C = ~np.isin(column_C, gone_X)
    return column_C[is_left_C], value_C[is_left_C]


def _rank(column_C: Ints, value_C: Floats, own: int, gone_X: Ints, num_columns: int) -> int:
    """Rank of a column among all, numbered in tie order; one that is gone comes after all."""
    if own in gone_X:
        return num_columns + 1
    value = value_C[column_C == own].sum()
    if value > 0:
        equal_before = ((value_C == value) & (column_C < own)).sum()
        return 1 + int((value_C > value).sum() + equal_before)
    zeros_before = own - (column_C < own).sum() - (gone_X < own).sum()
    return 1 + len(column_C) + int(zeros_before)
