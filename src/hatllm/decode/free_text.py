"""Text written without the trie, by the same beam search and the same scorers.

What is written hangs as nodes of its own beside the catalogue's, so that a hypothesis is still one
node and both scorers, under every mask, answer for it as they do for a title.

Dimension key: B users, W beams, M questions, X likeliest tokens of a question, C candidates (flat),
N trie nodes, S tokens of the longest text, V vocabulary.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad

from hatllm.decode.beam import Ask, beam_search
from hatllm.decode.scorer import Scorer
from hatllm.decode.trie import ItemTrie

if TYPE_CHECKING:
    from hatllm.config import DecodeConfig


def with_room(trie: ItemTrie, config: "DecodeConfig") -> ItemTrie:
    """The trie with blank nodes after its own, for one batch of `write_texts`.

    Args:
        trie: All titles.
        config: beam_width, users_per_batch, max_title_tokens.

    Returns:
        The same titles; `max_depth` is that of the longest text.
    """
    longest = trie.max_depth if config.max_title_tokens is None else config.max_title_tokens
    room = config.users_per_batch * config.beam_width * 2 * config.beam_width * longest
    return replace(
        trie,
        max_depth=longest,
        token_N=pad(trie.token_N, (0, room)),
        parent_N=pad(trie.parent_N, (0, room)),
        depth_N=pad(trie.depth_N, (0, room)),
        first_child_N=pad(trie.first_child_N, (0, room)),
        num_children_N=pad(trie.num_children_N, (0, room)),
    )


def write_texts(scorer: Scorer, config: "DecodeConfig", num_titles: int, end_id: int) -> Tensor:
    """The text that a beam search over the whole vocabulary prefers.

    A hypothesis ends with the end token or with its last allowed token.

    Args:
        scorer: Prompts, model and a trie `with_room`, whose blank nodes are written over.
        config: beam_width, length_penalty.
        num_titles: The trie's nodes before the blank ones.
        end_id: The end token.

    Returns:
        token_BS: The tokens without the end token, -1 after them; S is the longest, at least 1.
            Shape (B, S), int64.
    """
    trie = scorer.trie
    ask = _asking_the_vocabulary(scorer, config.beam_width, num_titles, end_id)
    leaf_B = beam_search(scorer, config, ask).leaf_BW[:, 0]
    path_BS = trie.path_to(leaf_B)
    token_BS = trie.token_N[path_BS.clamp(min=0)]
    return token_BS.masked_fill((path_BS < 0) | (token_BS == end_id), -1)


def _asking_the_vocabulary(scorer: Scorer, beam_width: int, num_titles: int, end_id: int) -> Ask:
    trie, used = scorer.trie, num_titles

    def ask(user_M: Tensor, node_M: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        nonlocal used
        logit_MV = scorer.lm.logits(scorer.hidden_at(user_M, node_M))
        log_prob_MV = (logit_MV / scorer.lm.vocab_temperature).log_softmax(-1)
        # A search that keeps 2W candidates of all of a user's hypotheses needs no more of any one.
        log_prob_MX, token_MX = log_prob_MV.topk(min(2 * beam_width, log_prob_MV.shape[1]), dim=1)
        row_C = torch.arange(len(node_M), device=node_M.device).repeat_interleave(token_MX.shape[1])
        child_C = used + torch.arange(len(row_C), device=node_M.device)
        used += len(child_C)
        depth_C = trie.depth_N[node_M][row_C] + 1
        ends_C = (token_MX.flatten() == end_id) | (depth_C == trie.max_depth)
        trie.token_N[child_C] = token_MX.flatten()
        trie.parent_N[child_C] = node_M[row_C]
        trie.depth_N[child_C] = depth_C
        trie.num_children_N[child_C] = (~ends_C).long()
        return row_C, child_C, log_prob_MX.flatten()

    return ask
