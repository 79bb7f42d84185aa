"""Softmax DPO: the target is preferred to several titles at once (S-DPO, arXiv:2406.09215).

Dimension key: B rows, J titles of a row: the target first, then its negatives.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def sdpo_loss(log_prob_BJ: Tensor, reference_BJ: Tensor, beta: float) -> Tensor:
    """Score each target's preference over its negatives.

    ``-log sigmoid(-log sum_j exp(beta * (r_j - r_0)))`` with ``r = log_prob - reference`` and j
    over the negatives. With one negative it is the loss of DPO.

    Args:
        log_prob_BJ: Log-probability of each title under the model in training, nats, summed over
            its tokens. Shape (B, J), J >= 2, any float.
        reference_BJ: The same under the reference model; no gradient flows into it. Shape (B, J).
        beta: How far a preference counts, > 0.

    Returns:
        loss_B: Unreduced. Shape (B,), float32 (float64 stays float64).

    Raises:
        ValueError: If the shapes do not fit or ``beta`` is not positive.
    """
    if log_prob_BJ.ndim != 2 or log_prob_BJ.shape[1] < 2 or log_prob_BJ.shape != reference_BJ.shape:
        raise ValueError(
            "log_prob_BJ and reference_BJ must have one shape (B, J) with J >= 2, got "
            f"{tuple(log_prob_BJ.shape)} and {tuple(reference_BJ.shape)}"
        )
    if beta <= 0:
        raise ValueError(f"beta={beta} must be above 0")
    dtype = torch.promote_types(log_prob_BJ.dtype, torch.float32)
    reward_BJ = beta * (log_prob_BJ.to(dtype) - reference_BJ.detach().to(dtype))
    return F.softplus(torch.logsumexp(reward_BJ[:, 1:] - reward_BJ[:, :1], 1))
