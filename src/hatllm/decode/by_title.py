"""From the leaves that a search found to titles and their ranks.

An answer is a title, and so is a rank, as for the baselines. A leaf of the trie is a sequence of
tokens: where different titles became the same sequence, the model cannot tell them apart. They are
recommended one after the other, in an order that knows nothing of the target (see
`Catalogue.merged`), so that only the first of them has the leaf's rank, and each has an equal share
of the sequence's probability.

Dimension key: B users, W answers of a search.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from hatllm.decode.beam import Answers
from hatllm.decode.catalogue import Catalogue


class RankedTitle(NamedTuple):
    """One title of a list of recommendations."""

    item_ids: list[int]  # of items that share the title, ascending
    log_prob: float  # nats, the title's share of its token sequence's
    score: float  # of the token sequence, by which it is ranked


def ranked_titles(
    catalogue: Catalogue, answers: Answers, user: int, top_k: int
) -> list[RankedTitle]:
    """The titles of one user, best first.

    Args:
        catalogue: Which titles end at a leaf.
        answers: What a search found for a batch of users.
        user: Row in the batch.
        top_k: Titles at most.
    """
    found: list[RankedTitle] = []
    columns = (answers.leaf_BW, answers.log_prob_BW, answers.score_BW)
    for leaf, log_prob, score in zip(*(column[user].tolist() for column in columns), strict=True):
        if leaf >= 0 and len(found) < top_k:
            titles = catalogue.titles_of(leaf)
            share = math.log(len(titles))
            found += [RankedTitle(items, log_prob - share, score) for items in titles]
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
