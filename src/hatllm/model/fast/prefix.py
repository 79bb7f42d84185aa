"""The constant prompt prefix, run once, and rows of tokens that begin right after it.

Dimension key: A prefix tokens, Y rows (families of prompts), Q place in a row, K keys, T packed
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
        self.pairs: dict[Place, tuple[Tensor, Tensor]] = {}  # (1, A, X) each

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


def run_prefix(lm: MaskedLM, prefix_ids_A: Tensor) -> PrefixStates:
    """Keys and values of the constant prompt prefix in every layer.

    Args:
        lm: The model under its schedule.
        prefix_ids_A: Token ids, possibly none. Shape (A,), int64.

    Returns:
        The states; gradients flow back through them.
    """
    states = PrefixStates()
    if len(prefix_ids_A):
        band = prefix_band(lm.schedule, states, prefix_ids_A)
        position_A = torch.arange(len(prefix_ids_A), device=prefix_ids_A.device)
        hidden_of_stages(lm, prefix_ids_A, [Stage([band], position_A, position_A)])
    return states


def prefix_band(schedule: Schedule, states: PrefixStates, prefix_ids_A: Tensor) -> Band:
    """The prefix as the one row of a band that leaves its keys and values in ``states``."""
    position_1A = torch.arange(len(prefix_ids_A), device=prefix_ids_A.device)[None]
    tokens = Tokens(torch.full_like(position_1A, PREFIX), position_1A, position_1A)
    valid_1A = torch.ones_like(position_1A, dtype=torch.bool)
    visible_1AA = causal_visible(valid_1A, valid_1A.shape[1])
    masks = build_layer_masks(schedule, tokens, tokens, visible_1AA)
    return Band(masks, Rows.of(valid_1A), states)


def masks_after_prefix(
    schedule: Schedule,
    num_prefix: int,
    tokens: Tokens,
    visible_YQQ: Tensor,
    layers: range | None = None,
) -> LayerMasks:
    """Masks of rows whose keys are the prefix and themselves.

    Args:
        schedule: One pattern for each layer.
        num_prefix: Prefix tokens, A.
        tokens: The rows' own tokens. Shape (Y, Q).
        visible_YQQ: Which of a row's tokens could see which under full attention. Bool.
        layers: The layers the masks are for; None = all.

    Returns:
        Masks with A + Q keys.
    """
    Y, Q = tokens.segment_BL.shape
    position_YA = torch.arange(num_prefix, device=visible_YQQ.device).expand(Y, -1)
    prefix = Tokens(torch.full_like(position_YA, PREFIX), position_YA, position_YA)
    sees_prefix_YQA = visible_YQQ.new_ones(Y, Q, num_prefix)
    visible_YQK = torch.cat([sees_prefix_YQA, visible_YQQ], 2)
    return build_layer_masks(schedule, tokens, prefix.append(tokens), visible_YQK, layers=layers)


def bands_after_prefix(
    schedule: Schedule,
    tokens: Tokens,
    valid_YQ: Tensor,
    visible_YQQ: Tensor,
    prefix: PrefixStates,
    num_prefix: int,
    layers: range,
) -> list[Band]:
    """Right-padded rows after the prefix, cut into bands where that pays: on a CPU."""
    size_Y = valid_YQ.sum(1)
    cuts = [slice(0, len(size_Y))] if valid_YQ.is_cuda else bands_of(size_Y.tolist(), num_prefix)
    bands = []
    for rows in cuts:
        Q = int(size_Y[rows].max())
        own = Tokens(*(x_YQ[rows, :Q] for x_YQ in
                       (tokens.segment_BL, tokens.position_BL, tokens.restart_BL)))  # fmt: skip
        masks = masks_after_prefix(schedule, num_prefix, own, visible_YQQ[rows, :Q, :Q], layers)
        bands.append(Band(masks, Rows.of(valid_YQ[rows, :Q]), AfterPrefix(prefix)))
    return bands
