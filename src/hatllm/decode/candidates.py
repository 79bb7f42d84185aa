"""Which titles may answer each user of a batch, as living and dead nodes of the trie.

A title that is no candidate is removed before the search, so that a beam still yields top_k titles
of what is left. Log-probabilities stay those over the whole catalogue, not renormalised over what
is left: P(title | title is a candidate) is proportional to P(title), so the ranking among what is
left is the right one. A node is dead for a user where all titles below it are excluded.

Dimension key: B users, G lists of allowed titles, N trie nodes, J titles, X excluded (user, title)
pairs, M queries, P places on a path.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hatllm.data.prompt import IntArray
from hatllm.decode.catalogue import Catalogue
from hatllm.decode.trie import ItemTrie

Items = Sequence[int] | IntArray


@dataclass(frozen=True)
class Candidates:
    """Living nodes of each user of a batch.

    Attributes:
        dead_key_X: ``user * num_nodes + node`` of nodes whose allowed titles are all excluded for
            the user, ascending. Shape (X,), int64.
        alive_GN: Nodes above some title of each list of allowed ones. Shape (G, N), bool.
        list_B: The list of each user, -1 = the whole catalogue. Shape (B,), int64.
        num_leaves_B: Living leaves. Shape (B,), int64.
        titles: Of each user (allowed, excluded) title numbers; allowed None = all.
    """

    dead_key_X: Tensor
    alive_GN: Tensor
    list_B: Tensor
    num_leaves_B: Tensor
    num_nodes: int
    titles: list[tuple[frozenset[int] | None, frozenset[int]]]

    def alive(self, user_M: Tensor, node_M: Tensor) -> Tensor:
        """Whether some candidate of the user lies at or below the node.

        Args:
            user_M: Row of the batch. Shape (M,), int64.
            node_M: Trie nodes below the root. Shape (M,), int64.

        Returns:
            Shape (M,), bool.
        """
        alive_M = torch.ones_like(node_M, dtype=torch.bool)
        if len(self.alive_GN):
            list_M = self.list_B[user_M]
            alive_M = (list_M < 0) | self.alive_GN[list_M.clamp(min=0), node_M]
        if len(self.dead_key_X):
            key_M = user_M * self.num_nodes + node_M
            found_M = torch.searchsorted(self.dead_key_X, key_M)
            alive_M &= self.dead_key_X[found_M.clamp_(max=len(self.dead_key_X) - 1)] != key_M
        return alive_M

    def allows(self, user: int, title: int) -> bool:
        """Whether a title, by its number, is a candidate of the user."""
        allowed, excluded = self.titles[user]
        return title not in excluded and (allowed is None or title in allowed)


def candidates_of(
    catalogue: Catalogue,
    exclude: Sequence[Items],
    only: Sequence[Items | None] | None,
    device: torch.device | str,
) -> Candidates:
    """The living nodes of a batch of users.

    An item stands for its title: the other items of the title go, or stay, with it. A leaf of
    several titles (that became the same tokens) stays while one of them is a candidate.

    Args:
        catalogue: Tokenised titles and their trie.
        exclude: For each user the items whose titles are no answers.
        only: For each user the items whose titles alone are answers, None = all; None = all users
            may be answered with all titles. Users that share one list object share its nodes.
        device: Where the result goes.

    Raises:
        ValueError: If an item is not in the catalogue.
    """
    excluded = [_titles_of(catalogue, items) for items in exclude]
    allowed, list_B = _lists(catalogue, only or [None] * len(excluded))
    count_GN = [_leaves_below(catalogue.trie, _leaves(catalogue, titles)) for titles in allowed]
    count_GN.append(catalogue.num_leaves_N)  # by list -1
    dead_key_X, num_dead_B = _dead(catalogue, excluded, allowed, count_GN, list_B)
    num_leaves_B = torch.tensor([int(count_GN[place][0]) for place in list_B]) - num_dead_B
    alive = [count_N > 0 for count_N in count_GN[:-1]]
    sets = [*(frozenset(titles.tolist()) for titles in allowed), None]  # by list -1: all
    return Candidates(
        dead_key_X.to(device),
        (torch.stack(alive) if alive else torch.empty(0, 0, dtype=torch.bool)).to(device),
        torch.tensor(list_B, dtype=torch.int64).to(device),
        num_leaves_B.to(device),
        catalogue.trie.num_nodes,
        [
            (sets[place], frozenset(titles.tolist()))
            for place, titles in zip(list_B, excluded, strict=True)
        ],
    )


def _titles_of(catalogue: Catalogue, items: Items) -> Tensor:
    """Title numbers of items, each once, ascending."""
    ids = torch.as_tensor(items, dtype=torch.int64).numpy()
    return torch.from_numpy(catalogue.book.title_I[catalogue.book.rows_of(ids)]).unique()


def _lists(catalogue: Catalogue, only: Sequence[Items | None]) -> tuple[list[Tensor], list[int]]:
    """Title numbers of each different list, and which one is each user's."""
    places: dict[int, int] = {}
    allowed, list_B = [], []
    for items in only:
        if items is not None and id(items) not in places:
            places[id(items)] = len(allowed)
            allowed.append(_titles_of(catalogue, items))
        list_B.append(-1 if items is None else places[id(items)])
    return allowed, list_B


def _leaves(catalogue: Catalogue, title_J: Tensor) -> Tensor:
    return catalogue.leaf_of_title_J[title_J].unique()


def _leaves_below(trie: ItemTrie, leaf_M: Tensor) -> Tensor:
    """How many of some different leaves lie at or below each node. Shape (N,), int64."""
    path_MP = trie.path_to(leaf_M)
    count_N = torch.bincount(path_MP[path_MP >= 0], minlength=trie.num_nodes)
    count_N[0] = len(leaf_M)
    return count_N


def _dead(
    catalogue: Catalogue,
    excluded: list[Tensor],
    allowed: list[Tensor],
    count_GN: list[Tensor],
    list_B: list[int],
) -> tuple[Tensor, Tensor]:
    """Keys of each user's dead nodes, ascending, and the number of dead leaves, (B,)."""
    num_nodes, leaf_J = catalogue.trie.num_nodes, catalogue.leaf_of_title_J
    # Titles that are no candidates anyway make nothing dead: their nodes are in no count.
    kept = [
        titles if place < 0 else titles[torch.isin(titles, allowed[place])]
        for titles, place in zip(excluded, list_B, strict=True)
    ]
    user_X = torch.arange(len(kept)).repeat_interleave(torch.tensor([len(t) for t in kept]).long())
    leaf_X = leaf_J[torch.cat([torch.empty(0, dtype=torch.int64), *kept])]
    key_X, gone_X = torch.unique(user_X * num_nodes + leaf_X, return_counts=True)
    user_X, leaf_X = key_X // num_nodes, key_X % num_nodes
    place_X = torch.tensor(list_B, dtype=torch.int64)[user_X]
    titles_X = torch.zeros_like(key_X)
    for place in set(list_B):
        here_X = place_X == place
        num_titles_N = catalogue.num_titles_N
        if place >= 0:
            num_titles_N = torch.bincount(leaf_J[allowed[place]], minlength=num_nodes)
        titles_X[here_X] = num_titles_N[leaf_X[here_X]]
    user_X, leaf_X = user_X[gone_X == titles_X], leaf_X[gone_X == titles_X]
    path_XP = catalogue.trie.path_to(leaf_X)
    key_XP = user_X[:, None] * num_nodes + path_XP
    key_X, gone_X = torch.unique(key_XP[path_XP >= 0], return_counts=True)
    place_X = torch.tensor(list_B, dtype=torch.int64)[key_X // num_nodes]
    below_X = torch.zeros_like(key_X)
    for place in set(list_B):
        here_X = place_X == place
        below_X[here_X] = count_GN[place][key_X[here_X] % num_nodes].long()
    return key_X[gone_X == below_X], torch.bincount(user_X, minlength=len(kept))
