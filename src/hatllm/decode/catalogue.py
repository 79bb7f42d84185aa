"""The items as the model reads and writes them.

Dimension key: B users, I items by ascending id.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from hatllm.data.prompt import IntArray, PromptBook
from hatllm.decode.trie import ItemTrie


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
    """Tokenised titles and their trie."""

    book: PromptBook
    trie: ItemTrie
    assistant: Assistant | None = None  # knows the items by id, for decode=d3

    @classmethod
    def of(cls, book: PromptBook) -> "Catalogue":
        """Build the trie over a tokenised catalogue."""
        arrays = (book.target.flat, book.target.offset, book.item_id_I)
        return cls(book, ItemTrie.build(*map(torch.from_numpy, arrays)))
