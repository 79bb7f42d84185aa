"""A causal LM whose layers see what a mask schedule allows: the one way the project calls a model.

Dimension key: B batch, L sequence, T tokens (flat), C candidates (flat), D hidden width, V
vocabulary.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hatllm.masks.layer_masks import Tokens, build_layer_masks, causal_visible
from hatllm.masks.schedule import Schedule
from hatllm.model import masked_attention as attention
from hatllm.model.forward_pass import ForwardPass, PaddedPass
from hatllm.model.item_tokens import ItemTokens
from hatllm.model.suitability import check_config, check_structure

FEW_TOKENS = 64  # up to so many tokens a row, single dot products beat the whole output layer


class MaskedLM(nn.Module):
    """A transformers causal LM (bare or with peft adapters) under a mask schedule."""

    def __init__(self, model: PreTrainedModel, schedule: Schedule, backend: str) -> None:
        """Install the schedule.

        Args:
            model: The backbone, not yet wrapped by peft.
            schedule: One pattern for each of the model's layers.
            backend: 'sdpa', 'eager' or 'flex'.

        Raises:
            ValueError: If the schedule's length is not the model's, or the backend cannot compute
                the model's attention.
        """
        super().__init__()
        check_config(model.config, backend, schedule)
        check_structure(model)
        attention.install(model, backend)
        self.model: nn.Module = model
        self.backbone = [model]  # in a list: not registered a second time
        self.schedule = schedule
        self.item_tokens: ItemTokens | None = None
        # What logits are divided by where they become scores: over legal tokens, over all.
        self.trie_temperature = self.vocab_temperature = 1.0
        config = model.config.get_text_config(decoder=True)
        self.final_softcap: float | None = getattr(config, "final_logit_softcapping", None)
        self.num_positions = attention.constant_positions(config)

    @property
    def num_layers(self) -> int:
        """Decoder layers."""
        return len(self.schedule.patterns)

    @property
    def decoder(self) -> nn.Module:
        """The stack of layers without the output layer."""
        decoder: nn.Module = self.backbone[0].get_decoder()
        return decoder

    @property
    def output_embedding_VD(self) -> Tensor:
        """Rows of the output layer."""
        weight: Tensor = self.backbone[0].get_output_embeddings().weight
        return weight

    def hidden_of_prompts(self, input_ids_BL: Tensor, tokens: Tokens, valid_BL: Tensor) -> Tensor:
        """Final hidden states of whole padded prompts: the plain way, the oracle of the fast ones.

        Args:
            input_ids_BL: Token ids, padded on either side. Shape (B, L), int64.
            tokens: Segments and positions.
            valid_BL: False on padding. Shape (B, L), bool.

        Returns:
            hidden_BLD: Normalised output of the last layer. Shape (B, L, D).

        Raises:
            RuntimeError: If a layer did not read its mask.
        """
        visible_BLL = causal_visible(valid_BL, valid_BL.shape[1])
        masks = build_layer_masks(self.schedule, tokens, tokens, visible_BLL)
        return self.run(input_ids_BL, tokens.position_BL, PaddedPass(masks, tokens))

    def run(self, input_ids_BL: Tensor, position_BL: Tensor, forward_pass: ForwardPass) -> Tensor:
        """Embed tokens, run transformers' own layers over them, each under its mask, and normalise.

        Args:
            input_ids_BL: Token ids. Shape (B, L), int64.
            position_BL: Where they stand in their prompts. Shape (B, L), int64.
            forward_pass: What the layers get to know.

        Returns:
            hidden_BLD: Shape (B, L, D).

        Raises:
            ValueError: If a position is beyond what the model's rotary table is constant for.
            RuntimeError: If a layer did not read its mask.
        """
        self.check_positions(position_BL)
        out = self.decoder(
            **self._embedded(input_ids_BL),
            position_ids=position_BL,
            use_cache=False,
            forward_pass=forward_pass,
        )
        if missing := [layer for layer in forward_pass.layers if not forward_pass.read[layer]]:
            raise RuntimeError(
                f"layers {missing} did not read their mask; this model's attention does not go "
                "through transformers' AttentionInterface"
            )
        hidden_BLD: Tensor = out.last_hidden_state
        return hidden_BLD

    def check_positions(self, position: Tensor) -> None:
        """Refuse positions from which on the rotary table depends on the whole call's length.

        Raises:
            ValueError: If there is one; says what to lower.
        """
        if self.num_positions is not None and int(position.max()) >= self.num_positions:
            raise ValueError(
                f"a prompt of {int(position.max()) + 1} tokens is longer than the "
                f"{self.num_positions} up to which this model's rotary positions are constant; "
                "lower data.max_history_items"
            )

    def _embedded(self, input_ids: Tensor) -> dict[str, Tensor]:
        """What every pass begins with: token ids, or their embeddings where items have tokens."""
        if self.item_tokens is None:
            return {"input_ids": input_ids}
        decoder: Any = self.decoder
        return {"inputs_embeds": self.item_tokens(input_ids, decoder.get_input_embeddings())}

    def logits(self, hidden_TD: Tensor) -> Tensor:
        """Vocabulary logits, float32, soft-capped where the model does so.

        Args:
            hidden_TD: Final hidden states. Shape (T, D).

        Returns:
            logit_TV: Shape (T, V), float32.
        """
        logit_TV: Tensor = self.backbone[0].get_output_embeddings()(hidden_TD).float()
        return self._soft_capped(logit_TV)

    def logits_at(self, hidden_TD: Tensor, row_C: Tensor, token_C: Tensor) -> Tensor:
        """Logits of chosen (row, token) pairs only: equal to `logits(hidden)[row, token]`.

        Args:
            hidden_TD: Final hidden states. Shape (T, D).
            row_C: Row of `hidden_TD` for each pair. Shape (C,), int64.
            token_C: Token id of each pair. Shape (C,), int64.

        Returns:
            logit_C: Shape (C,), float32.
        """
        many_T = torch.bincount(row_C, minlength=len(hidden_TD)) > FEW_TOKENS
        many_C = many_T[row_C]
        few_logit = self._single_logits(hidden_TD[row_C[~many_C]], token_C[~many_C])
        logit_C = few_logit.new_zeros(len(row_C)).index_put((~many_C,), few_logit)
        if not many_T.any():
            return logit_C
        renumbered_T = many_T.cumsum(0) - 1
        all_logits = self.logits(hidden_TD[many_T])
        many_logit = all_logits[renumbered_T[row_C[many_C]], token_C[many_C]]
        return logit_C.index_put((many_C,), many_logit)

    def _single_logits(self, hidden_XD: Tensor, token_X: Tensor) -> Tensor:
        """One logit a hidden state, as float32 dot products."""
        layer = self.backbone[0].get_output_embeddings()
        logit_X: Tensor = (hidden_XD.float() * layer.weight[token_X].float()).sum(-1)
        if layer.bias is not None:
            logit_X = logit_X + layer.bias[token_X].float()
        return self._soft_capped(logit_X)

    def _soft_capped(self, logit: Tensor) -> Tensor:
        if self.final_softcap is None:
            return logit
        return torch.tanh(logit / self.final_softcap) * self.final_softcap
