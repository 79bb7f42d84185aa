"""Sums over the items below each node of the trie.

Dimension key: B users, I items by ascending id, N trie nodes.
"""

import torch
from torch import Tensor

from hatllm.decode.trie import ItemTrie


def sums_below(trie: ItemTrie, value_BI: Tensor) -> Tensor:
    """The sum of a value over all items below each node.

    Args:
        trie: All titles.
        value_BI: Of each item. Shape (B, I), float.

    Returns:
        Shape (B, N).
    """
    sum_BN = value_BI.new_zeros(len(value_BI), trie.num_nodes).index_add(
        1, trie.item_leaf_I, value_BI
    )
    start = trie.num_nodes
    for size in reversed(torch.bincount(trie.depth_N).tolist()[1:]):  # a level stands together
        level = slice(start - size, start)
        sum_BN.index_add_(1, trie.parent_N[level], sum_BN[:, level].clone())
        start -= size
    return sum_BN
