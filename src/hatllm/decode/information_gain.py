"""Beam search in which tokens that decide little about the item count less (IGD, arXiv:2506.13229).

What a token decides is how much of the uncertainty about the item it takes away. With p the share
of train targets that an item is, each node has the sum of -p log p over the items below it, and a
token's gain is its parent's sum minus its own. Among the children of a node the log-probability of
the one that gains least counts 1 - alpha times, that of the one that gains most in full, and
between them it goes by the gain. Children that gain alike, a forced token first of all, count in
full.

The formula is that of the authors' code (``LogitProcesser.py`` and ``trie.py`` of
github.com/ZJLin2oo1/LLM4Rec-IGD), without its 1e-7 against division by zero.

Dimension key: I items by ascending id, N trie nodes, M questions, C children (flat).
"""

import torch
from torch import Tensor

from hatllm.decode.beam import Ask
from hatllm.decode.sums_below import sums_below
from hatllm.decode.trie import ItemTrie


def gain_factors(trie: ItemTrie, count_I: Tensor, alpha: float) -> Tensor:
    """By how much the log-probability of each node's token counts.

    Args:
        trie: All titles.
        count_I: How often each item is a train target; not all zero. Shape (I,), int64.
        alpha: In [0, 1]; 0 = all count in full.

    Returns:
        factor_N: In [1 - alpha, 1]; 1 at the root. Shape (N,), float64.

    Raises:
        ValueError: If no item is a train target.
    """
    if int(count_I.sum()) == 0:
        raise ValueError("decode.information_gain needs train rows: no item is a train target")
    share_I = count_I.double() / count_I.sum()
    uncertainty_I = -torch.special.xlogy(share_I, share_I)
    uncertainty_N = sums_below(trie, uncertainty_I[None])[0]
    parent_N = trie.parent_N.clamp(min=0)  # the root is nobody's child
    gain_N = uncertainty_N[parent_N] - uncertainty_N
    child_C = torch.arange(1, trie.num_nodes, device=gain_N.device)
    most_N, least_N = (
        gain_N.scatter_reduce(0, parent_N[child_C], gain_N[child_C], which, include_self=False)
        for which in ("amax", "amin")
    )
    span_N = (most_N - least_N)[parent_N]
    missing_N = (most_N[parent_N] - gain_N) / span_N
    missing_N[0] = 0
    return 1 - alpha * torch.where(span_N > 0, missing_N, 0.0)


def asking_for_gain(ask: Ask, factor_N: Tensor) -> Ask:
    """What may follow a node, each log-probability times its node's factor.

    Args:
        ask: The model's answer.
        factor_N: Output of `gain_factors`. Shape (N,).
    """

    def ask_for_gain(user_M: Tensor, node_M: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        row_C, child_C, log_prob_C = ask(user_M, node_M)
        return row_C, child_C, log_prob_C * factor_N[child_C].to(log_prob_C.dtype)

    return ask_for_gain
