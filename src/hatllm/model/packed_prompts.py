"""Padded prompts as packed stages: the prefix once, no padding, each segment once where it may be.

Dimension key: B rows, P prefix tokens, Q columns after the prefix, K keys, T packed tokens after
the prefix, S segments of all rows, U different segments, N tokens of the longest segment, M tokens
asked for, D hidden width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from hatllm.data.prompt import Batch
from hatllm.masks.layer_masks import LayerMasks, Tokens, build_layer_masks, causal_visible
from hatllm.masks.patterns import PREFIX
from hatllm.masks.schedule import Schedule
from hatllm.model.masked_lm import MaskedLM
from hatllm.model.stages import AfterPrefix, Past, PrefixStates, Rows, Stage


@dataclass(frozen=True)
class Packed:
    """The columns of a batch after the prefix, packed."""

    ids_T: Tensor
    tokens: Tokens  # padded, (B, Q)
    valid_BQ: Tensor
    rows: Rows

    @classmethod
    def of(cls, batch: Batch, num_prefix: int) -> "Packed":
        """Drop prefix and padding of a right-padded batch."""
        tokens = batch.tokens.select(slice(num_prefix, None))
        valid_BQ = batch.valid_BL[:, num_prefix:]
        ids_T = batch.input_ids_BL[:, num_prefix:][valid_BQ]
        return cls(ids_T, tokens, valid_BQ, Rows.of(valid_BQ))

    def stage(self, masks: LayerMasks, past: Past) -> Stage:
        """The stage of all these tokens."""
        position_T = self.tokens.position_BL[self.valid_BQ]
        restart_T = self.tokens.restart_BL[self.valid_BQ]
        return Stage(masks, position_T, restart_T, self.rows, past)

    def index_of(self, row_M: Tensor, column_M: Tensor) -> Tensor:
        """Packed index of tokens given by row and column after the prefix. Shape (M,)."""
        index_BQ = self.valid_BQ.flatten().cumsum(0).view_as(self.valid_BQ) - 1
        return index_BQ[row_M, column_M]


def masks_after_prefix(
    schedule: Schedule,
    num_prefix: int,
    tokens: Tokens,
    visible_BQQ: Tensor,
    layers: range | None = None,
) -> LayerMasks:
    """Masks of rows whose keys are the prefix and themselves.

    Args:
        schedule: One pattern for each layer.
        num_prefix: Prefix tokens, P.
        tokens: The rows' own tokens. Shape (B, Q).
        visible_BQQ: Which of a row's tokens could see which under full attention. Bool.
        layers: The layers the masks are for; None = all.

    Returns:
        Masks with P + Q keys.
    """
    B, Q = tokens.segment_BL.shape
    position_BP = torch.arange(num_prefix, device=visible_BQQ.device).expand(B, -1)
    prefix = Tokens(torch.full_like(position_BP, PREFIX), position_BP, position_BP)
    sees_prefix_BQP = visible_BQQ.new_ones(B, Q, num_prefix)
    visible_BQK = torch.cat([sees_prefix_BQP, visible_BQQ], 2)
    return build_layer_masks(schedule, tokens, prefix.append(tokens), visible_BQK, layers=layers)


def hidden_of_titles(lm: MaskedLM, batch: Batch, prefix_ids_P: Tensor) -> Tensor:
    """Hidden states that predict the titles' tokens; equal to the padded way, gradients included.

    Args:
        lm: The model under its schedule.
        batch: Prompts with titles, right-padded, each beginning with the prefix.
        prefix_ids_P: Token ids of the prefix. Shape (P,), int64.

    Returns:
        hidden_MD: For each of `batch.target_token_T`. Shape (M, D).
    """
    num_prefix = len(prefix_ids_P)
    packed = Packed.of(batch, num_prefix)
    hidden_TD = hidden_of_packed(lm, packed, prefix_ids_P)
    return hidden_TD[packed.index_of(batch.target_row_T, batch.target_column_T - num_prefix)]


def hidden_of_packed(lm: MaskedLM, packed: Packed, prefix_ids_P: Tensor) -> Tensor:
    """Hidden states of all packed tokens. Shape (T, D)."""
    num_prefix, shallow = len(prefix_ids_P), lm.schedule.num_segment_layers
    prefix = lm.run_prefix(prefix_ids_P)
    visible_BQQ = causal_visible(packed.valid_BQ, packed.valid_BQ.shape[1])
    layers = range(shallow, lm.num_layers)
    masks = masks_after_prefix(lm.schedule, num_prefix, packed.tokens, visible_BQQ, layers)
    whole = packed.stage(masks, AfterPrefix(prefix))
    if not shallow:
        return lm.hidden(packed.ids_T, [whole])
    segments = Segments.of(packed)
    whole.first_layer, whole.from_T = shallow, segments.from_T
    once = segments.stage(lm.schedule, num_prefix, prefix)
    ids_T = segments.ids_SN[segments.valid_SN]
    if not layers:
        return lm.hidden(ids_T, [once])[segments.from_T]
    return lm.hidden(ids_T, [once, whole])


@dataclass(frozen=True)
class Segments:
    """Different segments, each once, as rows of their own."""

    ids_SN: Tensor  # -1 on padding
    valid_SN: Tensor
    from_T: Tensor  # where each token of the prompts stands among the packed segments' tokens

    @classmethod
    def of(cls, packed: Packed) -> "Segments":
        """Cut packed prompts into segments and keep one of those with equal tokens."""
        row_T = packed.rows.place_T // packed.rows.num_places
        label_T = packed.tokens.segment_BL[packed.valid_BQ]
        starts_T = torch.ones_like(label_T, dtype=torch.bool)
        starts_T[1:] = (label_T[1:] != label_T[:-1]) | (row_T[1:] != row_T[:-1])
        segment_T = starts_T.cumsum(0) - 1
        start_S = starts_T.nonzero()[:, 0]
        offset_T = torch.arange(len(label_T), device=label_T.device) - start_S[segment_T]
        ids_SN = label_T.new_full((len(start_S), int(offset_T.max()) + 1), -1)
        ids_SN[segment_T, offset_T] = packed.ids_T
        ids_UN, unique_S = torch.unique(ids_SN, dim=0, return_inverse=True)
        valid_UN = ids_UN >= 0
        length_U = valid_UN.sum(1)
        start_U = length_U.cumsum(0) - length_U
        return cls(ids_UN, valid_UN, start_U[unique_S[segment_T]] + offset_T)

    def stage(self, schedule: Schedule, num_prefix: int, prefix: PrefixStates) -> Stage:
        """The shallow layers' stage: each segment sees the prefix and itself."""
        return segment_stage(schedule, self.valid_SN, num_prefix, prefix)


def segment_stage(
    schedule: Schedule, valid_SN: Tensor, num_prefix: int, prefix: PrefixStates
) -> Stage:
    """Segments as rows of their own, right after the prefix.

    Args:
        schedule: Has at least one segment layer.
        valid_SN: False on padding, which stands on the right. Shape (S, N), bool.
        num_prefix: Prefix tokens.
        prefix: Their keys and values.

    Returns:
        The stage of the schedule's segment layers.
    """
    offset_SN = torch.arange(valid_SN.shape[1], device=valid_SN.device).expand_as(valid_SN)
    position_SN = num_prefix + offset_SN
    tokens = Tokens(torch.zeros_like(offset_SN), position_SN, position_SN)
    visible_SNN = causal_visible(valid_SN, valid_SN.shape[1])
    layers = range(schedule.num_segment_layers)
    masks = masks_after_prefix(schedule, num_prefix, tokens, visible_SNN, layers)
    position_T = position_SN[valid_SN]
    return Stage(masks, position_T, position_T, Rows.of(valid_SN), AfterPrefix(prefix))
