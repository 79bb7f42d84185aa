"""HR@K, NDCG@K and MRR@K as torchmetrics, for validation while a model trains.

What they average are the per-example values of :mod:`hatllm.metrics.ranking`, which paired
differences need one by one. Every process decodes into one table and reads it whole, so that there
is nothing to gather between processes.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torchmetrics import Metric

from hatllm.metrics.ranking import discounted_gains, hits, reciprocal_ranks


class ExampleMean(Metric):
    """The mean over examples of one number an example."""

    full_state_update = False
    values: list[Tensor]

    def __init__(self) -> None:
        """Nothing is seen yet."""
        super().__init__(sync_on_compute=False)
        self.add_state("values", [], dist_reduce_fx="cat")

    def update(self, value_B: Tensor) -> None:
        """Take in more examples.

        Args:
            value_B: One number an example. Shape (B,), float64.
        """
        self.values.append(value_B)

    def compute(self) -> Tensor:
        """The mean, a float64 scalar (NaN for no example)."""
        return torch.cat([torch.zeros(0, dtype=torch.float64), *self.values]).mean()


class RankMean(ExampleMean):
    """The mean over examples of what the target's rank is worth, cut at K answers."""

    higher_is_better = True
    worth: Callable[[Tensor, int], Tensor]

    def __init__(self, k: int) -> None:
        """Cut lists at ``k``, at least 1."""
        super().__init__()
        self.k = k

    def update(self, target_rank_B: Tensor) -> None:
        """Take in more examples.

        Args:
            target_rank_B: Rank of the target from 1; 0 = not found. Shape (B,).
        """
        super().update(self.worth(target_rank_B, self.k))


class HitRate(RankMean):
    """HR@K: the share of examples whose target is among the first K answers."""

    worth = staticmethod(hits)


class NDCG(RankMean):
    """NDCG@K with one target an example."""

    worth = staticmethod(discounted_gains)


class MRR(RankMean):
    """MRR@K: targets that are not among the first K answers count 0."""

    worth = staticmethod(reciprocal_ranks)
