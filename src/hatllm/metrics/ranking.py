"""What an example is worth by the rank of its one target, and how sure a mean over examples is.

A rank starts at 1; 0 (or a negative number, NaN, infinity) means the target is not in the list.
An example whose target is not found is worth 0 and stays in every mean.

Dimension key: B examples.
"""

import torch
from torch import Tensor


def hits(target_rank_B: Tensor, k: int) -> Tensor:
    """One for each example whose target is among the first ``k`` answers, else zero.

    Args:
        target_rank_B: Rank of the target from 1; 0 = not found. Shape (B,), integer or float.
        k: Cut-off, at least 1.

    Returns:
        Shape (B,), float64, each 0 or 1.

    Raises:
        ValueError: If ``target_rank_B`` does not have one dimension or ``k`` is below 1.
    """
    return _found(target_rank_B, k).double()


def discounted_gains(target_rank_B: Tensor, k: int) -> Tensor:
    """NDCG@k of each example: 1 / log2(rank + 1) within the first ``k`` answers, else zero.

    With one target the ideal list has it at rank 1, where the gain is 1 / log2(2) = 1, so nothing
    is left to divide by. Arguments and errors as in :func:`hits`.

    Returns:
        Shape (B,), float64, in [0, 1].
    """
    found_B = _found(target_rank_B, k)
    # Not-found ranks may be 0 or infinite: replaced before the logarithm, not after it.
    rank_B = torch.where(found_B, target_rank_B.double(), 1.0)
    return torch.where(found_B, 1.0 / torch.log2(rank_B + 1.0), 0.0)


def reciprocal_ranks(target_rank_B: Tensor, k: int) -> Tensor:
    """MRR@k of each example: 1 / rank within the first ``k`` answers, else zero.

    Arguments and errors as in :func:`hits`.

    Returns:
        Shape (B,), float64, in [0, 1].
    """
    found_B = _found(target_rank_B, k)
    rank_B = torch.where(found_B, target_rank_B.double(), 1.0)
    return torch.where(found_B, 1.0 / rank_B, 0.0)


def standard_error(value_B: Tensor, user_id_B: Tensor) -> Tensor:
    """Standard error of the mean over examples, when examples of one user may be alike.

    Cluster-robust: deviations are summed within a user before they are squared,
    sqrt(G / (G - 1) * sum_g (sum_{i in g} (x_i - mean))^2) / B for G users. With one example a
    user it is the textbook std / sqrt(B).

    Args:
        value_B: One number an example. Shape (B,), float.
        user_id_B: The user of each example. Shape (B,), int64.

    Returns:
        A float64 scalar; NaN for fewer than two users.

    Raises:
        ValueError: If the shapes differ or are not one-dimensional.
    """
    if value_B.ndim != 1 or value_B.shape != user_id_B.shape:
        raise ValueError(
            f"value_B and user_id_B must share one shape (B,), got {tuple(value_B.shape)} "
            f"and {tuple(user_id_B.shape)}"
        )
    users, group_B = torch.unique(user_id_B, return_inverse=True)
    if len(users) < 2:
        return torch.tensor(float("nan"), dtype=torch.float64)
    deviation_B = value_B.double() - value_B.double().mean()
    total = torch.zeros(len(users), dtype=torch.float64).index_add_(0, group_B, deviation_B)
    spread = len(users) / (len(users) - 1) * total.square().sum()
    return spread.sqrt() / len(value_B)


def _found(target_rank_B: Tensor, k: int) -> Tensor:
    """True where the rank lies in 1..k; shape (B,), bool."""
    if target_rank_B.ndim != 1:
        raise ValueError(f"target_rank_B must have shape (B,), got {tuple(target_rank_B.shape)}")
    if k < 1:
        raise ValueError(f"k={k} must be at least 1")
    return (target_rank_B >= 1) & (target_rank_B <= k)
