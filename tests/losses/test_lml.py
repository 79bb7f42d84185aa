import math

import pytest
import torch

from hatllm.losses.lml import lml_loss


def test_lml_of_a_hand_worked_vocabulary_of_three() -> None:
    logits_TV = torch.tensor([[0.0, math.log(2.0), 0.0], [0.0, 0.0, 0.0]])
    expected_T = torch.tensor([math.log(2.0), math.log(3.0)])  # probabilities 2/4 and 1/3
    torch.testing.assert_close(lml_loss(logits_TV, torch.tensor([1, 2])), expected_T)


def test_lml_is_minus_log_softmax_at_the_target_and_so_is_its_gradient() -> None:
    torch.manual_seed(0)
    logits_TV = torch.randn(6, 11, dtype=torch.float64, requires_grad=True)
    token_T = torch.randint(11, (6,))
    oracle_T = -logits_TV.log_softmax(1)[torch.arange(6), token_T]
    torch.testing.assert_close(lml_loss(logits_TV, token_T), oracle_T)
    assert torch.autograd.gradcheck(lambda x: lml_loss(x, token_T), (logits_TV,))


def test_half_precision_logits_are_scored_in_float32() -> None:
    logits_TV = torch.randn(3, 5).bfloat16()
    token_T = torch.tensor([0, 1, 4])
    nll_T = lml_loss(logits_TV, token_T)
    assert nll_T.dtype == torch.float32
    torch.testing.assert_close(nll_T, lml_loss(logits_TV.float(), token_T), rtol=0, atol=0)


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(T, V\)"):
        lml_loss(torch.zeros(2, 3, 5), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"\(T, V\)"):
        lml_loss(torch.zeros(2, 5), torch.zeros(3, dtype=torch.int64))
