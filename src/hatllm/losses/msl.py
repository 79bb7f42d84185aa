"""Masked Softmax Loss: a target token competes only with the tokens the item trie allows there.

"MSL" with an equation number means "MSL: Not All Tokens Are What You Need for Tuning LLM as a
Recommender" (arXiv:2504.04178). Legal sets are ragged, so they come flat: one logit per legal token
and, beside it, the target token it competes for. Nothing here has the size of the vocabulary.

Dimension key: T target tokens of all titles in one flat tensor, C legal tokens of all target tokens
in one flat tensor.
"""

import math

import torch
from torch import Tensor


def segment_logsumexp(value_C: Tensor, row_C: Tensor, num_rows: int) -> Tensor:
    """Log-sum-exp of each row of a flat ragged tensor.

    Args:
        value_C: Values of all rows, any order. Shape (C,), any float.
        row_C: Row of each value. Shape (C,), int64, in [0, num_rows).
        num_rows: Rows of the result.

    Returns:
        logsumexp_T: One value a row, -inf where a row has none. Shape (num_rows,), float32
            (float64 stays float64).

    Raises:
        ValueError: If the shapes differ or are not flat.
    """
    if value_C.ndim != 1 or value_C.shape != row_C.shape:
        raise ValueError(
            f"value_C and row_C must have one shape (C,), got {tuple(value_C.shape)} and "
            f"{tuple(row_C.shape)}"
        )
    value_C = _at_least_float32(value_C)
    empty_T = value_C.new_full((num_rows,), -math.inf)
    max_T = empty_T.scatter_reduce(0, row_C, value_C.detach(), "amax")
    max_T = max_T.masked_fill(max_T == -math.inf, 0.0)  # -inf - -inf would be nan
    sum_T = torch.zeros_like(max_T).index_add(0, row_C, (value_C - max_T[row_C]).exp())
    nothing_T = sum_T == 0
    log_sum_T = sum_T.masked_fill(nothing_T, 1.0).log()  # log(0) has no usable gradient
    return (log_sum_T + max_T).masked_fill(nothing_T, -math.inf)


def legal_log_prob(legal_logit_C: Tensor, row_C: Tensor, num_rows: int) -> Tensor:
    """Log-softmax over each legal set; exactly 0 where there is one legal token.

    Args:
        legal_logit_C: Logits of the legal tokens. Shape (C,), any float.
        row_C: Legal set of each logit. Shape (C,), int64, in [0, num_rows).
        num_rows: Number of legal sets.

    Returns:
        log_prob_C: In nats. Shape (C,), float32 (float64 stays float64).
    """
    logsumexp_T = segment_logsumexp(legal_logit_C, row_C, num_rows)
    return _at_least_float32(legal_logit_C) - logsumexp_T[row_C]


def msl_loss(
    positive_logit_T: Tensor, legal_logit_C: Tensor, row_C: Tensor, tau: float | Tensor
) -> Tensor:
    """Score each target token against the legal tokens at its place (MSL eq. 9).

    ``-tau * log(exp(f(y) / tau) / sum_{z in Z} exp(f(z) / tau))``; the legal set Z holds y itself.
    A forced token (one legal token, or none listed) contributes exactly 0 and no gradient.

    Args:
        positive_logit_T: Logit f(y) of each target token. Shape (T,), any float.
        legal_logit_C: Logits f(z) of the legal tokens, f(y) among them. Shape (C,), any float.
        row_C: Target token each legal token competes for. Shape (C,), int64, in [0, T).
        tau: Temperature, > 0.

    Returns:
        nll_T: Unreduced, >= 0 up to rounding; in nats where tau is 1. Shape (T,), float32 (float64
            stays float64).

    Raises:
        ValueError: If the shapes do not fit or a float ``tau`` is not positive.
    """
    if positive_logit_T.ndim != 1:
        raise ValueError(
            f"positive_logit_T must have shape (T,), got {tuple(positive_logit_T.shape)}"
        )
    if not isinstance(tau, Tensor) and tau <= 0:  # asking a tensor would wait for the device
        raise ValueError(f"tau={tau} must be above 0")
    num_rows = positive_logit_T.shape[0]
    positive_T = _at_least_float32(positive_logit_T) / tau
    logsumexp_T = segment_logsumexp(_at_least_float32(legal_logit_C) / tau, row_C, num_rows)
    is_forced_T = row_C.bincount(minlength=num_rows) <= 1
    return (tau * (logsumexp_T - positive_T)).masked_fill(is_forced_T, 0.0)


@torch.no_grad()
def legal_statistics(positive_logit_T: Tensor, legal_logit_C: Tensor, row_C: Tensor) -> Tensor:
    """Sum what ``ats_temperature`` needs over titles; sums of several ranks may be added.

    Args:
        positive_logit_T: Logit of the target token at each title's first branching position.
            Shape (T,), any float.
        legal_logit_C: Logits of the legal tokens there. Shape (C,), any float.
        row_C: Title each legal token belongs to. Shape (C,), int64; each title has one at least.

    Returns:
        sums_5: Over titles: their count, log m, mean and variance of the legal logits, positive
            logit. The variance is within a title and divides by m: softmax does not see a shift
            between titles. Shape (5,), float32 (float64 stays float64).
    """
    legal_C = _at_least_float32(legal_logit_C)
    positive_T = _at_least_float32(positive_logit_T)
    zero_T = torch.zeros_like(positive_T)
    m_T = row_C.bincount(minlength=positive_T.shape[0]).to(legal_C.dtype)
    mean_T = zero_T.index_add(0, row_C, legal_C) / m_T
    variance_T = zero_T.index_add(0, row_C, (legal_C - mean_T[row_C]).square()) / m_T
    columns_5T = torch.stack([torch.ones_like(m_T), m_T.log(), mean_T, variance_T, positive_T])
    return columns_5T.sum(dim=1)


def ats_temperature(sums_5: Tensor, eta: float, min_tau: float, max_tau: float) -> Tensor:
    """Find the temperature at which the positive's probability is about eta (MSL eq. 12).

    For Gaussian legal logits log sum exp(f / tau) ~ log m + mu / tau + s2 / (2 tau^2), so
    log p = log eta is C tau^2 - d tau + s2 / 2 = 0 with d = mean positive logit - mu and
    C = mean log m + log eta. The sum's approximation leaves the positive out, so its true
    probability lies between eta / (1 + eta) and eta.

    The + root is the published code's; the paper prints -. It is the root on which a sharper
    softmax still helps the positive. Where no temperature reaches eta (d^2 < 2 C s2), the square
    root is taken as 0, as published. C <= 0 means that even the uniform distribution gives the
    positive eta (m <= 1 / eta): the + root grows without bound as C falls to 0, hence ``max_tau``.

    Args:
        sums_5: From ``legal_statistics``, added over ranks. Shape (5,), float.
        eta: The positive's aimed-at probability, in (0, 1).
        min_tau: Smallest temperature returned.
        max_tau: Largest temperature returned; also the answer for no titles at all.

    Returns:
        tau: Shape (), dtype of ``sums_5``.
    """
    _, mean_log_m, mean, variance, positive = (sums_5 / sums_5[0].clamp(min=1)).unbind()
    d, C = positive - mean, mean_log_m + math.log(eta)
    root = (d.square() - 2 * C * variance).clamp(min=0).sqrt()
    tau = (d + root) / (2 * C)
    return torch.where(C > 0, tau, max_tau).clamp(min_tau, max_tau)


def smooth(old: Tensor, new: Tensor, ema: float) -> Tensor:
    """Return the exponential moving average ``ema * old + (1 - ema) * new``."""
    return ema * old + (1 - ema) * new


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
