"""The constant prompt prefix, run once, and rows of tokens that begin right after it.

Dimension key: P prefix tokens, F rows (families of prompts), Q place in a row, K keys, T packed
tokens, X heads times head width.
"""

import torch
from torch import Tensor

from hatllm.masks.layer_masks import LayerMasks, Tokens, build_layer_masks, causal_visible
from hatllm.masks.patterns import PREFIX
from hatllm.masks.schedule import Schedule
from hatllm.model.fast.stages import Band, Place, Rows, Stage, bands_of, hidden_of_stages
from hatllm.model.masked_lm import MaskedLM


class PrefixStates:
    """Keys and values of the constant prompt prefix: written once, read by every row.

    As the past of the prefix's own pass it keeps what it is given; gradients flow back to it.
    """

    def __init__(self) -> None:
        self.pairs: dict[Place, tuple[Tensor, Tensor]] = {}  # (1, P, X) each

    @property
    def num_tokens(self) -> int:
        """Tokens of the prefix; 0 for a template without one."""
        return self.pairs[0, 0][0].shape[1] if self.pairs else 0

    def join(
        self, place: Place, key_TX: Tensor, value_TX: Tensor, rows: Rows
    ) -> tuple[Tensor, Tensor]:
        """As `Past.join`, for the prefix itself."""
        self.pairs[place] = rows.pad(key_TX), rows.pad(value_TX)
        return self.pairs[place]


class AfterPrefix:
    """Every row begins with the same prefix, whose states are known."""

    def __init__(self, prefix: PrefixStates) -> None:
        self.prefix = prefix

    def join(
        self, place: Place, key_TX: Tensor, value_TX: Tensor, rows: Rows
    ) -> tuple[Tensor, Tensor]:
        """As `Past.join`."""
        own = rows.pad(key_TX), rows.pad(value_TX)
        if not self.prefix.pairs:  # a template without a prefix
            return own
        key, value = (
            torch.cat([before.expand(rows.num_rows, -1, -1), new], 1)
            for before, new in zip(self.prefix.pairs[place], own, strict=True)
        )
        return key, value


def run_prefix(lm: MaskedLM, prefix_ids_P: Tensor) -> PrefixStates:
    """Keys and values of the constant prompt prefix in every layer.

    Args:
        lm: The model under its schedule.
        prefix_ids_P: Token ids, possibly none. Shape (P,), int64.

    Returns:
        The states; gradients flow back through them.
    """
    states = PrefixStates()
    if len(prefix_ids_P):
        band = prefix_band(lm.schedule, states, prefix_ids_P)
        position_P = torch.arange(len(prefix_ids_P), device=prefix_ids_P.device)
        hidden_of_stages(lm, prefix_ids_P, [Stage([band], position_P, position_P)])
    return states


def prefix_band(schedule: Schedule, states: PrefixStates, prefix_ids_P: Tensor) -> Band:
    """The prefix as the one row of a band that leaves its keys and values in ``states``."""
    position_1P = torch.arange(len(prefix_ids_P), device=prefix_ids_P.device)[None]
    tokens = Tokens(torch.full_like(position_1P, PREFIX), position_1P, position_1P)
    valid_1P = torch.ones_like(position_1P, dtype=torch.bool)
    visible_1PP = causal_visible(valid_1P, valid_1P.shape[1])
    masks = build_layer_masks(schedule, tokens, tokens, visible_1PP)
    return Band(masks, Rows.of(valid_1P), states)


def masks_after_prefix(
    schedule: Schedule,
    num_prefix: int,
    tokens: Tokens,
    visible_FQQ: Tensor,
    layers: range | None = None,
) -> LayerMasks:
    """Masks of rows whose keys are the prefix and themselves.

    Args:
        schedule: One pattern for each layer.
        num_prefix: Prefix tokens, P.
        tokens: The rows' own tokens. Shape (F, Q).
        visible_FQQ: Which of a row's tokens could see which under full attention. Bool.
        layers: The layers the masks are for; None = all.

    Returns:
        Masks with P + Q keys.
    """
    F, Q = tokens.segment_BL.shape
    position_FP = torch.arange(num_prefix, device=visible_FQQ.device).expand(F, -1)
    prefix = Tokens(torch.full_like(position_FP, PREFIX), position_FP, position_FP)
    sees_prefix_FQP = visible_FQQ.new_ones(F, Q, num_prefix)
    visible_FQK = torch.cat([sees_prefix_FQP, visible_FQQ], 2)
    return build_layer_masks(schedule, tokens, prefix.append(tokens), visible_FQK, layers=layers)


def bands_after_prefix(
    schedule: Schedule,
    tokens: Tokens,
    valid_FQ: Tensor,
    visible_FQQ: Tensor,
    prefix: PrefixStates,
    num_prefix: int,
    layers: range,
) -> list[Band]:
    """Right-padded rows after the prefix, cut into bands where that pays: on a CPU."""
    size_F = valid_FQ.sum(1)
    cuts = [slice(0, len(size_F))] if valid_FQ.is_cuda else bands_of(size_F.tolist(), num_prefix)
    bands = []
    for rows in cuts:
        Q = int(size_F[rows].max())
        own = Tokens(*(x_FQ[rows, :Q] for x_FQ in
                       (tokens.segment_BL, tokens.position_BL, tokens.restart_BL)))  # fmt: skip
        masks = masks_after_prefix(schedule, num_prefix, own, visible_FQQ[rows, :Q, :Q], layers)
        bands.append(Band(masks, Rows.of(valid_FQ[rows, :Q]), AfterPrefix(prefix)))
    return bands
