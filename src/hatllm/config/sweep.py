"""Settings of ``conf/sweep/``."""

from dataclasses import dataclass

from hatllm.config.checks import check_choice

SWEEP_METRICS = tuple(
    f"{split}/{metric}"
    for split in ("valid", "test")
    for metric in ("NDCG@10", "HR@10", "NDCG@5", "HR@5", "trie_NLL", "vocab_NLL")
)


@dataclass
class SweepConfig:
    """How the cells of ``python run.py -m`` become one table; what varies is Hydra's."""

    name: str | None  # of the sweep's folder and W&B group; null = a sweep of the command line
    objective: str  # one of SWEEP_METRICS: what a search optimises and the best cell is named by
    metrics: list[str]  # of SWEEP_METRICS: a figure each
    is_search: bool  # the next cell depends on the objective of those before it

    def __post_init__(self) -> None:
        check_choice("sweep.objective", self.objective, SWEEP_METRICS)
        for metric in self.metrics:
            check_choice("sweep.metrics", metric, SWEEP_METRICS)
