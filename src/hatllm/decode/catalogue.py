"""The items as the model reads and writes them.

Dimension key: B users, I items by ascending id, J titles by number, N trie nodes.
"""

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol

import numpy as np
import polars as pl
import torch
from torch import Tensor

from hatllm.data.prompt import IntArray, PromptBook
from hatllm.decode.prior import branch_log_priors
from hatllm.decode.trie import ItemTrie
from hatllm.metrics.tie_order import scrambled


class Assistant(Protocol):
    """A recommender without text."""

    def __call__(self, histories: list[IntArray]) -> Tensor:
        """Log-probability of every item of the catalogue.

        Args:
            histories: Item ids of each user, oldest first.

        Returns:
            log_prob_BI: Items by ascending id. Shape (B, I), float, nats.
        """
        ...


@dataclass
class Catalogue:
    """Tokenised titles and their trie.

    Attributes:
        merged: The titles of each leaf that holds several, because they became the same tokens:
            the items of each title, ascending. The titles stand in the order of a hash of their
            lowest item id, as titles of equal scores do among the baselines.
    """

    book: PromptBook
    trie: ItemTrie
    assistant: Assistant | None = None  # knows the items by id, for decode=d3
    # How often each item is a train target, for decode.information_gain. Shape (I,), int64.
    train_count_I: Tensor | None = None
    # Log-share of each item's title, where titles have a prior. Shape (I,), float64, nats.
    log_share_I: Tensor | None = None
    merged: dict[int, list[list[int]]] = field(default_factory=dict)

    @classmethod
    def of(cls, book: PromptBook) -> "Catalogue":
        """Build the trie over a tokenised catalogue."""
        arrays = (book.target.flat, book.target.offset, book.item_id_I)
        trie = ItemTrie.build(*map(torch.from_numpy, arrays))
        return cls(book, trie, merged=_merged_titles(book, trie))

    def with_prior(self, log_share_I: Tensor) -> "Catalogue":
        """The catalogue in which titles have shares before any history is read.

        Args:
            log_share_I: As `branch_log_priors` takes it.
        """
        title_I = torch.from_numpy(self.book.title_I)
        log_prior_N = branch_log_priors(self.trie, title_I, log_share_I)
        trie = replace(self.trie, log_prior_N=log_prior_N)
        return replace(self, trie=trie, log_share_I=log_share_I)

    @cached_property
    def leaf_of_title_J(self) -> Tensor:
        """The leaf of each title, by the numbers of ``book.title_I``. Shape (J,), int64."""
        title_I = torch.from_numpy(self.book.title_I)
        leaf_J = title_I.new_empty(int(title_I.max()) + 1)
        leaf_J[title_I] = self.trie.item_leaf_I
        return leaf_J

    @cached_property
    def num_titles_N(self) -> Tensor:
        """Titles that end at each node of the trie. Shape (N,), int64."""
        return torch.bincount(self.leaf_of_title_J, minlength=self.trie.num_nodes)

    @cached_property
    def num_leaves_N(self) -> Tensor:
        """Leaves at or below each node of the trie. Shape (N,), int32."""
        count_N = (self.trie.num_children_N == 0).int()
        start = self.trie.num_nodes
        for size in reversed(torch.bincount(self.trie.depth_N).tolist()[1:]):
            level = slice(start - size, start)  # a level stands together
            count_N.index_add_(0, self.trie.parent_N[level], count_N[level].clone())
            start -= size
        return count_N

    def title_number(self, item_id: int) -> int:
        """The number of an item's title in ``book.title_I``."""
        return int(self.book.title_I[self.book.rows_of(np.array([item_id]))[0]])

    def titles_of(self, leaf: int) -> list[list[int]]:
        """The titles that end at a leaf, first the one that is recommended first.

        Returns:
            The items of each title, ascending. One title, but where titles became the same tokens.

        Raises:
            ValueError: If the node is not a leaf.
        """
        return self.merged.get(leaf) or [self.trie.items_of_leaf(leaf).tolist()]


def _merged_titles(book: PromptBook, trie: ItemTrie) -> dict[int, list[list[int]]]:
    items = pl.DataFrame(
        {"leaf": trie.item_leaf_I.numpy(), "title": book.title_I, "item_id": book.item_id_I}
    )
    titles = items.group_by("leaf", "title").agg(pl.col("item_id").sort())
    titles = titles.filter(pl.len().over("leaf") > 1).with_columns(
        first=pl.col("item_id").list.first()
    )
    titles = titles.with_columns(tie=scrambled(titles["first"])).sort("tie", "first")
    merged: dict[int, list[list[int]]] = {}
    for leaf, item_ids in titles.select("leaf", "item_id").iter_rows():
        merged.setdefault(leaf, []).append(item_ids)
    return merged
