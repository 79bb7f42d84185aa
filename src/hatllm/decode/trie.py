"""The item trie: which tokens may follow a prefix of a title, as flat arrays.

Dimension key: N trie nodes, F leaves, I items, T tokens of all sequences in one flat tensor,
M queries, C answers of all queries in one flat tensor, P places on a path, X sequences still
growing in ``build``.
"""

from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

NAMED_IDS = 5  # ids an error message names before it says how many more there are


@dataclass(frozen=True, eq=False)
class ItemTrie:
    """Prefix tree over the token sequences of all titles; node 0 is the root.

    Nodes stand in breadth-first order, the children of one node side by side and sorted by token.
    The node -1 means "no node" in every query: it has no children.

    Attributes:
        token_N: Token that leads into the node; root: -1. Shape (N,), int64.
        parent_N: Node above; root: -1. Shape (N,), int64.
        depth_N: Tokens from the root to the node; root: 0. Shape (N,), int64.
        first_child_N: The children of n are the nodes from ``first_child_N[n]`` on, as many as
            ``num_children_N[n]``; without meaning at a leaf. Shape (N,), int64.
        num_children_N: Legal next tokens; 0 = leaf, 1 = forced. Shape (N,), int64.
        edge_key_N: ``parent * vocab_size + token``, ascending; root: -1. Shape (N,), int64.
        leaf_F: The leaf nodes, ascending. Shape (F,), int64.
        item_offset_F: The items of leaf ``leaf_F[f]`` stand in ``leaf_item_I`` from
            ``item_offset_F[f]`` to ``item_offset_F[f + 1]``. Shape (F + 1,), int64.
        leaf_item_I: Item ids grouped by leaf, ascending inside a leaf. Shape (I,), int64.
        item_id_I: All item ids, ascending. Shape (I,), int64.
        item_leaf_I: Leaf node of each of ``item_id_I``. Shape (I,), int64.
        vocab_size: One more than the largest token of any title.
        max_depth: Tokens of the longest title.
        log_prior_N: Log-probability of the node's token among its siblings without any history, as
            `decode.prior` makes it; None = the logits stand alone. Shape (N,), float32, nats.
    """

    token_N: Tensor
    parent_N: Tensor
    depth_N: Tensor
    first_child_N: Tensor
    num_children_N: Tensor
    edge_key_N: Tensor
    leaf_F: Tensor
    item_offset_F: Tensor
    leaf_item_I: Tensor
    item_id_I: Tensor
    item_leaf_I: Tensor
    vocab_size: int
    max_depth: int
    log_prior_N: Tensor | None = None

    @staticmethod
    def build(tokens: Tensor, offsets: Tensor, item_ids: Tensor) -> "ItemTrie":
        """Build the trie of a catalogue, one vectorised step a level.

        Args:
            tokens: Tokens of all titles, one title after the other, each ending in the same end
                token. Shape (T,), integer, >= 0.
            offsets: Title i is ``tokens[offsets[i]:offsets[i + 1]]``. Shape (I + 1,), int64.
            item_ids: Catalogue id of each title. Shape (I,), int64, no id twice.

        Returns:
            The trie, on the device of ``tokens``. Equal titles share a leaf.

        Raises:
            ValueError: If the shapes do not fit, an item id stands twice, a token is negative, a
                title is empty, or a title is a proper prefix of another.
        """
        _check_catalogue(tokens, offsets, item_ids)
        vocab_size = int(tokens.max()) + 1
        edge_key_N, depth_N, end_node_I = _grow(tokens, offsets, vocab_size)
        parent_N = edge_key_N.div(vocab_size, rounding_mode="floor")
        token_N = edge_key_N.remainder(vocab_size)
        token_N[0] = -1
        num_children_N = parent_N[1:].bincount(minlength=edge_key_N.numel())
        item_id_I, order_I = item_ids.long().sort()
        item_leaf_I = end_node_I[order_I]
        leaf_F, item_offset_F, by_leaf_I = _grouped(item_leaf_I)
        trie = ItemTrie(
            token_N, parent_N, depth_N,
            num_children_N.cumsum(0).sub_(num_children_N).add_(1), num_children_N, edge_key_N,
            leaf_F, item_offset_F, item_id_I[by_leaf_I], item_id_I, item_leaf_I,
            vocab_size, int(depth_N[-1]),
        )  # fmt: skip
        _check_prefix_free(trie)
        return trie

    @property
    def num_nodes(self) -> int:
        """Nodes, root and leaves included."""
        return self.token_N.shape[0]

    @property
    def num_leaves(self) -> int:
        """Different titles."""
        return self.leaf_F.shape[0]

    @property
    def num_items(self) -> int:
        """Items of the catalogue; more than the leaves where items share a title."""
        return self.item_id_I.shape[0]

    @cached_property
    def is_branching_N(self) -> Tensor:
        """True where the next token is a choice: two or more children. Shape (N,), bool."""
        return self.num_children_N >= 2

    def to(self, device: torch.device | str) -> "ItemTrie":
        """Return the same trie with every array on ``device``; itself where it is there already."""
        if self.token_N.device == torch.device(device):
            return self
        values = ((f.name, getattr(self, f.name)) for f in fields(self))
        moved: dict[str, Any] = {n: v.to(device) for n, v in values if isinstance(v, Tensor)}
        return replace(self, **moved)

    def children(self, node_M: Tensor) -> tuple[Tensor, Tensor]:
        """List the children of each node, all in one flat tensor.

        Args:
            node_M: Nodes; -1 and leaves have no children. Shape (M,), int64.

        Returns:
            row_C: Which query each child answers, ascending. Shape (C,), int64.
            node_C: The child nodes, by token within a query. Shape (C,), int64.
        """
        _check_rank("node_M", node_M)
        # -1 reads the last node, which breadth-first order makes a leaf.
        return _expand(self.first_child_N[node_M], self.num_children_N[node_M])

    def child(self, node_M: Tensor, token_M: Tensor) -> Tensor:
        """Follow one token from each node.

        Args:
            node_M: Nodes; -1 leads nowhere. Any shape, int64.
            token_M: Tokens. Same shape, int64.

        Returns:
            node_M: The child, or -1 where the token is not legal. Same shape, int64.

        Raises:
            ValueError: If the shapes differ.
        """
        if node_M.shape != token_M.shape:
            raise ValueError(
                f"node_M and token_M must have one shape, got {tuple(node_M.shape)} and "
                f"{tuple(token_M.shape)}"
            )
        # A token outside the titles' range would name another node's edge.
        exists_M = (node_M >= 0) & (token_M >= 0) & (token_M < self.vocab_size)
        key_M = node_M * self.vocab_size + token_M
        found_M = torch.searchsorted(self.edge_key_N, key_M).clamp_(max=self.num_nodes - 1)
        return found_M.masked_fill(~exists_M | (self.edge_key_N[found_M] != key_M), -1)

    def path(self, tokens: Tensor, offsets: Tensor) -> Tensor:
        """Walk token sequences down from the root.

        Args:
            tokens: Tokens of all sequences, one after the other. Shape (T,), int64.
            offsets: Sequence m is ``tokens[offsets[m]:offsets[m + 1]]``. Shape (M + 1,), int64.

        Returns:
            node_T: Node after each token; -1 from a sequence's first illegal token on. Shape (T,),
                int64.
        """
        _check_offsets(tokens, offsets)
        node_T = torch.full_like(tokens, -1, dtype=torch.int64)
        at_X, end_X = offsets[:-1], offsets[1:]
        node_X = torch.zeros_like(at_X)
        while (growing_X := at_X < end_X).any():
            at_X, end_X, node_X = at_X[growing_X], end_X[growing_X], node_X[growing_X]
            node_X = self.child(node_X, tokens[at_X])
            node_T[at_X] = node_X
            at_X = at_X + 1
        return node_T

    def path_to(self, leaf_M: Tensor) -> Tensor:
        """List the nodes from below the root down to each leaf (or any other node).

        Args:
            leaf_M: Nodes. Shape (M,), int64, >= 0.

        Returns:
            node_MP: Node at depth 1, 2, ... of each path, -1 after its end; P is the largest depth
                among ``leaf_M``. Shape (M, P), int64.
        """
        _check_rank("leaf_M", leaf_M)
        max_depth = int(self.depth_N[leaf_M].max()) if leaf_M.numel() else 0
        node_MP = leaf_M.new_full((leaf_M.shape[0], max_depth), -1)
        node_M = leaf_M
        for depth in range(max_depth, 0, -1):
            here_M = self.depth_N[node_M] == depth
            node_MP[:, depth - 1] = node_M.masked_fill(~here_M, -1)
            node_M = torch.where(here_M, self.parent_N[node_M], node_M)
        return node_MP

    def leaf_of_item(self, item_id_M: Tensor) -> Tensor:
        """Look up the leaf at which each item's title ends.

        Args:
            item_id_M: Item ids. Any shape, int64.

        Returns:
            leaf_M: Leaf nodes. Same shape, int64.

        Raises:
            ValueError: If an id is not in the catalogue.
        """
        found_M, known_M = _find(self.item_id_I, item_id_M)
        if not known_M.all():
            raise ValueError(f"item_id {_named(item_id_M[~known_M])}: not in the catalogue")
        return self.item_leaf_I[found_M]

    def items_of_leaves(self, leaf_M: Tensor) -> tuple[Tensor, Tensor]:
        """List the items that share each leaf's title, all in one flat tensor.

        Args:
            leaf_M: Leaf nodes. Shape (M,), int64.

        Returns:
            row_C: Which query each item answers, ascending. Shape (C,), int64.
            item_id_C: Item ids, ascending within a query. Shape (C,), int64.

        Raises:
            ValueError: If a node is not a leaf.
        """
        _check_rank("leaf_M", leaf_M)
        found_M, is_leaf_M = _find(self.leaf_F, leaf_M)
        if not is_leaf_M.all():
            raise ValueError(f"node {_named(leaf_M[~is_leaf_M])}: not a leaf of the trie")
        start_M = self.item_offset_F[found_M]
        row_C, position_C = _expand(start_M, self.item_offset_F[found_M + 1] - start_M)
        return row_C, self.leaf_item_I[position_C]

    def items_of_leaf(self, leaf: int) -> Tensor:
        """List the ids of the items that share one leaf's title, ascending. Shape (C,), int64.

        Raises:
            ValueError: If the node is not a leaf.
        """
        return self.items_of_leaves(self.leaf_F.new_tensor([int(leaf)]))[1]


def _grow(tokens: Tensor, offsets: Tensor, vocab_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Make the nodes level by level: rows at one node with one next token go on together.

    Returns:
        edge_key_N: ``parent * vocab_size + token`` of each node; root: -1. Shape (N,), int64.
        depth_N: Depth of each node. Shape (N,), int64.
        end_node_I: Node at which each title ends. Shape (I,), int64.
    """
    length_I = offsets.diff()
    end_node_I = torch.empty_like(length_I)
    row_X = torch.arange(length_I.numel(), device=tokens.device)
    node_X = torch.zeros_like(row_X)
    levels, num_nodes = [row_X.new_full((1,), -1)], 1
    for depth in range(1, int(length_I.max()) + 1):
        token_X = tokens[offsets[row_X] + (depth - 1)]
        key_X, order_X = (node_X * vocab_size + token_X).sort()
        row_X = row_X[order_X]
        key_level, child_X = torch.unique_consecutive(key_X, return_inverse=True)
        node_X = child_X.add_(num_nodes)
        levels.append(key_level)
        num_nodes += key_level.numel()
        ended_X = length_I[row_X] == depth
        end_node_I[row_X[ended_X]] = node_X[ended_X]
        row_X, node_X = row_X[~ended_X], node_X[~ended_X]
    sizes = torch.tensor([level.numel() for level in levels], device=tokens.device)
    depth_N = torch.arange(len(levels), device=tokens.device).repeat_interleave(sizes)
    return torch.cat(levels), depth_N, end_node_I


def _grouped(leaf_I: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The leaves, where the items of each begin, and the order that puts these side by side."""
    grouped_I, by_leaf_I = leaf_I.sort(stable=True)
    leaf_F, num_items_F = torch.unique_consecutive(grouped_I, return_counts=True)
    return leaf_F, torch.cat([num_items_F.new_zeros(1), num_items_F.cumsum(0)]), by_leaf_I


def _expand(start_M: Tensor, count_M: Tensor) -> tuple[Tensor, Tensor]:
    """Write out the ranges ``start .. start + count - 1``: row and value of every element."""
    row_C = torch.arange(count_M.numel(), device=count_M.device).repeat_interleave(count_M)
    shift_M = start_M - (count_M.cumsum(0) - count_M)
    return row_C, torch.arange(row_C.numel(), device=row_C.device) + shift_M[row_C]


def _find(sorted_X: Tensor, value_M: Tensor) -> tuple[Tensor, Tensor]:
    """Return where each value stands in a sorted tensor and whether it stands there at all."""
    found_M = torch.searchsorted(sorted_X, value_M).clamp_(max=sorted_X.numel() - 1)
    return found_M, sorted_X[found_M] == value_M


def _named(id_X: Tensor) -> str:
    shown = ", ".join(str(i) for i in id_X[:NAMED_IDS].tolist())
    return shown + (f" and {id_X.numel() - NAMED_IDS} more" if id_X.numel() > NAMED_IDS else "")


def _check_rank(name: str, tensor_M: Tensor) -> None:
    if tensor_M.ndim != 1:
        raise ValueError(f"{name} must have one dimension, got shape {tuple(tensor_M.shape)}")


def _check_offsets(tokens: Tensor, offsets: Tensor) -> None:
    _check_rank("tokens", tokens)
    _check_rank("offsets", offsets)
    if offsets.numel() == 0 or offsets[0] != 0 or offsets[-1] != tokens.numel():
        raise ValueError(f"offsets must run from 0 to the number of tokens, {tokens.numel()}")
    if (offsets.diff() < 0).any():
        raise ValueError("offsets must not fall")


def _check_catalogue(tokens: Tensor, offsets: Tensor, item_ids: Tensor) -> None:
    _check_offsets(tokens, offsets)
    if item_ids.shape != (offsets.numel() - 1,):
        raise ValueError(
            f"item_ids must have shape ({offsets.numel() - 1},), one id a title, got "
            f"{tuple(item_ids.shape)}"
        )
    if item_ids.numel() == 0:
        raise ValueError("item_ids is empty: a catalogue needs at least one item")
    id_I = item_ids.sort().values
    if (twice := id_I[1:][id_I[1:] == id_I[:-1]]).numel():
        raise ValueError(f"item_ids must not repeat; seen again: item_id {_named(twice)}")
    if (empty := item_ids[offsets.diff() == 0]).numel():
        raise ValueError(f"item_id {_named(empty)}: its title has no tokens")
    if int(tokens.min()) < 0:
        raise ValueError(f"tokens must be 0 or above, got {int(tokens.min())}")


def _check_prefix_free(trie: ItemTrie) -> None:
    """Refuse titles that end where another goes on: no token would tell the two apart."""
    inner_F = trie.num_children_N[trie.leaf_F] > 0
    if not inner_F.any():
        return
    node = int(trie.leaf_F[inner_F][0])
    shorter = _named(trie.items_of_leaf(node))
    while trie.num_children_N[node] > 0:
        node = int(trie.first_child_N[node])
    raise ValueError(
        f"item_id {shorter}: its tokens are a proper prefix of those of item_id "
        f"{_named(trie.items_of_leaf(node))} ({int(inner_F.sum())} such titles); end every title "
        "in the same end token"
    )
