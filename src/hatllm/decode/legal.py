"""Logits and log-probabilities of the legal next tokens.

Dimension key: M nodes asked about, C legal children of all of them (flat), D hidden width.
"""

import torch
from torch import Tensor

from hatllm.decode.trie import ItemTrie
from hatllm.losses.msl import segment_logsumexp
from hatllm.model.masked_lm import MaskedLM


def legal_logits(
    lm: MaskedLM, trie: ItemTrie, hidden_MD: Tensor, node_M: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of every node's children.

    Args:
        lm: The model.
        trie: All titles.
        hidden_MD: Hidden state at each node. Shape (M, D).
        node_M: Trie nodes. Shape (M,), int64.

    Returns:
        row_C (which node, ascending), child_C (trie nodes), logit_C (float32).
    """
    row_C, child_C = trie.children(node_M)
    return row_C, child_C, lm.logits_at(hidden_MD, row_C, trie.token_N[child_C])


def child_log_probs(
    lm: MaskedLM, trie: ItemTrie, hidden_MD: Tensor, node_M: Tensor, normalize: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probability of every node's children, at the model's temperature.

    Over the legal children the trie's prior is added, where it has one.

    Args:
        lm: The model.
        trie: All titles.
        hidden_MD: Hidden state at each node. Shape (M, D).
        node_M: Trie nodes. Shape (M,), int64.
        normalize: 'trie': softmax over the legal children; 'vocab': over the whole vocabulary.

    Returns:
        row_C, child_C as `legal_logits`, and log_prob_C, float32, nats.
    """
    if normalize == "vocab":
        row_C, child_C = trie.children(node_M)
        log_prob_MV = (lm.logits(hidden_MD) / lm.vocab_temperature).log_softmax(-1)
        return row_C, child_C, log_prob_MV[row_C, trie.token_N[child_C]]
    row_C, child_C, logit_C = legal_logits(lm, trie, hidden_MD, node_M)
    logit_C = logit_C / lm.trie_temperature
    if trie.log_prior_N is not None:
        logit_C = logit_C + trie.log_prior_N[child_C]
    return row_C, child_C, logit_C - segment_logsumexp(logit_C, row_C, len(node_M))[row_C]


def path_log_probs(
    lm: MaskedLM, trie: ItemTrie, hidden_MD: Tensor, node_M: Tensor, normalize: str
) -> Tensor:
    """Log-probability of the token that leads into each node, given its parent's hidden state.

    Args:
        lm: The model.
        trie: All titles.
        hidden_MD: Hidden state at each node's parent. Shape (M, D).
        node_M: Trie nodes below the root. Shape (M,), int64.
        normalize: As `child_log_probs`.

    Returns:
        log_prob_M: Float32, nats.
    """
    row_C, child_C, log_prob_C = child_log_probs(
        lm, trie, hidden_MD, trie.parent_N[node_M], normalize
    )
    taken_C = child_C == node_M[row_C]
    return torch.zeros(len(node_M), device=node_M.device).index_put(
        (row_C[taken_C],), log_prob_C[taken_C]
    )
