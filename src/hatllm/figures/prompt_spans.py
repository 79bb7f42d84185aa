"""The parts of a prompt by name, and the layers of a schedule by pattern."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby


@dataclass(frozen=True)
class Span:
    """Neighbouring tokens of one segment."""

    name: str  # prefix, item 1, item 2, ..., response, target, or template
    segment: int  # negative = template text
    start: int
    stop: int

    @property
    def letter(self) -> str:
        """One character for a column head: P, R, T, or the last digit of the item's number."""
        return self.name[-1] if self.name.startswith("item") else self.name[0].upper()


def name_spans(segment_ids: Sequence[int]) -> list[Span]:
    """Cut a prompt where the segment changes and name the parts.

    Template text at the start is the prefix. The last item is the target if template text, the
    response, stands right before it; without a target, template text at the end is the response.

    Args:
        segment_ids: Segment of each token, negative = template text.

    Returns:
        The spans, in order, together covering every token.
    """
    runs: list[tuple[int, int, int]] = []
    for segment, group in groupby(segment_ids):
        start = runs[-1][2] if runs else 0
        runs.append((segment, start, start + len(list(group))))
    items = [index for index, run in enumerate(runs) if run[0] >= 0]
    last = items[-1] if items else len(runs)
    target = last if len(items) > 1 and runs[last - 1][0] < 0 else None
    response = last + 1 if target is None else target - 1
    spans = []
    for index, (segment, start, stop) in enumerate(runs):
        if segment >= 0:
            name = "target" if index == target else f"item {items.index(index) + 1}"
        elif index == 0:
            name = "prefix"
        else:
            name = "response" if index == response else "template"
        spans.append(Span(name, segment, start, stop))
    return spans


def layer_ranges(layer_patterns: Sequence[str]) -> dict[str, str]:
    """The layers of each pattern in words, patterns in order of first appearance.

    Args:
        layer_patterns: Pattern of each layer.

    Returns:
        Pattern -> for example ``layers 0-6, 24-29`` or ``layer 3``.
    """
    runs: dict[str, list[str]] = {}
    start = 0
    for pattern, group in groupby(layer_patterns):
        stop = start + len(list(group))
        runs.setdefault(pattern, []).append(
            str(start) if stop == start + 1 else f"{start}-{stop - 1}"
        )
        start = stop
    return {
        pattern: f"layer{'s' if len(parts) > 1 or '-' in parts[0] else ''} {', '.join(parts)}"
        for pattern, parts in runs.items()
    }


def schedule_letters(layer_patterns: Sequence[str]) -> str:
    """One capital a layer, such as IIIFFFCCC."""
    return "".join(pattern[0].upper() for pattern in layer_patterns)
