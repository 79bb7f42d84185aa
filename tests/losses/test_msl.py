import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hatllm.losses.lml import lml_loss
from hatllm.losses.msl import (
    ats_temperature,
    legal_log_prob,
    legal_statistics,
    msl_loss,
    segment_logsumexp,
    smooth,
)

V = 13


def ragged_case(num_rows: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits over a vocabulary, a legal set a row, the positive: logits_TV, row_C, token_C, y_T."""
    generator = torch.Generator().manual_seed(seed)
    logits_TV = 3 * torch.randn(num_rows, V, generator=generator, dtype=torch.float64)
    legal_TV = torch.rand(num_rows, V, generator=generator) < 0.4
    y_T = torch.randint(V, (num_rows,), generator=generator)
    legal_TV[torch.arange(num_rows), y_T] = True
    row_C, token_C = legal_TV.nonzero().unbind(1)
    return logits_TV, row_C, token_C, y_T


def masked_vocabulary_nll(
    logits_TV: Tensor, row_C: Tensor, token_C: Tensor, y_T: Tensor, tau: float
) -> Tensor:
    legal_TV = torch.zeros(logits_TV.shape, dtype=torch.bool)
    legal_TV[row_C, token_C] = True
    log_prob_TV = (logits_TV / tau).masked_fill(~legal_TV, -math.inf).log_softmax(1)
    return -tau * log_prob_TV[torch.arange(len(y_T)), y_T]


def test_msl_of_a_hand_worked_title() -> None:
    # Legal sets {0, log 3} with tau 1: p = 3/4. {0, 2 log 3, 0} with tau 2: p = 3/5.
    legal_C = torch.tensor([0.0, math.log(3.0)])
    nll_T = msl_loss(legal_C[1:], legal_C, torch.tensor([0, 0]), tau=1.0)
    torch.testing.assert_close(nll_T, torch.tensor([math.log(4 / 3)]))
    legal_C = torch.tensor([0.0, 2 * math.log(3.0), 0.0])
    nll_T = msl_loss(legal_C[1:2], legal_C, torch.tensor([0, 0, 0]), tau=2.0)
    torch.testing.assert_close(nll_T, torch.tensor([2 * math.log(5 / 3)]))


@given(st.integers(1, 8), st.integers(0, 2**31), st.floats(0.3, 8.0))
def test_msl_and_its_gradient_equal_a_masked_softmax_over_the_vocabulary(
    num_rows: int, seed: int, tau: float
) -> None:
    logits_TV, row_C, token_C, y_T = ragged_case(num_rows, seed)
    weight_T = torch.arange(1, num_rows + 1, dtype=torch.float64)
    logits_TV.requires_grad_()
    oracle_T = masked_vocabulary_nll(logits_TV, row_C, token_C, y_T, tau)
    (oracle_grad_TV,) = torch.autograd.grad(oracle_T @ weight_T, logits_TV)
    positive_T = logits_TV[torch.arange(num_rows), y_T]
    nll_T = msl_loss(positive_T, logits_TV[row_C, token_C], row_C, tau)
    (grad_TV,) = torch.autograd.grad(nll_T @ weight_T, logits_TV)
    torch.testing.assert_close(nll_T, oracle_T, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(grad_TV, oracle_grad_TV, rtol=1e-9, atol=1e-9)


def test_msl_passes_gradcheck() -> None:
    logits_TV, row_C, token_C, y_T = ragged_case(5, seed=3)
    logits_TV.requires_grad_()

    def loss(logits_TV: Tensor) -> Tensor:
        return msl_loss(logits_TV[torch.arange(5), y_T], logits_TV[row_C, token_C], row_C, 1.7)

    assert torch.autograd.gradcheck(loss, (logits_TV,))


def test_msl_with_the_whole_vocabulary_legal_is_lml() -> None:
    logits_TV, _, _, y_T = ragged_case(4, seed=0)
    row_C = torch.arange(4).repeat_interleave(V)
    nll_T = msl_loss(logits_TV[torch.arange(4), y_T], logits_TV.flatten(), row_C, 1.0)
    torch.testing.assert_close(nll_T, lml_loss(logits_TV, y_T))


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
def test_a_forced_token_contributes_exactly_zero_and_no_gradient() -> None:
    # Row 0 is forced, its logit computed twice with a rounding error; row 1 lists no legal token.
    legal_C = torch.tensor([5.0, 1.0, 2.0], requires_grad=True)
    positive_T = torch.tensor([5.001, 7.0, 2.0], requires_grad=True)
    nll_T = msl_loss(positive_T, legal_C, torch.tensor([0, 2, 2]), 1.5)
    assert nll_T[:2].tolist() == [0.0, 0.0]
    with torch.autograd.detect_anomaly(check_nan=True):
        nll_T.sum().backward()
    assert legal_C.grad is not None and positive_T.grad is not None
    assert legal_C.grad[0] == 0
    assert positive_T.grad[:2].tolist() == [0.0, 0.0]
    assert legal_C.grad.isfinite().all() and (legal_C.grad[1:] != 0).all()


def test_huge_logits_do_not_overflow() -> None:
    legal_C = torch.tensor([1e4, 1e4 - 1.0, -1e4])
    nll_T = msl_loss(legal_C[:1], legal_C, torch.zeros(3, dtype=torch.int64), 1.0)
    # 1e4 in float32 is exact to 1e-3, the difference of two such logits to 1e-3 as well.
    torch.testing.assert_close(nll_T, torch.tensor([math.log1p(math.exp(-1))]), rtol=0, atol=1e-3)


def test_half_precision_logits_give_a_float32_loss() -> None:
    legal_C = torch.randn(6).bfloat16()
    row_C = torch.tensor([0, 0, 0, 1, 1, 1])
    nll_T = msl_loss(legal_C[[0, 3]], legal_C, row_C, torch.tensor(4.5))
    assert nll_T.dtype == torch.float32
    expected_T = msl_loss(legal_C.float()[[0, 3]], legal_C.float(), row_C, 4.5)
    torch.testing.assert_close(nll_T, expected_T, rtol=0, atol=0)


def test_rows_may_come_in_any_order() -> None:
    logits_TV, row_C, token_C, y_T = ragged_case(6, seed=1)
    order_C = torch.randperm(row_C.numel(), generator=torch.Generator().manual_seed(0))
    positive_T, legal_C = logits_TV[torch.arange(6), y_T], logits_TV[row_C, token_C]
    shuffled_T = msl_loss(positive_T, legal_C[order_C], row_C[order_C], 2.0)
    torch.testing.assert_close(shuffled_T, msl_loss(positive_T, legal_C, row_C, 2.0))


def test_segment_logsumexp_of_empty_and_impossible_rows_is_minus_infinity() -> None:
    value_C = torch.tensor([0.0, 0.0, -math.inf, -math.inf, 3.0], requires_grad=True)
    sums_T = segment_logsumexp(value_C, torch.tensor([0, 0, 2, 2, 3]), num_rows=4)
    torch.testing.assert_close(sums_T, torch.tensor([math.log(2), -math.inf, -math.inf, 3.0]))
    sums_T[[0, 3]].sum().backward()
    assert value_C.grad is not None
    assert value_C.grad.tolist() == [0.5, 0.5, 0.0, 0.0, 1.0]


def test_legal_log_probs_of_a_row_sum_to_one() -> None:
    logits_TV, row_C, token_C, _ = ragged_case(7, seed=2)
    log_prob_C = legal_log_prob(logits_TV[row_C, token_C], row_C, 7)
    total_T = torch.zeros(7, dtype=torch.float64).index_add(0, row_C, log_prob_C.exp())
    torch.testing.assert_close(total_T, torch.ones(7, dtype=torch.float64))


def test_a_single_legal_token_has_log_prob_exactly_zero() -> None:
    log_prob_C = legal_log_prob(torch.tensor([7.3, 0.0, 0.0]), torch.tensor([0, 1, 1]), 2)
    assert log_prob_C[0] == 0.0


def test_wrong_input_is_refused() -> None:
    one, row = torch.zeros(1), torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"tau=0\.0 must be above 0"):
        msl_loss(one, one, row, 0.0)
    with pytest.raises(ValueError, match=r"one shape \(C,\)"):
        msl_loss(one, torch.zeros(2), row, 1.0)
    with pytest.raises(ValueError, match="positive_logit_T"):
        msl_loss(torch.zeros(1, 1), one, row, 1.0)


def test_statistics_of_a_hand_worked_batch() -> None:
    # Title 0: legal {1, 3}, positive 3. Title 1: legal {0, 0, 6, 6}, positive 6.
    legal_C = torch.tensor([1.0, 3.0, 0.0, 0.0, 6.0, 6.0])
    sums_5 = legal_statistics(torch.tensor([3.0, 6.0]), legal_C, torch.tensor([0, 0, 1, 1, 1, 1]))
    expected_5 = torch.tensor([2.0, math.log(2) + math.log(4), 2.0 + 3.0, 1.0 + 9.0, 9.0])
    torch.testing.assert_close(sums_5, expected_5)
    assert not sums_5.requires_grad


def test_sums_of_two_ranks_add_up_to_those_of_one() -> None:
    logits_TV, row_C, token_C, y_T = ragged_case(8, seed=4)
    positive_T, legal_C = logits_TV[torch.arange(8), y_T], logits_TV[row_C, token_C]
    first_C = row_C < 3
    ranks = legal_statistics(positive_T[:3], legal_C[first_C], row_C[first_C])
    ranks = ranks + legal_statistics(positive_T[3:], legal_C[~first_C], row_C[~first_C] - 3)
    torch.testing.assert_close(ranks, legal_statistics(positive_T, legal_C, row_C))


def test_a_shift_of_one_titles_logits_changes_no_temperature() -> None:
    logits_TV, row_C, token_C, y_T = ragged_case(8, seed=5)
    shifted_TV = logits_TV + 10 * torch.arange(8)[:, None]
    tau, shifted_tau = (
        ats_temperature(
            legal_statistics(x[torch.arange(8), y_T], x[row_C, token_C], row_C), 0.9, 1e-6, 1e6
        )
        for x in (logits_TV, shifted_TV)
    )
    torch.testing.assert_close(tau, shifted_tau)


def sums(m: float, mean: float, variance: float, positive: float) -> Tensor:
    return 5 * torch.tensor([1.0, math.log(m), mean, variance, positive], dtype=torch.float64)


def test_ats_takes_the_plus_root() -> None:
    # m = 4e, eta = 1/4: C = 1; mu = 1, positive = 6: d = 5, s2 = 8; roots (5 +- 3) / 2 = 4 and 1.
    tau = ats_temperature(sums(4 * math.e, 1.0, 8.0, 6.0), 0.25, 1e-6, math.inf)
    torch.testing.assert_close(tau, torch.tensor(4.0, dtype=torch.float64))


@pytest.mark.parametrize(("m", "variance", "d"), [(500, 1.0, 6.0), (2000, 4.0, 9.0)])
def test_ats_gives_a_positive_among_gaussian_logits_a_probability_near_eta(
    m: int, variance: float, d: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    eta, titles = 0.25, 200
    legal_TC = 7.0 + variance**0.5 * torch.randn(titles, m, generator=generator).double()
    legal_TC[:, 0] = 7.0 + d
    row_C = torch.arange(titles).repeat_interleave(m)
    sums_5 = legal_statistics(legal_TC[:, 0], legal_TC.flatten(), row_C)
    tau = float(ats_temperature(sums_5, eta, 1e-6, math.inf))
    prob_T = torch.exp(-msl_loss(legal_TC[:, 0], legal_TC.flatten(), row_C, tau) / tau)
    # The Gaussian sum leaves the positive out: its odds against the others are eta, so its
    # probability is eta / (1 + eta) = 0.2. 10 %: sampling noise and the positive's share in s2.
    assert float(prob_T.mean()) == pytest.approx(eta / (1 + eta), rel=0.1)
    assert float((prob_T / (1 - prob_T)).mean()) == pytest.approx(eta, rel=0.1)


def test_ats_takes_the_square_root_as_zero_where_no_temperature_reaches_eta() -> None:
    # C = 1, d = 6, s2 = 100: d^2 < 2 C s2, so tau = d / (2 C) = 3.
    tau = ats_temperature(sums(4 * math.e, 0.0, 100.0, 6.0), 0.25, 1e-6, math.inf)
    torch.testing.assert_close(tau, torch.tensor(3.0, dtype=torch.float64))


@pytest.mark.parametrize("m", [1, 2, 4])
def test_ats_is_flattest_where_even_the_uniform_distribution_reaches_eta(m: int) -> None:
    for positive in (-3.0, 0.0, 3.0):
        assert ats_temperature(sums(m, 0.0, 1.0, positive), 0.25, 1.5, 5.0) == 5.0


def test_ats_rises_to_its_limit_as_the_legal_set_shrinks_to_one_over_eta() -> None:
    taus = [
        float(ats_temperature(sums(m, 0.0, 1.0, 3.0), 0.25, 1e-6, 50.0))
        for m in (100, 20, 8, 5, 4.1, 4.0)
    ]
    assert taus == sorted(taus) and taus[-1] == 50.0


@given(st.floats(1, 1e5), st.floats(-50, 50), st.floats(0, 1e3), st.floats(-50, 50))
def test_ats_stays_inside_its_clamp(
    m: float, mean: float, variance: float, positive: float
) -> None:
    assert 1.5 <= float(ats_temperature(sums(m, mean, variance, positive), 0.25, 1.5, 5.0)) <= 5.0


def test_a_batch_without_titles_gives_the_largest_temperature() -> None:
    assert ats_temperature(torch.zeros(5), 0.25, 1.5, 5.0) == 5.0


def test_smooth_keeps_the_share_ema_of_the_old_value() -> None:
    assert smooth(torch.tensor(2.0), torch.tensor(4.0), 0.75) == 2.5
