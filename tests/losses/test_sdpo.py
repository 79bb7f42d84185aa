import math

import pytest
import torch

from hatllm.losses.sdpo import sdpo_loss


def test_the_loss_by_hand() -> None:
    log_prob_BJ = torch.tensor([[-1.0, -3.0, -2.0]], dtype=torch.float64)
    reference_BJ = torch.tensor([[-2.0, -2.0, -2.5]], dtype=torch.float64)
    # Rewards at beta 2: target 2, negatives -2 and 1.
    total = math.exp(-2.0 - 2.0) + math.exp(1.0 - 2.0)
    expected = -math.log(1 / (1 + total))
    assert float(sdpo_loss(log_prob_BJ, reference_BJ, 2.0)) == pytest.approx(expected, rel=1e-12)


def test_with_one_negative_it_is_dpo() -> None:
    log_prob_BJ, reference_BJ = torch.randn(5, 2), torch.randn(5, 2)
    margin_B = (log_prob_BJ - reference_BJ)[:, 0] - (log_prob_BJ - reference_BJ)[:, 1]
    expected_B = -torch.nn.functional.logsigmoid(0.1 * margin_B)
    torch.testing.assert_close(sdpo_loss(log_prob_BJ, reference_BJ, 0.1), expected_B)


def test_at_the_reference_the_target_stands_among_equals() -> None:
    same_BJ = torch.randn(3, 4)
    expected_B = torch.full((3,), math.log(4.0))
    torch.testing.assert_close(sdpo_loss(same_BJ, same_BJ, 1.0), expected_B)


def test_no_gradient_flows_into_the_reference_and_none_is_lost_where_exp_would_overflow() -> None:
    log_prob_BJ = torch.tensor([[-900.0, -1.0, -2.0]], dtype=torch.float64, requires_grad=True)
    reference_BJ = torch.tensor([[-1.0, -900.0, -900.0]]).requires_grad_()
    sdpo_loss(log_prob_BJ, reference_BJ, 1.0).sum().backward()
    assert reference_BJ.grad is None
    assert log_prob_BJ.grad is not None
    assert log_prob_BJ.grad[0, 0] == pytest.approx(-1.0)
    assert log_prob_BJ.grad[0, 1:].sum() == pytest.approx(1.0)


def test_wrong_shapes_and_beta_are_named() -> None:
    with pytest.raises(ValueError, match=r"\(2, 1\)"):
        sdpo_loss(torch.zeros(2, 1), torch.zeros(2, 1), 1.0)
    with pytest.raises(ValueError, match="beta=0"):
        sdpo_loss(torch.zeros(2, 2), torch.zeros(2, 2), 0)
