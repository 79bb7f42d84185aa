"""Settings of ``metrics``: how much of a list of answers counts."""

from collections.abc import Sequence
from dataclasses import dataclass

from hatllm.config.checks import check_range


@dataclass
class MetricsConfig:
    """What is measured of the lists that a run leaves in its predictions."""

    cut_offs: list[int]  # K of HR@K, NDCG@K and MRR@K, ascending

    def __post_init__(self) -> None:
        if not self.cut_offs or self.cut_offs != sorted(set(self.cut_offs)):
            raise ValueError(
                f"metrics.cut_offs={self.cut_offs} must hold at least one number, each once, in "
                "ascending order, such as [1,5,10]"
            )
        for cut_off in self.cut_offs:
            check_range("metrics.cut_offs", cut_off, 1)

    def within(self, top_k: int) -> tuple[int, ...]:
        """The cut-offs of which a list of ``top_k`` titles can tell."""
        return tuple(cut_off for cut_off in self.cut_offs if cut_off <= top_k)


def cut_off_of(metric: str) -> int | None:
    """The K of a metric's name, such as 10 of ``val/NDCG@10``; None where it has none."""
    number = metric.partition("@")[2]
    return int(number) if number.isdecimal() else None


def main_cut_off(cut_offs: Sequence[int]) -> int:
    """The cut-off where one must do, in slices and figures: 10 if it is measured, else the largest.

    Raises:
        ValueError: If there is none.
    """
    if not cut_offs:
        raise ValueError("cut_offs=[] must hold at least one number")
    return 10 if 10 in cut_offs else max(cut_offs)


def check_monitor(monitor: str, top_k: int) -> None:
    """Refuse to choose a checkpoint by a metric that the run's lists are too short for.

    Args:
        monitor: Name of the metric, such as ``val/NDCG@10``.
        top_k: ``decode.top_k``.

    Raises:
        ValueError: If so, with what can be monitored instead.
    """
    cut_off = cut_off_of(monitor)
    if cut_off is not None and cut_off > top_k:
        nearest = f"{monitor.partition('@')[0]}@{top_k}"
        raise ValueError(
            f"decode.top_k={top_k} keeps lists too short for trainer.monitor={monitor!r}, which "
            f"chooses the checkpoint: give decode.top_k={cut_off} or more, or "
            f"trainer.monitor={nearest} or trainer.monitor=val/trie_NLL"
        )
