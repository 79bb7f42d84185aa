"""Beam-search-aware weights of MSL's tokens (BEAR, arXiv:2601.22925).

A beam prunes a title for good where one of its tokens is not among the K likeliest. Each token's
loss weighs ``1 + lambda * sigmoid((log p(token) - log p(K-th best)) / xi)``, over the legal tokens:
as in the authors' code (``train_bear.py`` of github.com/Tiny-Snow/BEAR-SIGIR-2026), which gives
tokens that survive the larger weight, too, and norms the weights over the choices of a pass.

Dimension key: T target tokens of all titles, C legal tokens of all of them (both flat).
"""

import torch
from torch import Tensor

from hatllm.losses.msl import legal_log_prob


@torch.no_grad()
def survival_weights(
    legal_logit_C: Tensor, row_C: Tensor, is_target_C: Tensor, rank: int, xi: float, lam: float
) -> Tensor:
    """How much each target token's loss weighs; their mean is 1.

    Args:
        legal_logit_C: Logits of the legal tokens over the loss's temperature. Shape (C,), float.
        row_C: Target token that each competes for, ascending. Shape (C,), int64, in [0, T).
        is_target_C: The target token itself, one in each row. Shape (C,), bool.
        rank: K, the width of the beam; where fewer tokens are legal the last of them counts.
        xi: Nats over which the sigmoid rises, > 0.
        lam: Lambda, how much a token that survives weighs more, >= 0.

    Returns:
        weight_T: Without gradient. Shape (T,), float32 (float64 stays float64).
    """
    num_legal_T = row_C.bincount()
    log_prob_C = legal_log_prob(legal_logit_C, row_C, len(num_legal_T))
    by_value_C = log_prob_C.argsort(descending=True)
    ranked_C = by_value_C[row_C[by_value_C].argsort(stable=True)]  # row by row, best first
    start_T = num_legal_T.cumsum(0) - num_legal_T
    kth_T = ranked_C[start_T + num_legal_T.clamp(max=rank) - 1]
    weight_T = 1 + lam * torch.sigmoid((log_prob_C[is_target_C] - log_prob_C[kth_T]) / xi)
    return weight_T / weight_T.mean()
