"""Settings of ``conf/sweep/``."""

import re
from dataclasses import dataclass

SWEEP_METRIC = re.compile(r"(valid|test)/((HR|NDCG|MRR)@[1-9]\d*|trie_NLL|vocab_NLL)")


@dataclass
class SweepConfig:
    """How the cells of ``python run.py -m`` become one table; what varies is Hydra's."""

    name: str | None  # of the sweep's folder and W&B group; null = a sweep of the command line
    objective: str  # a SWEEP_METRIC: what a search optimises and the best cell is named by
    metrics: list[str]  # SWEEP_METRICs: a figure each
    is_search: bool  # the next cell depends on the objective of those before it

    def __post_init__(self) -> None:
        _check_metric("sweep.objective", self.objective)
        for metric in self.metrics:
            _check_metric("sweep.metrics", metric)


def _check_metric(field: str, value: str) -> None:
    if not SWEEP_METRIC.fullmatch(value):
        raise ValueError(
            f"{field}={value!r} must be valid/ or test/ and one of HR@K, NDCG@K, MRR@K, trie_NLL, "
            "vocab_NLL, such as valid/NDCG@10"
        )
