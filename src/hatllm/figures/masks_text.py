"""Masks in a terminal: one character for each pair of prompt parts.

Dimension key: Q query position, K key position.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor

from hatllm.figures.draw_masks import check_masks
from hatllm.figures.prompt_spans import Span, layer_ranges, name_spans, schedule_letters

EVERY, TRIANGLE, DIAGONAL, SOME, NONE, FUTURE = "█", "◣", "╲", "▒", "·", " "
MAX_SPACED_SPANS = 14  # more parts than this stand without a blank between them


def masks_as_text(
    allowed_by_pattern: Mapping[str, Tensor],
    layer_patterns: Sequence[str],
    segment_ids: Sequence[int],
) -> str:
    """The patterns of a schedule side by side, query parts as rows and key parts as columns.

    Args:
        allowed_by_pattern: Pattern name -> ``allowed_QK``. Shape (L, L), bool.
        layer_patterns: Pattern name of each layer, shallow first.
        segment_ids: Segment of each token, negative = template text. L of them.

    Returns:
        A block of lines: █ all keys of the part, ◣ the causal half of it, ╲ only the token itself,
        ▒ some keys, · none, blank the future; then the schedule, one letter a layer.

    Raises:
        ValueError: If sizes disagree or a layer's pattern has no mask.
    """
    check_masks(allowed_by_pattern, layer_patterns, segment_ids)
    spans = name_spans(segment_ids)
    ranges = layer_ranges(layer_patterns)
    gap = " " if len(spans) <= MAX_SPACED_SPANS else ""
    blocks = [
        _block(f"{layers}: {pattern}", allowed_by_pattern[pattern], spans, gap)
        for pattern, layers in ranges.items()
    ]
    names = ["", "", *[span.name for span in spans]]
    name_width = max(map(len, names))
    lines = [
        "   ".join([name.ljust(name_width), *parts]).rstrip()
        for name, *parts in zip(names, *blocks, strict=True)
    ]
    legend = "█ all  ◣ up to itself  ╲ only itself  ▒ some  · none"
    return "\n".join([*lines, "", legend, f"layers {schedule_letters(layer_patterns)}"])


def _block(title: str, allowed_QK: Tensor, spans: Sequence[Span], gap: str) -> list[str]:
    """The lines of one pattern, all of one width."""
    lines = [title, gap.join(span.letter for span in spans)]
    lines += [gap.join(_character(allowed_QK, query, key) for key in spans) for query in spans]
    width = max(map(len, lines))
    return [line.ljust(width) for line in lines]


def _character(allowed_QK: Tensor, query: Span, key: Span) -> str:
    """How much of the key part the query part may attend to."""
    if key.start > query.start:
        return FUTURE
    block_QK = allowed_QK[query.start : query.stop, key.start : key.stop].bool()
    if not block_QK.any():
        return NONE
    if key.start < query.start:
        return EVERY if block_QK.all() else SOME
    if block_QK.equal(block_QK.new_ones(block_QK.shape).tril()):
        return TRIANGLE
    return DIAGONAL if block_QK.equal(block_QK.new_ones(len(block_QK)).diag()) else SOME
