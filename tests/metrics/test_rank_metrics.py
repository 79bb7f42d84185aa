"""Metrics against fractions a reader can check, and against torchmetrics.retrieval."""

import math
from collections.abc import Callable

import pytest
import torch
from torchmetrics.retrieval import RetrievalHitRate, RetrievalMRR, RetrievalNormalizedDCG

from hatllm.metrics.rank_metrics import MRR, NDCG, HitRate, RankMean
from hatllm.metrics.ranking import discounted_gains, hits, reciprocal_ranks, standard_error

RANKS_B = torch.tensor([1, 3, 0, 5, 11])  # one first, one third, one not found, one fifth, one late


def test_hit_rate_counts_the_targets_within_the_list() -> None:
    assert HitRate(1)(RANKS_B).item() == pytest.approx(1 / 5)
    assert HitRate(5)(RANKS_B).item() == pytest.approx(3 / 5)
    assert HitRate(10)(RANKS_B).item() == pytest.approx(3 / 5)


def test_ndcg_is_one_over_log_two_of_rank_plus_one() -> None:
    assert discounted_gains(RANKS_B, 5).tolist() == pytest.approx(
        [1, 1 / 2, 0, 1 / math.log2(6), 0]
    )
    assert NDCG(3)(RANKS_B).item() == pytest.approx((1 + 1 / 2) / 5)


def test_ndcg_of_a_first_place_is_one_at_every_k() -> None:
    for k in (1, 5, 10, 100):  # a K-item ideal would give 1 / (1 + 1/log2(3) + ...)
        assert NDCG(k)(torch.tensor([1])).item() == 1.0


def test_mrr_is_one_over_the_rank() -> None:
    assert reciprocal_ranks(RANKS_B, 5).tolist() == pytest.approx([1, 1 / 3, 0, 1 / 5, 0])
    assert MRR(3)(RANKS_B).item() == pytest.approx((1 + 1 / 3) / 5)


def test_a_target_not_found_stays_in_the_denominator() -> None:
    for metric in (HitRate, NDCG, MRR):
        assert metric(10)(torch.tensor([1, 0, 0, 0])).item() == pytest.approx(1 / 4)


@pytest.mark.parametrize("absent", [0.0, -1.0, math.inf, math.nan])
def test_every_spelling_of_not_found_is_worth_zero(absent: float) -> None:
    ranks_B = torch.tensor([absent, 2.0])
    assert hits(ranks_B, 10).tolist() == [0, 1]
    assert discounted_gains(ranks_B, 10).tolist() == pytest.approx([0, 1 / math.log2(3)])
    assert reciprocal_ranks(ranks_B, 10).tolist() == [0, 1 / 2]


@pytest.mark.parametrize("k", [1, 5, 10])
def test_metrics_agree_with_torchmetrics_on_random_rankings(k: int) -> None:
    num_users, num_items = 50, 20
    generator = torch.Generator().manual_seed(3)
    scores = torch.rand(num_users, num_items, generator=generator)
    target_B = torch.randint(num_items, (num_users,), generator=generator)
    relevant = torch.nn.functional.one_hot(target_B, num_items).bool()
    users = torch.arange(num_users)[:, None].expand(-1, num_items)
    ranks_B = 1 + (scores > scores[relevant][:, None]).sum(dim=1)
    for ours, theirs in (
        (HitRate(k), RetrievalHitRate(top_k=k)),
        (NDCG(k), RetrievalNormalizedDCG(top_k=k)),
        (MRR(k), RetrievalMRR(top_k=k)),
    ):
        expected = theirs(scores.flatten(), relevant.flatten(), indexes=users.flatten())
        # torchmetrics computes in float32
        assert ours(ranks_B).item() == pytest.approx(expected.item(), abs=1e-6)


@pytest.mark.parametrize(
    ("kind", "worth"), [(HitRate, hits), (NDCG, discounted_gains), (MRR, reciprocal_ranks)]
)
def test_batches_of_any_size_give_the_bits_of_one_and_a_reset_forgets_them(
    kind: type[RankMean], worth: Callable[[torch.Tensor, int], torch.Tensor]
) -> None:
    ranks_B = torch.randint(0, 12, (1000,), generator=torch.Generator().manual_seed(5))
    metric = kind(10)
    for batch_B in ranks_B.split(7):
        metric.update(batch_B)
    assert metric.compute().item() == worth(ranks_B, 10).mean().item()
    metric.reset()
    metric.update(torch.tensor([1, 0]))
    assert metric.compute().item() == 0.5


def test_standard_error_with_one_example_a_user_is_the_textbook_one() -> None:
    value_B = torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0])
    expected = value_B.std(correction=1).item() / math.sqrt(5)
    assert standard_error(value_B, torch.arange(5)).item() == pytest.approx(expected)


def test_standard_error_does_not_shrink_when_every_user_is_repeated() -> None:
    value_B, user_id_B = torch.tensor([0.0, 1.0, 1.0]), torch.tensor([7, 8, 9])
    once = standard_error(value_B, user_id_B)
    assert standard_error(value_B.repeat(4), user_id_B.repeat(4)).item() == pytest.approx(
        once.item()
    )


def test_standard_error_of_one_user_is_unknown() -> None:
    assert standard_error(torch.tensor([0.0, 1.0]), torch.tensor([4, 4])).isnan()


def test_wrong_arguments_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="k=0 must be at least 1"):
        HitRate(0)(RANKS_B)
    with pytest.raises(ValueError, match=r"target_rank_B must have shape \(B,\)"):
        NDCG(10)(RANKS_B[None])
    with pytest.raises(ValueError, match="must share one shape"):
        standard_error(torch.zeros(3), torch.zeros(2))
