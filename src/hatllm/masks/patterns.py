"""Which keys a query may attend to, given how the prompt is cut into segments (arXiv:2510.10955).

A pattern speaks of segments only; causality and padding are `visible_BQK`, made by the caller, so
the same four lines serve training, cached decoding and tree-shaped beams.

Dimension key: B batch, L sequence, Q query position, K key position.
"""

import torch
from torch import Tensor

PREFIX = -1  # template text before the history
RESPONSE = -2  # template text between the history and the title


def full(query_segment_BQ: Tensor, key_segment_BK: Tensor) -> Tensor:
    """Block nothing.

    Args:
        query_segment_BQ: Segment of each query; below 0 = template. Shape (B, Q), int64.
        key_segment_BK: Segment of each key. Shape (B, K), int64.

    Returns:
        related_BQK: True where the segments may attend. Shape (B, Q, K), bool.
    """
    q_BQ1, k_B1K = _pairs(query_segment_BQ, key_segment_BK)
    return torch.ones_like(q_BQ1 == k_B1K)


def intra(query_segment_BQ: Tensor, key_segment_BK: Tensor) -> Tensor:
    """Block different items from each other; template tokens stay visible and seeing.

    Args, Returns: As `full`.
    """
    q_BQ1, k_B1K = _pairs(query_segment_BQ, key_segment_BK)
    return (q_BQ1 < 0) | (k_B1K < 0) | (q_BQ1 == k_B1K)


def intra_segments(query_segment_BQ: Tensor, key_segment_BK: Tensor) -> Tensor:
    """Let every segment, the response template too, see the prefix and itself only.

    What a layer then computes for a segment is the same in every prompt.

    Args, Returns: As `full`.
    """
    q_BQ1, k_B1K = _pairs(query_segment_BQ, key_segment_BK)
    return (k_B1K == PREFIX) | (q_BQ1 == k_B1K)


def cross(
    query_segment_BQ: Tensor, key_segment_BK: Tensor, self_BQK: Tensor | None = None
) -> Tensor:
    """Block an item's tokens from each other; template tokens are free.

    Args:
        query_segment_BQ: As `full`.
        key_segment_BK: As `full`.
        self_BQK: True where the key is the query itself, which it then may see
            (`cross_sees_self`); None = it is blocked like the rest of its item. Shape (B, Q, K) or
            (Q, K), bool.

    Returns:
        related_BQK: As `full`.
    """
    q_BQ1, k_B1K = _pairs(query_segment_BQ, key_segment_BK)
    related_BQK = (q_BQ1 < 0) | (q_BQ1 != k_B1K)
    return related_BQK if self_BQK is None else related_BQK | self_BQK


def restart_positions(segment_BL: Tensor, valid_BL: Tensor) -> Tensor:
    """Positions that start again right after the prefix in every segment.

    Args:
        segment_BL: Segment of each token, in prompt order. Shape (B, L), int64.
        valid_BL: False on padding (left or right). Shape (B, L), bool.

    Returns:
        position_BL: Prefix tokens count from 0; any other token has the prefix length plus its
            offset in its segment; padding has 0. Shape (B, L), int64.
    """
    in_prefix_BL = (segment_BL == PREFIX) & valid_BL
    prefix_length_B1 = in_prefix_BL.sum(1, keepdim=True)
    index_BL = torch.arange(segment_BL.shape[1], device=segment_BL.device).expand_as(segment_BL)
    starts_BL = torch.ones_like(valid_BL)
    starts_BL[:, 1:] = (segment_BL[:, 1:] != segment_BL[:, :-1]) | ~valid_BL[:, :-1]
    start_BL = torch.where(starts_BL, index_BL, 0).cummax(1).values
    offset_BL = index_BL - start_BL
    return torch.where(in_prefix_BL, offset_BL, prefix_length_B1 + offset_BL) * valid_BL


def _pairs(query_segment_BQ: Tensor, key_segment_BK: Tensor) -> tuple[Tensor, Tensor]:
    for name, segment in (("query", query_segment_BQ), ("key", key_segment_BK)):
        if segment.ndim != 2:
            raise ValueError(f"{name}_segment must have two dimensions, got {tuple(segment.shape)}")
    return query_segment_BQ[:, :, None], key_segment_BK[:, None, :]
