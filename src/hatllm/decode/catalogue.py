"""The items as the model reads and writes them."""

from dataclasses import dataclass

import torch

from hatllm.data.prompt import PromptBook
from hatllm.decode.trie import ItemTrie


@dataclass
class Catalogue:
    """Tokenised titles and their trie."""

    book: PromptBook
    trie: ItemTrie

    @classmethod
    def of(cls, book: PromptBook) -> "Catalogue":
        """Build the trie over a tokenised catalogue."""
        arrays = (book.target.flat, book.target.offset, book.item_id_I)
        return cls(book, ItemTrie.build(*map(torch.from_numpy, arrays)))
