"""Which validation's weights a run answers with, and how long none was better.

The best is by the monitored metric; of equal ones that with the lower NLL, then the later.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, isnan
from typing import Any

NLL = "val/trie_NLL"  # nats a title, lower is better: it tells steps apart that rank alike


@dataclass(frozen=True)
class Validation:
    """What one validation found."""

    step: int  # optimizer steps done
    value: float  # of the monitored metric
    nll: float | None = None  # of NLL; None = the model or the decoder has none
    answers: str | None = None  # folder of its predictions; None = not kept


def is_lower_better(monitor: str) -> bool:
    """The direction of a metric, which follows from its name."""
    return monitor.endswith("NLL")


def best_of(validations: Sequence[Validation], monitor: str) -> Validation | None:
    """The validation whose weights are exported; None = there was none.

    Args:
        validations: In the order of their steps.
        monitor: Name of the metric.
    """
    return max(validations, key=lambda v: (*_merit(v, monitor), v.step), default=None)


def num_without_better(validations: Sequence[Validation], monitor: str) -> int:
    """Validations since the first one that no later one surpassed; an equal one is no better."""
    merits = [_merit(validation, monitor) for validation in validations]
    return len(merits) - 1 - merits.index(max(merits)) if merits else 0


def why(validations: Sequence[Validation], monitor: str) -> str:
    """One sentence about the choice of `best_of`, and where it was a tie, what decided."""
    best = best_of(validations, monitor)
    if best is None:
        return "the last step, because no validation was due"
    end = "lowest" if is_lower_better(monitor) else "highest"
    text = f"{monitor} {best.value:.4f} is the {end} of {len(validations)} validations"
    if len(validations) == 1:
        return f"the only validation, {monitor} {best.value:.4f}"
    alike = [v for v in validations if _merit(v, monitor)[0] == _merit(best, monitor)[0]]
    if len(alike) == 1:
        return text
    text += f", as after {len(alike) - 1} other{'s' if len(alike) > 2 else ''}"
    equal = [v for v in alike if _merit(v, monitor) == _merit(best, monitor)]
    if len(equal) < len(alike):
        text += f"; of these it has the lowest {NLL} ({best.nll:.3f})"
    return text if len(equal) == 1 else f"{text}; of {len(equal)} equal in that it is the latest"


def exported(validations: Sequence[Validation], monitor: str, last_step: int) -> dict[str, Any]:
    """Which step's weights a run answers with, and why, for ``environment.json``.

    Args:
        validations: In the order of their steps.
        monitor: Name of the metric.
        last_step: Optimizer steps of the training; exported where there was no validation.
    """
    best = best_of(validations, monitor)
    return {
        "step": last_step if best is None else best.step,
        "of_steps": last_step,
        "monitor": monitor,
        "value": None if best is None else best.value,
        NLL: None if best is None else best.nll,
        "why": why(validations, monitor),
    }


def _merit(validation: Validation, monitor: str) -> tuple[float, float]:
    """Higher is better; what is not a number is worse than any number."""
    sign = -1.0 if is_lower_better(monitor) else 1.0
    value, nll = sign * validation.value, -inf if validation.nll is None else -validation.nll
    return (-inf if isnan(value) else value), (-inf if isnan(nll) else nll)
