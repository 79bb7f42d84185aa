"""Losses of the id-based baselines, from the states that come before their targets.

Dimension key: M training states, N items, D hidden size, S sampled items a state.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hatllm.config import DrosConfig, SequenceConfig

STATES_AT_A_TIME = (
    64  # rows of logits that exist at once: with 20,000 items they fit a core's cache
)


def next_item_loss(
    state_MD: Tensor,
    target_M: Tensor,
    output: tuple[Tensor, Tensor],
    config: SequenceConfig,
    nominal_N: Tensor | None,
) -> Tensor:
    """The mean loss of one batch.

    Args:
        state_MD: States. Shape (M, D).
        target_M: The item that comes after each. Shape (M,), int64.
        output: weight_ND and bias_N of the output layer.
        config: Which loss.
        nominal_N: Nominal distribution of :func:`robust_loss`; None = no robust term.

    Returns:
        A scalar.
    """
    weight_ND, bias_N = output
    if config.loss == "ce":
        loss = softmax_loss(state_MD, target_M, weight_ND, bias_N)
    else:
        assert config.num_negatives is not None
        loss = sampled_loss(state_MD, target_M, weight_ND, bias_N, config.num_negatives)
    if nominal_N is not None:
        assert config.dros is not None
        logit_MN = F.linear(state_MD, weight_ND, bias_N)
        robust = robust_loss(logit_MN, target_M, nominal_N, config.dros.radius)
        loss = loss + config.dros.weight * robust
    return loss


def softmax_loss(state_MD: Tensor, target_M: Tensor, weight_ND: Tensor, bias_N: Tensor) -> Tensor:
    """Cross-entropy of the target among all items, without an (M, N) tensor where torch can.

    Args:
        state_MD: States. Shape (M, D).
        target_M: Targets. Shape (M,), int64.
        weight_ND: Output weights. Shape (N, D).
        bias_N: Output biases. Shape (N,).

    Returns:
        A scalar, the mean over states.
    """
    if not hasattr(F, "linear_cross_entropy"):  # torch before 2.13
        return F.cross_entropy(F.linear(state_MD, weight_ND, bias_N), target_M)
    options = nn.LinearCrossEntropyOptions(batch_chunk_size=STATES_AT_A_TIME, acc_policy="accurate")
    return F.linear_cross_entropy(
        state_MD, weight_ND, target_M, linear_bias=bias_N, options=options
    )


def sampled_loss(
    state_MD: Tensor, target_M: Tensor, weight_ND: Tensor, bias_N: Tensor, num_negatives: int
) -> Tensor:
    """Binary cross-entropy of the target against uniformly sampled other items (SASRec, eq. 5).

    Args:
        state_MD: States. Shape (M, D).
        target_M: Targets. Shape (M,), int64.
        weight_ND: Output weights. Shape (N, D), N at least 2.
        bias_N: Output biases. Shape (N,).
        num_negatives: Sampled items S a state; none is the target.

    Returns:
        A scalar: targets and samples weigh one half each.
    """
    drawn_MS = torch.randint(
        len(bias_N) - 1, (len(target_M), num_negatives), device=target_M.device
    )
    item_MS = drawn_MS + (drawn_MS >= target_M[:, None])
    item_MS = torch.cat([target_M[:, None], item_MS], dim=1)
    # F.embedding and not indexing: its gradient is summed in a fixed order.
    logit_MS = torch.einsum("md,msd->ms", state_MD, F.embedding(item_MS, weight_ND))
    logit_MS = logit_MS + F.embedding(item_MS, bias_N[:, None]).squeeze(2)
    return (F.softplus(-logit_MS[:, 0]).mean() + F.softplus(logit_MS[:, 1:]).mean()) / 2


def robust_loss(logit_MN: Tensor, target_M: Tensor, nominal_N: Tensor, radius: float) -> Tensor:
    """The distributionally robust term of DROS (Yang et al., SIGIR 2023).

    mean over states of log sum_j exp(p_j (f_j - y_j)^2 / radius), with y_j = 1 for the target and
    0 for any other item, as in the authors' code.

    Args:
        logit_MN: Logits f of all items. Shape (M, N).
        target_M: Targets. Shape (M,), int64.
        nominal_N: Nominal distribution p. Shape (N,).
        radius: Above 0.

    Returns:
        A scalar.
    """
    wanted_MN = F.one_hot(target_M, logit_MN.shape[1]).to(logit_MN.dtype)
    return (nominal_N * (logit_MN - wanted_MN).square() / radius).logsumexp(dim=1).mean()


def nominal_distribution(target_M: Tensor, num_items: int, config: DrosConfig) -> Tensor:
    """Popularity of the training targets, one added, to a power; shape (N,), not normalised.

    As in the authors' code (SASRec_bce.py), which counts the target of every row.
    """
    count_N = target_M.bincount(minlength=num_items).float() + 1
    return (count_N / count_N.sum()) ** config.popularity_power
