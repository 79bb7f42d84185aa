"""Losses against loops over plain Python numbers."""

import math

import pytest
import torch
import torch.nn.functional as F
from few_items import settings

from hatllm.baselines.next_item_loss import (
    ChosenDots,
    binary_loss,
    next_item_loss,
    nominal_distribution,
    plain_dots,
    robust_loss,
    sampled_logits,
    sampled_softmax_loss,
    softmax_loss,
)
from hatllm.config import DrosConfig

DROS = DrosConfig(weight=0.5, radius=2.0, popularity_power=0.05)


def test_the_robust_term_equals_its_formula() -> None:
    logit_MN, target_M = torch.randn(4, 6), torch.tensor([0, 5, 2, 2])
    nominal_I = torch.rand(6)
    total = 0.0
    for row, target in zip(logit_MN.tolist(), target_M.tolist(), strict=True):
        squares = [(f - (item == target)) ** 2 for item, f in enumerate(row)]
        weighed = zip(nominal_I.tolist(), squares, strict=True)
        total += math.log(sum(math.exp(p * s / 1.7) for p, s in weighed)) / 4
    assert float(robust_loss(logit_MN, target_M, nominal_I, 1.7)) == pytest.approx(total, rel=1e-5)


def test_the_nominal_distribution_is_popularity_to_a_power() -> None:
    found = nominal_distribution(torch.tensor([1, 1, 3]), 4, DROS)
    expected = [(count / 7) ** 0.05 for count in (1, 3, 1, 2)]
    assert found.tolist() == pytest.approx(expected)


def test_samples_are_uniform_over_the_other_items() -> None:
    # Only item 3 has a logit: log 3, so its loss as a sample is log 4, any other's log 2.
    weight_ID, bias_I = torch.zeros(4, 1), torch.tensor([0.0, 0.0, 0.0, math.log(3)])
    state_MD, target_M = torch.ones(1, 1), torch.tensor([1])
    found = float(binary_loss(sampled_logits(state_MD, target_M, weight_ID, bias_I, 60_000)))
    expected = (math.log(2) + (math.log(4) + 2 * math.log(2)) / 3) / 2
    assert found == pytest.approx(expected, abs=0.01)  # 60,000 draws: a deviation of 0.0007


def test_the_target_is_never_a_sample() -> None:
    weight_ID, bias_I = torch.zeros(3, 1), torch.tensor([0.0, 50.0, 0.0])
    logit_MC = sampled_logits(torch.ones(1, 1), torch.tensor([1]), weight_ID, bias_I, 1000)
    found = binary_loss(logit_MC)
    assert float(found) == pytest.approx(math.log(2) / 2)  # 25 more if the target were drawn


@pytest.mark.parametrize("num_chosen", [2, 7])
def test_chosen_dots_and_their_gradients_are_those_of_the_plain_product(num_chosen: int) -> None:
    state_MD = torch.randn(70, 5, dtype=torch.float64, requires_grad=True)
    weight_ID = torch.randn(7, 5, dtype=torch.float64)  # seven items: most are drawn twice
    weight_ID = torch.cat([weight_ID, torch.zeros(1, 5, dtype=torch.float64)]).requires_grad_()
    item_MC = torch.randint(7, (70, num_chosen))  # of item 7 nothing is asked
    slope_MC = torch.randn(70, num_chosen, dtype=torch.float64)
    found = []
    for dots in (plain_dots, ChosenDots.apply):
        rows_ID = weight_ID[:-1]  # as the item embedding hands them out, without the padding's
        dot_MC = dots(state_MD, rows_ID, item_MC.clamp(max=6))
        found.append([dot_MC, *torch.autograd.grad(dot_MC, (state_MD, weight_ID), slope_MC)])
    for plain, fast in zip(*found, strict=True):
        torch.testing.assert_close(fast, plain)


def test_sampled_softmax_is_minus_the_log_of_the_share_of_the_target() -> None:
    logit_MC = torch.tensor([[2.0, 0.0, 1.0], [0.0, 3.0, 3.0]])
    shares = [math.e**2 / (math.e**2 + 1 + math.e), 1 / (1 + 2 * math.e**3)]
    expected = -sum(math.log(share) for share in shares) / 2
    assert float(sampled_softmax_loss(logit_MC)) == pytest.approx(expected)


def test_sampled_softmax_over_many_samples_is_near_the_softmax_over_all_items() -> None:
    # Of n samples each other item is drawn n / 3 times: they weigh n / 3 times as much as in "ce".
    output = (torch.tensor([[1.0], [2.0], [0.0], [0.5]]), torch.zeros(4))
    config = settings(loss="sampled_softmax", num_negatives=30_000)
    found = next_item_loss(torch.ones(1, 1), torch.tensor([1]), output, config, None)
    others = 10_000 * (math.e + 1 + math.e**0.5)
    assert float(found) == pytest.approx(math.log(math.e**2 + others) - 2, abs=0.02)


@pytest.mark.parametrize("loss", ["ce", "bce", "sampled_softmax"])
def test_dros_adds_its_weight_times_the_robust_term(loss: str) -> None:
    state_MD, target_M = torch.randn(5, 3), torch.tensor([0, 1, 2, 3, 3])
    output = (torch.randn(4, 3), torch.randn(4))
    nominal_I = torch.rand(4)
    config = settings(loss=loss, num_negatives=2, dros=DROS)
    found = []
    for nominal in (None, nominal_I):
        torch.manual_seed(3)  # the same samples
        found.append(next_item_loss(state_MD, target_M, output, config, nominal))
    logit_MN = state_MD @ output[0].T + output[1]
    expected = 0.5 * robust_loss(logit_MN, target_M, nominal_I, DROS.radius)
    torch.testing.assert_close(found[1] - found[0], expected)


def test_cross_entropy_is_minus_the_log_of_a_softmax_over_all_items() -> None:
    output = (torch.tensor([[1.0], [2.0], [0.0]]), torch.zeros(3))
    found = next_item_loss(torch.ones(1, 1), torch.tensor([1]), output, settings(), None)
    assert float(found) == pytest.approx(math.log(math.e + math.e**2 + 1) - 2)


@pytest.mark.parametrize("num_states", [1, 64, 200])
def test_cross_entropy_in_pieces_has_the_loss_and_gradients_of_one_big_softmax(
    num_states: int,
) -> None:
    inputs = [torch.randn(shape) for shape in ((num_states, 8), (300, 8), (300,))]
    target_M = torch.randint(300, (num_states,))

    def loss_and_gradients(pieces: bool) -> list[torch.Tensor]:
        state_MD, weight_ID, bias_I = (tensor.clone().requires_grad_() for tensor in inputs)
        if pieces:
            loss = softmax_loss(state_MD, target_M, weight_ID, bias_I)
        else:
            loss = F.cross_entropy(F.linear(state_MD, weight_ID, bias_I), target_M)
        return [loss.detach(), *torch.autograd.grad(loss, (state_MD, weight_ID, bias_I))]

    for found, expected in zip(loss_and_gradients(True), loss_and_gradients(False), strict=True):
        torch.testing.assert_close(found, expected)
