"""Catalogues of any size: real titles first, then new ones recombined from them.

A new title begins as one real title and goes on as another does from the same place: it has the
length of a real title, and its tokens branch where real ones do.

Dimension key: I titles, S tokens of all titles.
"""

import numpy as np
import torch

from hatllm.data.prompt import PromptBook, Ragged
from hatllm.decode.catalogue import Catalogue
from hatllm.decode.trie import ItemTrie


def recombined(titles: Ragged, num_titles: int, seed: int) -> Ragged:
    """Different titles, the given ones in front.

    Args:
        titles: Token sequences that end in one end token.
        num_titles: How many are wanted; fewer than are given are the first ones.
        seed: Of the recombination; the same titles for the same seed, fewer are the first of more.

    Raises:
        ValueError: If so many different titles do not come about.
    """
    real = [titles[row].tolist() for row in range(len(titles.offset) - 1)]
    found = dict.fromkeys(map(tuple, real[:num_titles]))
    random = np.random.default_rng(seed)
    for _ in range(100):
        if len(found) >= num_titles:
            break
        pairs = random.integers(0, len(real), (2, num_titles)).tolist()
        for first, second, share in zip(*pairs, random.random(num_titles).tolist(), strict=True):
            head, tail = real[first], real[second]
            shorter = min(len(head), len(tail)) - 1
            cut = 1 + int(share * (shorter - 1))
            if shorter >= 1:
                found.setdefault((*head[:cut], *tail[cut:]))
            if len(found) >= num_titles:
                break
    if len(found) < num_titles:
        raise ValueError(f"{num_titles} titles asked for, {len(real)} real ones give {len(found)}")
    return Ragged.of(list(found))


def trie_of(titles: Ragged) -> ItemTrie:
    """The trie of some titles, numbered from 0."""
    ids_I = torch.arange(len(titles.offset) - 1)
    return ItemTrie.build(torch.from_numpy(titles.flat), torch.from_numpy(titles.offset), ids_I)


def catalogue_with(book: PromptBook, titles: Ragged) -> Catalogue:
    """A catalogue whose prompts are those of the book and whose answers are the titles.

    Its item ids are places among the titles; a search needs no others.
    """
    return Catalogue(book, trie_of(titles))
