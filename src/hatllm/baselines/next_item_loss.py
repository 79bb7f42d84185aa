"""Losses of the id-based baselines, from the states that come before their targets.

Dimension key: M training states, I items, D hidden size, C candidates of a state: its target,
then sampled items.
"""

import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hatllm.config import DrosConfig, SequenceConfig

STATES_AT_A_TIME = (
    64  # rows of logits that exist at once: with 20,000 items they fit a core's cache
)

warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")


def next_item_loss(
    state_MD: Tensor,
    target_M: Tensor,
    output: tuple[Tensor, Tensor],
    config: SequenceConfig,
    nominal_I: Tensor | None,
) -> Tensor:
    """The mean loss of one batch.

    Args:
        state_MD: States. Shape (M, D).
        target_M: The item that comes after each. Shape (M,), int64.
        output: weight_ID and bias_I of the output layer.
        config: Which loss.
        nominal_I: Nominal distribution of :func:`robust_loss`; None = no robust term.

    Returns:
        A scalar.
    """
    weight_ID, bias_I = output
    if config.loss == "ce":
        loss = softmax_loss(state_MD, target_M, weight_ID, bias_I)
    else:
        assert config.num_negatives is not None
        logit_MC = sampled_logits(state_MD, target_M, weight_ID, bias_I, config.num_negatives)
        loss = binary_loss(logit_MC) if config.loss == "bce" else sampled_softmax_loss(logit_MC)
    if nominal_I is not None:
        assert config.dros is not None
        logit_MI = F.linear(state_MD, weight_ID, bias_I)
        robust = robust_loss(logit_MI, target_M, nominal_I, config.dros.radius)
        loss = loss + config.dros.weight * robust
    return loss


def softmax_loss(state_MD: Tensor, target_M: Tensor, weight_ID: Tensor, bias_I: Tensor) -> Tensor:
    """Cross-entropy of the target among all items, without an (M, I) tensor where torch can.

    Args:
        state_MD: States. Shape (M, D).
        target_M: Targets. Shape (M,), int64.
        weight_ID: Output weights. Shape (I, D).
        bias_I: Output biases. Shape (I,).

    Returns:
        A scalar, the mean over states.
    """
    if not hasattr(F, "linear_cross_entropy"):  # torch before 2.13
        return F.cross_entropy(F.linear(state_MD, weight_ID, bias_I), target_M)
    options = nn.LinearCrossEntropyOptions(batch_chunk_size=STATES_AT_A_TIME, acc_policy="accurate")
    return F.linear_cross_entropy(
        state_MD, weight_ID, target_M, linear_bias=bias_I, options=options
    )


def sampled_logits(
    state_MD: Tensor, target_M: Tensor, weight_ID: Tensor, bias_I: Tensor, num_negatives: int
) -> Tensor:
    """Logits of the target, then of uniformly sampled other items.

    Args:
        state_MD: States. Shape (M, D).
        target_M: Targets. Shape (M,), int64.
        weight_ID: Output weights. Shape (I, D), I at least 2.
        bias_I: Output biases. Shape (I,).
        num_negatives: Sampled items a state; none is the target, one may be drawn twice.

    Returns:
        Shape (M, C), C = 1 + ``num_negatives``.
    """
    drawn_MC = torch.randint(
        len(bias_I) - 1, (len(target_M), num_negatives), device=target_M.device
    )
    item_MC = drawn_MC + (drawn_MC >= target_M[:, None])
    item_MC = torch.cat([target_M[:, None], item_MC], dim=1)
    # Torch's sparse kernels know no half precision, and no more entries a row than columns.
    fits = state_MD.is_cpu and state_MD.dtype in (torch.float32, torch.float64)
    fits = fits and item_MC.shape[1] <= len(weight_ID)
    dots = ChosenDots.apply if fits else plain_dots
    logit_MC: Tensor = dots(state_MD, weight_ID, item_MC)
    return logit_MC + F.embedding(item_MC, bias_I[:, None]).squeeze(2)


def plain_dots(state_MD: Tensor, weight_ID: Tensor, item_MC: Tensor) -> Tensor:
    """Dot products of each state with the rows of its own items.

    Args:
        state_MD: States. Shape (M, D).
        weight_ID: Rows of the items. Shape (I, D).
        item_MC: Items of each state. Shape (M, C), int64.

    Returns:
        Shape (M, C).
    """
    # F.embedding and not indexing: its gradient is summed in a fixed order.
    return torch.einsum("md,mcd->mc", state_MD, F.embedding(item_MC, weight_ID))


class ChosenDots(torch.autograd.Function):
    """`plain_dots` on a CPU without an (M, C, D) tensor, by torch's sparse kernels.

    Equal to `plain_dots` up to the rounding of sums in another order, the same in every call.
    """

    @staticmethod
    def forward(ctx: Any, state_MD: Tensor, weight_ID: Tensor, item_MC: Tensor) -> Tensor:
        """As `plain_dots`: an (M, I) product of which the chosen entries alone are computed."""
        ctx.save_for_backward(state_MD, weight_ID, item_MC)
        num_states, num_chosen = item_MC.shape
        chosen_MI = torch.sparse_csr_tensor(
            num_chosen * torch.arange(num_states + 1), item_MC.flatten(),
            state_MD.new_zeros(item_MC.numel()), (num_states, len(weight_ID)),
            check_invariants=False,  # an item may be drawn twice for one state
        )  # fmt: skip
        dots: Tensor = torch.sparse.sampled_addmm(chosen_MI, state_MD, weight_ID.T, beta=0.0)
        return dots.values().view(item_MC.shape)

    @staticmethod
    def backward(ctx: Any, slope_MC: Tensor) -> tuple[Tensor, Tensor, None]:
        """Gradients of the states and of the items' rows: weighted sums of the others' rows."""
        state_MD, weight_ID, item_MC = ctx.saved_tensors
        of_states = F.embedding_bag(item_MC, weight_ID, mode="sum", per_sample_weights=slope_MC)
        chosen = item_MC.flatten()
        by_item = chosen.int().argsort(stable=True)
        start_I = F.pad(chosen.bincount(minlength=len(weight_ID)).cumsum(0)[:-1], (1, 0))
        of_rows = F.embedding_bag(
            by_item // item_MC.shape[1], state_MD, start_I, mode="sum",
            per_sample_weights=slope_MC.flatten()[by_item],
        )  # fmt: skip
        return of_states, of_rows, None


def binary_loss(logit_MC: Tensor) -> Tensor:
    """Binary cross-entropy of the target against the sampled items (SASRec, eq. 5).

    Args:
        logit_MC: Output of `sampled_logits`.

    Returns:
        A scalar: targets and samples weigh one half each.
    """
    return (F.softplus(-logit_MC[:, 0]).mean() + F.softplus(logit_MC[:, 1:]).mean()) / 2


def sampled_softmax_loss(logit_MC: Tensor) -> Tensor:
    """Cross-entropy of the target among itself and the sampled items.

    Args:
        logit_MC: Output of `sampled_logits`.

    Returns:
        A scalar, the mean over states.
    """
    return F.cross_entropy(logit_MC, logit_MC.new_zeros(len(logit_MC), dtype=torch.int64))


def robust_loss(logit_MI: Tensor, target_M: Tensor, nominal_I: Tensor, radius: float) -> Tensor:
    """The distributionally robust term of DROS (Yang et al., SIGIR 2023).

    mean over states of log sum_j exp(p_j (f_j - y_j)^2 / radius), with y_j = 1 for the target and
    0 for any other item, as in the authors' code.

    Args:
        logit_MI: Logits f of all items. Shape (M, I).
        target_M: Targets. Shape (M,), int64.
        nominal_I: Nominal distribution p. Shape (I,).
        radius: Above 0.

    Returns:
        A scalar.
    """
    wanted_MI = F.one_hot(target_M, logit_MI.shape[1]).to(logit_MI.dtype)
    return (nominal_I * (logit_MI - wanted_MI).square() / radius).logsumexp(dim=1).mean()


def nominal_distribution(target_M: Tensor, num_items: int, config: DrosConfig) -> Tensor:
    """Popularity of the training targets, one added, to a power; shape (I,), not normalised.

    As in the authors' code (SASRec_bce.py), which counts the target of every row.
    """
    count_I = target_M.bincount(minlength=num_items).float() + 1
    return (count_I / count_I.sum()) ** config.popularity_power
