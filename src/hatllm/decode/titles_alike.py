"""From the leaves that a search found to titles and their ranks.

An answer is a title, and so is a rank, as for the baselines. A leaf of the trie is a sequence of
tokens: where different titles became the same sequence, the model cannot tell them apart. They are
recommended one after the other, in an order that knows nothing of the target (see
`Catalogue.merged`), so that only the first of them has the leaf's rank, and each has an equal share
of the sequence's probability.

Dimension key: B users, W answers of a search.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from hatllm.data.prompt import PromptBook
from hatllm.decode.beam import Answers
from hatllm.decode.candidates import Candidates
from hatllm.decode.catalogue import Catalogue

MOST_MERGED = 0.01  # share of the titles that may have the tokens of another one
MOST_UNKNOWN = 0.1  # share of the titles that may hold the unknown token


class RankedTitle(NamedTuple):
    """One title of a list of recommendations."""

    item_ids: list[int]  # of items that share the title, ascending
    log_prob: float  # nats, the title's share of its token sequence's
    score: float  # of the token sequence, by which it is ranked


def ranked_titles(
    catalogue: Catalogue,
    answers: Answers,
    user: int,
    top_k: int,
    candidates: Candidates | None = None,
) -> list[RankedTitle]:
    """The titles of one user, best first.

    Args:
        catalogue: Which titles end at a leaf.
        answers: What a search found for a batch of users.
        user: Row in the batch.
        top_k: Titles at most.
        candidates: Which titles may answer; a leaf that holds others too gives those alone, each
            with the share that it has among all. None = all.
    """
    found: list[RankedTitle] = []
    columns = (answers.leaf_BW, answers.log_prob_BW, answers.score_BW)
    for leaf, log_prob, score in zip(*(column[user].tolist() for column in columns), strict=True):
        if leaf >= 0 and len(found) < top_k:
            titles = catalogue.titles_of(leaf)
            share = math.log(len(titles))
            found += [
                RankedTitle(items, log_prob - share, score)
                for items in titles
                if candidates is None or candidates.allows(user, catalogue.title_number(items[0]))
            ]
    return found[:top_k]


def ranks_of(target: int, titles: Sequence[RankedTitle]) -> tuple[int, int] | None:
    """Rank of an item's title among titles, and its own among their items, each from 1.

    Args:
        target: Item id.
        titles: Best first; items that share a title stand in ascending id order.

    Returns:
        None where its title is not among them.
    """
    items_above = 0
    for rank, title in enumerate(titles, start=1):
        if target in title.item_ids:
            return rank, items_above + title.item_ids.index(target) + 1
        items_above += len(title.item_ids)
    return None


@dataclass(frozen=True)
class TitleCounts:
    """Different titles: all, those with the tokens of another one, those with unknown tokens."""

    titles: int
    merged: int
    unknown: int

    def note(self) -> str | None:
        """What a user should know; None = every title has known tokens of its own."""
        found = []
        if self.merged:
            found.append(
                f"{self.merged:,} of {self.titles:,} titles have the tokens of another title: such "
                "titles take consecutive ranks and share the probability of their tokens"
            )
        if self.unknown:
            found.append(
                f"{self.unknown:,} of {self.titles:,} titles hold the tokenizer's unknown token"
            )
        return "; ".join(found) or None


def count_titles(
    catalogue: Catalogue, titles: Mapping[int, str], unknown_id: int | None
) -> TitleCounts:
    """Count the titles that are not told apart, and refuse too many of them.

    Args:
        catalogue: The tokenised titles.
        titles: Title of each item id.
        unknown_id: The tokenizer's unknown token; None = it has none.

    Raises:
        ValueError: If more than MOST_MERGED of the titles have the tokens of another one, or more
            than MOST_UNKNOWN hold the unknown token; with two such titles.
    """
    book = catalogue.book
    unknown = _items_with(book, unknown_id)
    counts = TitleCounts(
        len(np.unique(book.title_I)),
        sum(map(len, catalogue.merged.values())),
        len(np.unique(book.title_I[unknown])),
    )
    if counts.merged > MOST_MERGED * counts.titles:
        items = [item_ids[0] for item_ids in next(iter(catalogue.merged.values()))[:2]]
        wrong = f"makes the same tokens of {counts.merged:,} of {counts.titles:,} different titles"
        limit = MOST_MERGED
    elif counts.unknown > MOST_UNKNOWN * counts.titles:
        items = book.item_id_I[unknown][:2].tolist()
        wrong = f"does not know all of {counts.unknown:,} of {counts.titles:,} titles"
        limit = MOST_UNKNOWN
    else:
        return counts
    named = " and ".join(f"{titles[item]!r} (item_id {item})" for item in items)
    raise ValueError(
        f"the tokenizer of the model {wrong}, such as {named}; at most {limit:.0%} may be so: take "
        "a model whose tokenizer knows the titles (model=NAME or model.source=NAME)"
    )


def _items_with(book: PromptBook, token: int | None) -> np.ndarray:
    """Rows of the items whose title holds a token before its end. Shape (any,), int64."""
    if token is None:
        return np.empty(0, np.int64)
    places = np.flatnonzero(book.target.flat == token)
    rows = np.searchsorted(book.target.offset, places, side="right") - 1
    return np.unique(rows[places < book.target.offset[rows + 1] - 1])
