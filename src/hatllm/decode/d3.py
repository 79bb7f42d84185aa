"""D3: a beam without length normalisation, helped by a model that knows items by id only.

"Decoding Matters" (arXiv:2406.14900). At each step the LLM's log-probability of a token is mixed
with the assistant's, which is the share of the probability below the node that goes on with this
token: ``llm_weight * log p_llm + (1 - llm_weight) * log p_assistant``. Along a path the assistant's
shares multiply to the probability of all items below the node. A ghost token (the only legal one)
has the share 1; under `normalize: trie` it leaves the LLM's score alone too, and without length
normalisation it does not count as length. The authors' code takes the largest item of a prefix
where the paper takes the sum; here it is the sum.

Dimension key: B users, I items by ascending id, N trie nodes, M questions, C children (flat).
"""

import torch
from torch import Tensor

from hatllm.decode.beam import Ask
from hatllm.decode.sums_below import sums_below
from hatllm.decode.trie import ItemTrie


def node_log_mass(trie: ItemTrie, log_prob_BI: Tensor) -> Tensor:
    """Log of the probability of all items below each node.

    Args:
        trie: All titles.
        log_prob_BI: Of each item. Shape (B, I), float, nats.

    Returns:
        log_mass_BN: Nats; 0 at the root where the items' probabilities add up to 1. Shape (B, N),
            float64.
    """
    mass_BN = sums_below(trie, log_prob_BI.double().exp())
    # Below the smallest float no title is ruled out, only the last of all.
    return mass_BN.clamp(min=torch.finfo(mass_BN.dtype).tiny).log()


def asking_both(ask: Ask, trie: ItemTrie, log_prob_BI: Tensor, llm_weight: float) -> Ask:
    """What may follow a node by the model and the assistant together.

    Args:
        ask: The model's answer.
        trie: All titles.
        log_prob_BI: The assistant's log-probabilities, as `catalogue.Assistant`.
        llm_weight: Share of the model, in [0, 1].

    Returns:
        Answers whose "log-probabilities" are the mixture, at most 0.
    """
    log_mass_BN = node_log_mass(trie, log_prob_BI)

    def ask_both(user_M: Tensor, node_M: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        row_C, child_C, llm_C = ask(user_M, node_M)
        user_C = user_M[row_C]
        assistant_C = log_mass_BN[user_C, child_C] - log_mass_BN[user_C, node_M[row_C]]
        mixed_C = llm_weight * llm_C + (1 - llm_weight) * assistant_C.to(llm_C.dtype)
        return row_C, child_C, mixed_C

    return ask_both
