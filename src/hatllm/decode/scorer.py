"""Hidden states at trie nodes, given each user's prompt: the model as the searches see it.

A hypothesis is a trie node, because the node fixes the tokens so far. `PlainScorer` runs the whole
sequence for every question: slow, obvious, the oracle of the fast one, which runs no token twice
(`hatllm.decode.fast.tree_scorer`).

Dimension key: B users, M questions, L prompt length, D hidden width, P nodes on a path.
"""

from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from hatllm.data.prompt import Batch, IntArray, first_title_token
from hatllm.decode.catalogue import Catalogue
from hatllm.decode.fast.tree_scorer import tree_scorers
from hatllm.decode.trie import ItemTrie
from hatllm.masks.layer_masks import Tokens
from hatllm.model.masked_lm import MaskedLM

if TYPE_CHECKING:
    from hatllm.config import Config


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


class Scorers(Protocol):
    """Makes the scorers of a model's batches; holds what these share."""

    lm: MaskedLM
    trie: ItemTrie

    def of(self, batch: Batch) -> Scorer:
        """The scorer of one right-padded batch without titles, on the model's device."""
        ...


def build_scorers(
    lm: MaskedLM, catalogue: Catalogue, config: "Config", prompt_lengths: IntArray
) -> Scorers:
    """What makes the scorers of a run: the one place that chooses between fast and plain.

    Args:
        lm: Model under its schedule, on its device.
        catalogue: Tokenised titles and their trie.
        config: The run.
        prompt_lengths: Tokens of every prompt to come; decides what pays.

    Returns:
        Scorers for batches of these prompts.
    """
    if config.fast:
        return tree_scorers(lm, catalogue, config, prompt_lengths)
    return PlainScorers(lm, catalogue)


class PlainScorers:
    """Each batch on its own."""

    def __init__(self, lm: MaskedLM, catalogue: Catalogue) -> None:
        self.lm, self.trie = lm, catalogue.trie.to(lm.output_embedding_VD.device)

    def of(self, batch: Batch) -> Scorer:
        """As `Scorers.of`."""
        return PlainScorer(self.lm, self.trie, batch)


class PlainScorer:
    """Every question is a full forward pass of prompt and path."""

    def __init__(self, lm: MaskedLM, trie: ItemTrie, batch: Batch) -> None:
        self.lm, self.trie, self.batch = lm, trie, batch
        self.num_users = batch.num_rows
        self.first = first_title_token(batch, lm.schedule.target_is_item)

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
        hidden_MLD = self.lm.hidden_of_prompts(ids_ML, tokens, index_ML < end_M1)
        return hidden_MLD[torch.arange(len(user_M), device=node_M.device), end_M1[:, 0] - 1]
