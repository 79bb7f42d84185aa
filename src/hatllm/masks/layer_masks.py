"""The masks of one forward pass: a schedule's patterns laid over the batch's tokens.

Dimension key: B batch, Q query position, K key position (the last Q keys are the queries' own).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from hatllm.masks import patterns
from hatllm.masks.schedule import Schedule


@dataclass
class Tokens:
    """What the masks need to know of a row of tokens, padding included."""

    segment_BL: Tensor  # below 0 = template; int64
    position_BL: Tensor  # place in the prompt, padding not counted; int64
    restart_BL: Tensor  # `patterns.restart_positions`; int64

    def select(self, columns: slice) -> "Tokens":
        """The same rows, fewer columns."""
        return Tokens(*(t[:, columns] for t in self._tensors()))

    def row(self, index: int) -> "Tokens":
        """One row, as a batch of one."""
        return Tokens(*(t[index : index + 1] for t in self._tensors()))

    def append(self, other: "Tokens") -> "Tokens":
        """These columns followed by the other's."""
        joined = zip(self._tensors(), other._tensors(), strict=True)
        return Tokens(*(torch.cat(pair, dim=1) for pair in joined))

    def _tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.segment_BL, self.position_BL, self.restart_BL


@dataclass
class Mask:
    """Who may attend to whom, and the forms of it that attention functions want, each made once."""

    allowed_B1QK: Tensor  # True = query may attend to key
    biases: dict[torch.dtype, Tensor] = field(default_factory=dict)

    def bias(self, dtype: torch.dtype) -> Tensor:
        """What is added to logits of that type: 0 where allowed, else -inf. Shape (B, 1, Q, K)."""
        if dtype not in self.biases:
            zeros_B1QK = torch.zeros_like(self.allowed_B1QK, dtype=dtype)
            self.biases[dtype] = zeros_B1QK.masked_fill_(~self.allowed_B1QK, float("-inf"))
        return self.biases[dtype]

    @cached_property
    def blocks(self) -> BlockMask:
        """As FlexAttention wants it."""
        allowed_B1QK = self.allowed_B1QK

        def mask_mod(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return allowed_B1QK[b, 0, q, k]

        B, _, Q, K = allowed_B1QK.shape
        return create_block_mask(mask_mod, B, None, Q, K, device=allowed_B1QK.device)


@dataclass
class LayerMasks:
    """The masks that a run of layers needs: one a pattern, and one a pattern under a window."""

    schedule: Schedule
    allowed: dict[str, Tensor]  # pattern -> (B, 1, Q, K) bool, True = query may attend to key
    query: Tokens
    key: Tokens
    own_BQK: Tensor  # True where the key is the query itself
    masks: dict[tuple[str, int | None], Mask] = field(default_factory=dict)  # by pattern and window

    def of_layer(self, layer: int, sliding_window: int | None = None) -> Tensor:
        """The mask of one layer, intersected with the layer's own sliding window.

        Args:
            layer: Index from 0.
            sliding_window: Keys at most this many positions back are visible, the query itself
                counted; None = no window.

        Returns:
            allowed_B1QK: True where attention is allowed. Shape (B, 1, Q, K), bool.
        """
        return self.mask(layer, sliding_window).allowed_B1QK

    def mask(self, layer: int, sliding_window: int | None) -> Mask:
        """As `of_layer`, with its other forms; one for all layers of this pattern and window."""
        pattern = self.schedule.patterns[layer]
        if (pattern, sliding_window) not in self.masks:
            allowed_B1QK = self.allowed[pattern]
            if sliding_window is not None:
                allowed_B1QK = self._windowed(layer, sliding_window)
            self.masks[pattern, sliding_window] = Mask(allowed_B1QK)
        return self.masks[pattern, sliding_window]

    def _windowed(self, layer: int, sliding_window: int) -> Tensor:
        # Where positions restart the window follows them: else it would depend on the other items.
        restarts = self.schedule.restarts(layer)
        query_BQ, key_BK = (
            tokens.restart_BL if restarts else tokens.position_BL
            for tokens in (self.query, self.key)
        )
        back_BQK = query_BQ[:, :, None] - key_BK[:, None, :]
        allowed_BQK = self.allowed[self.schedule.patterns[layer]][:, 0]
        return _never_empty(allowed_BQK & (back_BQK < sliding_window), self.own_BQK)[:, None]


def causal_visible(valid_BK: Tensor, num_queries: int) -> Tensor:
    """Earlier keys and the query itself, never padding.

    Args:
        valid_BK: False on padding keys. Shape (B, K), bool.
        num_queries: The queries are the last Q of the K tokens.

    Returns:
        visible_BQK: Shape (B, Q, K), bool.
    """
    num_keys = valid_BK.shape[1]
    index_K = torch.arange(num_keys, device=valid_BK.device)
    causal_QK = index_K[num_keys - num_queries :, None] >= index_K[None, :]
    return causal_QK & valid_BK[:, None, :]


def build_layer_masks(
    schedule: Schedule,
    query: Tokens,
    key: Tokens,
    visible_BQK: Tensor,
    own_BQK: Tensor | None = None,
    layers: range | None = None,
) -> LayerMasks:
    """Lay every pattern the layers use over the visible keys.

    Args:
        schedule: The pattern of every layer.
        query: The tokens that attend, Q of them.
        key: The tokens attended to, K of them.
        visible_BQK: Causality (or a beam's ancestry) and padding. Shape (B, Q, K), bool.
        own_BQK: True where the key is the query itself; None = the last Q keys are the queries.
            Shape (B, Q, K) or (Q, K), bool.
        layers: Layers the masks are for; None = all.

    Returns:
        Masks in which every row allows at least one key: a query that would see nothing (padding,
        or a first item without a prefix under `cross`) sees itself.

    Raises:
        ValueError: If the shapes do not fit.
    """
    expected = (*query.segment_BL.shape, key.segment_BL.shape[1])
    if visible_BQK.shape != expected:
        raise ValueError(f"visible_BQK must have shape {expected}, got {tuple(visible_BQK.shape)}")
    own_BQK = _last_keys(visible_BQK) if own_BQK is None else own_BQK
    layers = range(len(schedule.patterns)) if layers is None else layers
    allowed = {}
    for pattern in sorted({schedule.patterns[layer] for layer in layers}):
        related_BQK = _relation(schedule, pattern, own_BQK)(query.segment_BL, key.segment_BL)
        allowed[pattern] = _never_empty(related_BQK & visible_BQK, own_BQK)[:, None]
    return LayerMasks(schedule, allowed, query, key, own_BQK)


def _relation(
    schedule: Schedule, pattern: str, own_BQK: Tensor
) -> Callable[[Tensor, Tensor], Tensor]:
    match pattern:
        case "full":
            return patterns.full
        case "cross":
            return partial(patterns.cross, self_BQK=own_BQK if schedule.cross_sees_self else None)
        case "intra" if schedule.intra_scope == "segments":
            return patterns.intra_segments
        case "intra":
            return patterns.intra
    raise AssertionError(pattern)


def _last_keys(like_BQK: Tensor) -> Tensor:
    num_queries, num_keys = like_BQK.shape[1:]
    key_K = torch.arange(num_keys, device=like_BQK.device)
    query_Q = torch.arange(num_keys - num_queries, num_keys, device=like_BQK.device)
    return query_Q[:, None] == key_K[None, :]


def _never_empty(allowed_BQK: Tensor, own_BQK: Tensor) -> Tensor:
    """Queries that would see nothing see themselves: a softmax over nothing is not a number."""
    return allowed_BQK | (~allowed_BQK.any(-1, keepdim=True) & own_BQK)
