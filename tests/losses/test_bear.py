import math

import pytest
import torch

from hatllm.losses.bear import survival_weights


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def test_a_token_among_the_k_best_weighs_more_than_one_below_them() -> None:
    # The second best of each row has 1/4, 1/8, 1/3; the targets 1/2, 1/8, 1/3.
    probabilities = [[0.5, 0.25, 0.25], [0.125, 0.125, 0.75], [2 / 3, 1 / 3]]
    targets = [0, 0, 1]
    logit_C = torch.tensor([math.log(p) + 5 for row in probabilities for p in row])
    row_C = torch.tensor([i for i, row in enumerate(probabilities) for _ in row])
    is_target_C = torch.tensor(
        [j == targets[i] for i, row in enumerate(probabilities) for j in range(len(row))]
    )
    raw = [1 + 0.25 * sigmoid(margin / 2.75) for margin in (math.log(2), 0.0, 0.0)]
    expected = torch.tensor([3 * value / sum(raw) for value in raw])
    found = survival_weights(logit_C, row_C, is_target_C, rank=2, xi=2.75, lam=0.25)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("rank", [1, 3, 50])
def test_weights_equal_a_sort_of_each_row(rank: int) -> None:
    generator = torch.Generator().manual_seed(rank)
    num_T = torch.randint(2, 9, (12,), generator=generator)
    row_C = torch.arange(12).repeat_interleave(num_T)
    logit_C = torch.randn(len(row_C), generator=generator, dtype=torch.float64)
    first_T = num_T.cumsum(0) - num_T
    is_target_C = torch.zeros(len(row_C), dtype=torch.bool)
    is_target_C[first_T + torch.randint(2, (12,), generator=generator)] = True
    raw = []
    for row in range(12):
        log_prob = logit_C[row_C == row].log_softmax(0)
        kth = log_prob.sort(descending=True).values[min(rank, len(log_prob)) - 1]
        margin = float(log_prob[is_target_C[row_C == row]] - kth)
        raw.append(1 + 2.0 * sigmoid(margin / 0.5))
    expected = torch.tensor(raw, dtype=torch.float64)
    found = survival_weights(logit_C, row_C, is_target_C, rank, xi=0.5, lam=2.0)
    torch.testing.assert_close(found, expected / expected.mean())
