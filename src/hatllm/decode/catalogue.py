"""The items as the model reads and writes them.

Dimension key: B users, I items by ascending id.
"""

from dataclasses import dataclass, field
from typing import Protocol

import polars as pl
import torch
from torch import Tensor

from hatllm.data.prompt import IntArray, PromptBook
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
    merged: dict[int, list[list[int]]] = field(default_factory=dict)

    @classmethod
    def of(cls, book: PromptBook) -> "Catalogue":
        """Build the trie over a tokenised catalogue."""
        arrays = (book.target.flat, book.target.offset, book.item_id_I)
        trie = ItemTrie.build(*map(torch.from_numpy, arrays))
        return cls(book, trie, merged=_merged_titles(book, trie))

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
