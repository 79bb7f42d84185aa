"""What titles weigh before any history is read: a prior at every branch of the trie.

A softmax over legal tokens does not see how many titles go on below each. Where all logits are
equal it halves a title's probability at every fork with two tokens, so that titles on a path of
many forks have almost none. With ``log P(below the child) - log P(below the node)`` added to
``logit / temperature``, equal logits give every title the share P that it has without a history,
and the model learns what the history adds to it. It is the offset of a regression; logit adjustment
(arXiv:2007.07314) has the same in its loss and leaves it out at test, here it stays.

Dimension key: I items by ascending id, J titles by number, N trie nodes.
"""

import torch
from torch import Tensor

from hatllm.decode.sums_below import sums_below
from hatllm.decode.trie import ItemTrie


def branch_log_priors(trie: ItemTrie, title_I: Tensor, log_share_I: Tensor) -> Tensor:
    """How likely each node's token is, once its parent is reached, by the titles' shares alone.

    Args:
        trie: All titles.
        title_I: Number of each item's title; items that share a title make one answer. Shape (I,),
            int64.
        log_share_I: Log-share of each item's title among all titles; its items have the same.
            Shape (I,), float, nats, finite.

    Returns:
        log_prior_N: Of each token among its siblings, 0 for a forced one and at the root. Shape
            (N,), float32, nats.
    """
    items_of_title_J = torch.bincount(title_I)
    share_I = log_share_I.double().exp() / items_of_title_J[title_I]
    mass_N = sums_below(trie, share_I[None])[0]
    log_prior_N = (mass_N / mass_N[trie.parent_N.clamp(min=0)]).log()
    return log_prior_N.float()
