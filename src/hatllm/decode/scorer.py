"""Hidden states at trie nodes, given each user's prompt: the model as the searches see it.

A hypothesis is a trie node, because the node fixes the tokens so far. `TreeScorer` keeps each
user's prompt once and hangs every token it is ever asked about under it, in one sequence a user
whose mask says which key is whose ancestor; nothing is copied when a beam moves. `PlainScorer` runs
the whole sequence again for every question: slow, obvious, the oracle.

Dimension key: B users, M questions, L prompt length, S slots (tokens hung under a prompt; slot 0 is
the prompt's own last token), Q new slots, K keys, D hidden width, P nodes on a path.
"""

from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from hatllm.data.prompt import Batch
from hatllm.decode.trie import ItemTrie
from hatllm.masks.layer_masks import Tokens
from hatllm.masks.patterns import PREFIX, RESPONSE
from hatllm.model.masked_lm import MaskedLM


class Scorer(Protocol):
    """Answers with the hidden state that predicts the token after a node."""

    lm: MaskedLM
    trie: ItemTrie
    num_users: int

    def hidden_at(self, user_M: Tensor, node_M: Tensor) -> Tensor:
        """Hidden state after each user's prompt and the tokens down to the node.

        Args:
            user_M: Row of the batch. Shape (M,), int64.
            node_M: Trie node, root allowed. Shape (M,), int64.

        Returns:
            hidden_MD: Shape (M, D).
        """
        ...


def build_scorer(
    lm: MaskedLM, trie: ItemTrie, batch: Batch, num_shared: int, fast: bool
) -> "Scorer":
    """The scorer of one batch of prompts.

    Args:
        lm: Model under its schedule.
        trie: All titles, on the model's device.
        batch: Prompts without titles, on the model's device, right-padded.
        num_shared: Tokens of the constant prefix, run once for the batch.
        fast: False gives the oracle.

    Returns:
        A scorer for these users.
    """
    if fast:
        return TreeScorer(lm, trie, batch, num_shared)
    return PlainScorer(lm, trie, batch)


def _title_tokens(batch: Batch, target_is_item: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Segment, position and restarted position of each user's first title token, each (B,)."""
    segment_BL = batch.tokens.segment_BL
    restart_B = ((segment_BL == PREFIX) & batch.valid_BL).sum(1)
    if target_is_item:
        segment_B = segment_BL.masked_fill(~batch.valid_BL, RESPONSE).amax(1).clamp(min=-1) + 1
    else:
        segment_B = torch.full_like(batch.prompt_length_B, RESPONSE)
        restart_B = restart_B + ((segment_BL == RESPONSE) & batch.valid_BL).sum(1)
    return segment_B, batch.prompt_length_B, restart_B


class PlainScorer:
    """Every question is a full forward pass of prompt and path."""

    def __init__(self, lm: MaskedLM, trie: ItemTrie, batch: Batch) -> None:
        self.lm, self.trie, self.batch = lm, trie, batch
        self.num_users = batch.num_rows
        self.first = _title_tokens(batch, lm.schedule.target_is_item)

    def hidden_at(self, user_M: Tensor, node_M: Tensor) -> Tensor:
        """As `Scorer.hidden_at`."""
        path_MP = self.trie.path_to(node_M)
        length_M1 = self.batch.prompt_length_B[user_M, None]
        ids_ML = pad(self.batch.input_ids_BL[user_M], (0, path_MP.shape[1]))
        segment_ML = pad(self.batch.tokens.segment_BL[user_M], (0, path_MP.shape[1]))
        restart_ML = pad(self.batch.tokens.restart_BL[user_M], (0, path_MP.shape[1]))
        step_MP = torch.arange(path_MP.shape[1], device=node_M.device).expand_as(path_MP)
        column_MP = length_M1 + step_MP
        segment_B, _, restart_B = self.first
        # After a path's end stands any token: the root's -1 is none the model could embed.
        token_MP = self.trie.token_N[path_MP.clamp(min=0)].clamp(min=0)
        ids_ML = ids_ML.scatter(1, column_MP, token_MP)
        segment_ML = segment_ML.scatter(1, column_MP, segment_B[user_M, None].expand_as(path_MP))
        restart_ML = restart_ML.scatter(1, column_MP, restart_B[user_M, None] + step_MP)
        end_M1 = length_M1 + self.trie.depth_N[node_M][:, None]
        index_ML = torch.arange(ids_ML.shape[1], device=node_M.device).expand_as(ids_ML)
        tokens = Tokens(segment_ML, index_ML, restart_ML)
        hidden_MLD = self.lm.hidden_of_prompts(ids_ML, tokens, index_ML < end_M1)[0]
        return hidden_MLD[torch.arange(len(user_M), device=node_M.device), end_M1[:, 0] - 1]


class TreeScorer:
    """One prompt KV a user, one KV a (user, node), each computed once."""

    def __init__(self, lm: MaskedLM, trie: ItemTrie, batch: Batch, num_shared: int) -> None:
        self.lm, self.trie = lm, trie
        self.num_users = batch.num_rows
        self.first = _title_tokens(batch, lm.schedule.target_is_item)
        hidden_BLD, self.cache = lm.hidden_of_prompts(
            batch.input_ids_BL, batch.tokens, batch.valid_BL, num_shared, keep_cache=True
        )
        users_B = torch.arange(self.num_users, device=batch.valid_BL.device)
        end_BD = hidden_BLD[users_B, batch.prompt_length_B - 1 - num_shared]
        self.key = batch.tokens
        self.prompt_valid_BL = batch.valid_BL
        self.node_BS = torch.zeros_like(users_B)[:, None]
        self.hidden_BSD = end_BD[:, None]
        # Row s: the slots among the ancestors of slot s, itself included; slot 0 is in the prompt.
        self.ancestor_BSS = torch.zeros_like(self.node_BS, dtype=torch.bool)[:, :, None]

    def hidden_at(self, user_M: Tensor, node_M: Tensor) -> Tensor:
        """As `Scorer.hidden_at`."""
        path_MP = self.trie.path_to(node_M)
        missing_MP = (path_MP >= 0) & (self._slot_of(user_M, path_MP) < 0)
        if missing_MP.any():
            key_C = torch.unique((user_M[:, None] * self.trie.num_nodes + path_MP)[missing_MP])
            # Nodes are numbered breadth first, so a parent comes before its child.
            self._hang(key_C // self.trie.num_nodes, key_C % self.trie.num_nodes)
        slot_M1 = self._slot_of(user_M, node_M[:, None])
        return self.hidden_BSD[user_M, slot_M1[:, 0]]

    def _slot_of(self, user_M: Tensor, node_MP: Tensor) -> Tensor:
        """Slot that holds each node of a user, -1 where none does. Shape (M, P), int64."""
        equal_MPS = node_MP[:, :, None] == self.node_BS[user_M][:, None, :]
        return torch.where(equal_MPS.any(-1), equal_MPS.int().argmax(-1), -1)

    def _hang(self, user_C: Tensor, node_C: Tensor) -> None:
        """Run new nodes through the model; `user_C` ascends, parents stand before children."""
        B, S = self.node_BS.shape
        count_B = torch.bincount(user_C, minlength=B)
        Q = int(count_B.max())
        start_B = count_B.cumsum(0) - count_B
        column_C = torch.arange(len(user_C), device=user_C.device) - start_B[user_C]
        node_BQ = torch.full((B, Q), -1, device=user_C.device)
        node_BQ[user_C, column_C] = node_C
        self.node_BS = torch.cat([self.node_BS, node_BQ], 1)
        parent_C = self._slot_of(user_C, self.trie.parent_N[node_C][:, None])[:, 0]
        parent_BQ = torch.zeros_like(node_BQ)
        parent_BQ[user_C, column_C] = parent_C
        self._grow_ancestors(parent_BQ, S)
        depth_BQ = self.trie.depth_N[node_BQ.clamp(min=0)] - 1
        segment_B1, position_B1, restart_B1 = (first_B[:, None] for first_B in self.first)
        query = Tokens(
            segment_B1.expand_as(node_BQ),
            position_B1 + depth_BQ.clamp(min=0),
            restart_B1 + depth_BQ.clamp(min=0),
        )
        self.key = self.key.append(query)
        # Slot 0 lies in the prompt, which every slot sees.
        prompt_BQL = self.prompt_valid_BL[:, None, :].expand(-1, Q, -1)
        visible_BQK = torch.cat([prompt_BQL, self.ancestor_BSS[:, S:, 1:]], 2)
        token_BQ = self.trie.token_N[node_BQ.clamp(min=0)].clamp(min=0)
        hidden_BQD = self.lm.hidden(token_BQ, query, self.key, visible_BQK, self.cache)
        self.hidden_BSD = torch.cat([self.hidden_BSD, hidden_BQD], 1)

    def _grow_ancestors(self, parent_BQ: Tensor, num_old: int) -> None:
        B, Q = parent_BQ.shape
        grown_BSS = pad(self.ancestor_BSS, (0, Q, 0, Q))
        users_B = torch.arange(B, device=parent_BQ.device)
        for q in range(Q):
            grown_BSS[:, num_old + q] = grown_BSS[users_B, parent_BQ[:, q]]
            grown_BSS[:, num_old + q, num_old + q] = True
        self.ancestor_BSS = grown_BSS
