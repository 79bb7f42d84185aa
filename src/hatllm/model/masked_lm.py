"""A causal LM whose layers see what a mask schedule allows: the one way the project calls a model.

Dimension key: B batch, L sequence, Q query position, K key position, D hidden width, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from hatllm.masks.layer_masks import LayerMasks, Tokens, build_layer_masks, causal_visible
from hatllm.masks.schedule import Schedule
from hatllm.model import attention

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
        num_layers = model.config.get_text_config(decoder=True).num_hidden_layers
        if len(schedule.patterns) != num_layers:
            raise ValueError(
                f"the schedule has {len(schedule.patterns)} layers, the model {num_layers}; "
                "correct model.num_layers"
            )
        attention.install(model, backend)
        self.model: nn.Module = model
        self.backbone = [model]  # in a list: not registered a second time
        self.schedule = schedule
        config = model.config.get_text_config(decoder=True)
        self.final_softcap: float | None = getattr(config, "final_logit_softcapping", None)
        for name in ("logits_scaling", "logit_scale"):
            if getattr(config, name, None) not in (None, 1, 1.0):
                raise ValueError(f"model {config.model_type!r} scales its logits; not supported")

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

    def hidden(
        self,
        input_ids_BQ: Tensor,
        query: Tokens,
        key: Tokens,
        visible_BQK: Tensor,
        cache: DynamicCache | None = None,
    ) -> Tensor:
        """Final hidden states of the new tokens.

        Args:
            input_ids_BQ: Token ids. Shape (B, Q), int64.
            query: Segments and positions of the new tokens.
            key: The same for cached and new tokens together, cached first.
            visible_BQK: Which keys a query could see under full attention. Shape (B, Q, K), bool.
            cache: Keys and values of the K - Q cached tokens; the new ones are added to it.

        Returns:
            hidden_BQD: Normalised output of the last layer. Shape (B, Q, D).

        Raises:
            RuntimeError: If a layer did not read its mask.
        """
        masks = build_layer_masks(self.schedule, query, key, visible_BQK)
        out = self.decoder(
            input_ids=input_ids_BQ,
            position_ids=query.position_BL,
            past_key_values=cache,
            use_cache=cache is not None,
            layer_masks=masks,
        )
        self._check_every_layer_was_masked(masks)
        hidden_BQD: Tensor = out.last_hidden_state
        return hidden_BQD

    def hidden_of_prompts(
        self,
        input_ids_BL: Tensor,
        tokens: Tokens,
        valid_BL: Tensor,
        num_shared: int = 0,
        keep_cache: bool = False,
    ) -> tuple[Tensor, DynamicCache | None]:
        """Final hidden states of whole prompts.

        Args:
            input_ids_BL: Token ids, padded on either side. Shape (B, L), int64.
            tokens: Segments and positions.
            valid_BL: False on padding. Shape (B, L), bool.
            num_shared: The first this many columns hold the same tokens in every row and go through
                the model once; exact, gradients included. Wants right padding.
            keep_cache: Whether to return the keys and values of all L columns.

        Returns:
            hidden_BLD, shape (B, L - num_shared, D), the columns after the shared ones; and the
            cache, or none.

        Raises:
            ValueError: If columns are to be shared or kept while gradient checkpointing drops them.
        """
        layers: Any = self.decoder.layers
        checkpoints = any(getattr(layer, "gradient_checkpointing", False) for layer in layers)
        if self.training and checkpoints and (num_shared or keep_cache):
            raise ValueError(
                f"num_shared={num_shared} must be 0 in training with model.gradient_checkpointing: "
                "gradient checkpointing keeps no cache"
            )
        B, L = input_ids_BL.shape
        cache = DynamicCache() if keep_cache else None
        if num_shared:
            shared = tokens.select(slice(0, num_shared)).row(0)
            one_row = DynamicCache()
            visible_1PP = causal_visible(valid_BL[:1, :num_shared], num_shared)
            self.hidden(input_ids_BL[:1, :num_shared], shared, shared, visible_1PP, one_row)
            cache = expand_cache(one_row, B)
        hidden_BLD = self.hidden(
            input_ids_BL[:, num_shared:],
            tokens.select(slice(num_shared, L)),
            tokens,
            causal_visible(valid_BL, L - num_shared),
            cache,
        )
        return hidden_BLD, cache

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

    def _check_every_layer_was_masked(self, masks: LayerMasks) -> None:
        seen: set[int] = masks.once("layers seen", set)
        if len(seen) != len(self.schedule.patterns):
            missing = sorted(set(range(len(self.schedule.patterns))) - seen)
            raise RuntimeError(
                f"layers {missing} did not read their mask; this model's attention does not go "
                "through transformers' AttentionInterface"
            )


def expand_cache(cache: DynamicCache, num_rows: int) -> DynamicCache:
    """A cache of `num_rows` rows that all hold what the one row of `cache` holds.

    Args:
        cache: A cache with one row.
        num_rows: Rows wanted.

    Returns:
        A new cache; gradients flow back to the one row.
    """
    pairs = [
        (layer.keys.expand(num_rows, -1, -1, -1), layer.values.expand(num_rows, -1, -1, -1))
        for layer in cache.layers
    ]
    return DynamicCache(pairs)
