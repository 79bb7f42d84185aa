"""Grounding: free text, then the titles whose embedding is nearest to the text's.

BIGRec (arXiv:2308.08434). As in the authors' code a text's embedding is the last token's final
hidden state of the LLM as it was before it was tuned (adapters off; a model tuned in full has only
itself), read alone, without prompt and mask, and distance is Euclidean over the whole catalogue.
Their code strips the quotes around a title and tokenises it again; here title and text are compared
as they are written, the closing quote included.

Dimension key: B texts, L tokens, F titles (leaves of the trie in their order), D hidden width, W
answers.
"""

from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from peft import PeftModel
from torch import Tensor
from torch.nn.functional import pad

from hatllm.decode.beam import Answers, Ask, beam_search
from hatllm.decode.candidates import Candidates
from hatllm.decode.scorer import Scorer
from hatllm.decode.trie import ItemTrie
from hatllm.masks.layer_masks import Tokens
from hatllm.masks.patterns import PREFIX
from hatllm.model.masked_lm import MaskedLM

if TYPE_CHECKING:
    from hatllm.config import DecodeConfig

TEXTS_A_PASS = 64


def embed_texts(lm: MaskedLM, token_BL: Tensor, end_id: int) -> Tensor:
    """The embedding of each text.

    Args:
        lm: The model.
        token_BL: Tokens without end token, -1 after them. Shape (B, L), int64.
        end_id: Stands for a text without tokens.

    Returns:
        embedding_BD: Shape (B, D), float32.
    """
    token_BL = pad(token_BL, (0, int(token_BL.shape[1] == 0)), value=-1)
    token_BL[:, 0] = torch.where(token_BL[:, 0] < 0, end_id, token_BL[:, 0])
    adapters_off = lm.model.disable_adapter() if isinstance(lm.model, PeftModel) else nullcontext()
    with adapters_off:
        return torch.cat([_last_states(lm, part) for part in torch.split(token_BL, TEXTS_A_PASS)])


def _last_states(lm: MaskedLM, token_BL: Tensor) -> Tensor:
    valid_BL = token_BL >= 0
    valid_BL = valid_BL[:, : int(valid_BL.sum(1).max())]
    token_BL = token_BL[:, : valid_BL.shape[1]]
    position_BL = torch.arange(token_BL.shape[1], device=token_BL.device).expand_as(token_BL)
    # As template text it is causal in every layer of every schedule.
    tokens = Tokens(torch.full_like(token_BL, PREFIX), position_BL, position_BL)
    hidden_BLD = lm.hidden_of_prompts(token_BL.clamp(min=0), tokens, valid_BL)
    rows_B = torch.arange(len(token_BL), device=token_BL.device)
    return hidden_BLD[rows_B, valid_BL.sum(1) - 1].float()


def embed_titles(lm: MaskedLM, trie: ItemTrie, end_id: int) -> Tensor:
    """The embedding of every title of the catalogue, shape (F, D), float32."""
    path_FL = trie.path_to(trie.leaf_F)
    token_FL = trie.token_N[path_FL.clamp(min=0)]
    return embed_texts(lm, token_FL.masked_fill((path_FL < 0) | (token_FL == end_id), -1), end_id)


def nearest_titles(
    trie: ItemTrie,
    text_BD: Tensor,
    title_FD: Tensor,
    top_k: int,
    candidates: Candidates | None = None,
) -> Answers:
    """The titles nearest to each text.

    Args:
        trie: All titles.
        text_BD: Embedding of each text. Shape (B, D), float32.
        title_FD: Embedding of each title. Shape (F, D), float32.
        top_k: Titles for each text.
        candidates: Which titles may answer; None = all.

    Returns:
        ``score_BW`` is minus the distance, ``log_prob_BW`` the log-softmax of it over all titles:
        it falls along the list but is no probability of the model's.
    """
    # Through a matrix product a text that is a title would not lie at distance 0.
    distance_BF = torch.cdist(text_BD, title_FD, compute_mode="donot_use_mm_for_euclid_dist")
    log_prob_BF = (-distance_BF).log_softmax(1)
    if candidates is not None:
        user_BF = torch.arange(len(text_BD), device=text_BD.device)[:, None].expand_as(distance_BF)
        leaf_BF = trie.leaf_F.expand_as(distance_BF)
        is_dead_BF = ~candidates.alive(user_BF.flatten(), leaf_BF.flatten()).view_as(distance_BF)
        distance_BF = distance_BF.masked_fill(is_dead_BF, float("inf"))
        log_prob_BF = log_prob_BF.masked_fill(is_dead_BF, float("-inf"))
    order_BW = distance_BF.sort(dim=1, stable=True).indices[:, :top_k]
    score_BW = -distance_BF.gather(1, order_BW)
    leaf_BW = trie.leaf_F[order_BW].masked_fill(score_BW.isinf(), -1)
    return Answers(leaf_BW, log_prob_BF.gather(1, order_BW), score_BW)


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
        token_BL: The tokens without the end token, -1 after them; L is the longest, at least 1.
            Shape (B, L), int64.
    """
    trie = scorer.trie
    ask = _asking_the_vocabulary(scorer, config.beam_width, num_titles, end_id)
    leaf_B = beam_search(scorer, config, ask).leaf_BW[:, 0]
    path_BL = trie.path_to(leaf_B)
    token_BL = trie.token_N[path_BL.clamp(min=0)]
    return token_BL.masked_fill((path_BL < 0) | (token_BL == end_id), -1)


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
