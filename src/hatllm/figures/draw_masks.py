"""Pictures of who may attend to whom, token by token, in the layers of a schedule.

Dimension key: L sequence, Q query position, K key position (Q = K = L).
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch, Rectangle
from torch import Tensor

from hatllm.figures.prompt_spans import Span, layer_ranges, name_spans, schedule_letters
from hatllm.figures.saving import FAINT, GREY, INK

ITEM_COLOURS = ("#4f8fce", "#62b08b", "#e3ac4b", "#a283c9", "#5fb3c4", "#d98aa8", "#9fb14f")
TARGET, TEMPLATE, FUTURE, BLOCKED = "#d6453d", "#98a2b3", "#eff0f3", "#ffffff"
PATTERN_COLOURS = {"intra": "#4f8fce", "full": "#98a2b3", "cross": "#e08a3c"}
OTHER_PATTERN = "#7a6fb0"
MAX_TOKENS_NAMED = 64  # beyond it single tokens are too small to carry their text
TOKEN_POINTS, TOKEN_WIDTH = 6.5, 14  # font size; characters of a token that are written
PANEL_INCHES = 5.0
NAME_POINTS = 7.5


def draw_masks(
    allowed_by_pattern: Mapping[str, Tensor],
    layer_patterns: Sequence[str],
    tokens: Sequence[str],
    segment_ids: Sequence[int],
) -> Figure:
    """One panel a pattern that some layer uses, and the schedule over layers below.

    An allowed cell has the colour of the key's segment, a blocked one is white, the future is
    light grey. The texts of the tokens are written only where there are at most 64 of them.

    Args:
        allowed_by_pattern: Pattern name -> ``allowed_QK``, True where query may attend to key.
            Shape (L, L), bool.
        layer_patterns: Pattern name of each layer, shallow first.
        tokens: Text of each token. L of them.
        segment_ids: Segment of each token, negative = template text. L of them.

    Returns:
        The figure; write it with :func:`hatllm.figures.saving.save_figure`.

    Raises:
        ValueError: If sizes disagree or a layer's pattern has no mask.
    """
    check_masks(allowed_by_pattern, layer_patterns, segment_ids)
    if len(tokens) != len(segment_ids):
        raise ValueError(f"got {len(tokens)} tokens and {len(segment_ids)} segment_ids")
    spans, ranges = name_spans(segment_ids), layer_ranges(layer_patterns)
    texts = [repr(token)[1:-1][:TOKEN_WIDTH] for token in tokens]
    texts = texts if len(texts) <= MAX_TOKENS_NAMED else []
    # The layout does not see the token axis: room for it is left under the title by hand.
    title_pad = 8 + 0.62 * TOKEN_POINTS * max(map(len, texts), default=0)
    figure, panels, strip = _panels_and_strip(len(ranges), PANEL_INCHES + 0.65 + title_pad / 72)
    for axes, (pattern, layers) in zip(panels, ranges.items(), strict=True):
        _draw_pattern(axes, allowed_by_pattern[pattern], spans, texts)
        axes.set_title(f"{layers}: {pattern}", fontsize=12, color=INK, y=1.0, pad=title_pad)
    panels[0].set_ylabel("query", fontsize=9, color=GREY)
    _draw_schedule(strip, layer_patterns)
    return figure


def _panels_and_strip(num_panels: int, panel_height: float) -> tuple[Figure, Sequence[Axes], Axes]:
    """A figure with panels side by side and one low panel below them."""
    heights = [panel_height, 1.1]
    layout = ConstrainedLayoutEngine(h_pad=0.06, w_pad=0.06)
    figure = Figure(figsize=(PANEL_INCHES * num_panels + 0.6, sum(heights)), layout=layout)
    upper, lower = figure.subfigures(2, 1, squeeze=False, height_ratios=heights).flat
    return figure, upper.subplots(1, num_panels, squeeze=False)[0], lower.subplots()


def check_masks(
    allowed_by_pattern: Mapping[str, Tensor],
    layer_patterns: Sequence[str],
    segment_ids: Sequence[int],
) -> None:
    """Refuse masks that do not fit the prompt or the schedule.

    Raises:
        ValueError: If there is nothing to draw, sizes disagree or a layer's pattern has no mask.
    """
    if not layer_patterns or not segment_ids:
        raise ValueError("layer_patterns and segment_ids must hold at least one entry each")
    for pattern in dict.fromkeys(layer_patterns):
        if pattern not in allowed_by_pattern:
            raise ValueError(
                f"layer_patterns names {pattern!r}; there are masks for "
                f"{', '.join(allowed_by_pattern)}"
            )
        shape = tuple(allowed_by_pattern[pattern].shape)
        if shape != (len(segment_ids), len(segment_ids)):
            raise ValueError(
                f"the {pattern!r} mask has shape {shape}, the prompt {len(segment_ids)} tokens"
            )


def span_colour(span: Span) -> str:
    """The colour of a part of the prompt; items take turns."""
    if span.segment < 0:
        return TEMPLATE
    return TARGET if span.name == "target" else ITEM_COLOURS[span.segment % len(ITEM_COLOURS)]


def _draw_pattern(
    axes: Axes, allowed_QK: Tensor, spans: Sequence[Span], texts: Sequence[str]
) -> None:
    """One mask; the texts of the tokens stand above it, where there are any."""
    picture = _picture(allowed_QK.cpu().numpy(), spans)
    axes.imshow(picture, interpolation="nearest", aspect="equal")
    _name_axes(axes, spans)
    if texts:
        _write_tokens(axes, texts)
    axes.set_xlabel("key", fontsize=9, color=GREY)


def _picture(allowed_QK: npt.NDArray[np.bool_], spans: Sequence[Span]) -> npt.NDArray[np.float64]:
    """Red, green and blue of each cell; shape (L, L, 3), each in [0, 1]."""
    length = len(allowed_QK)
    key_colour_K = np.concatenate(
        [np.tile(to_rgb(span_colour(span)), (span.stop - span.start, 1)) for span in spans]
    )
    future_QK = np.triu(np.ones((length, length), dtype=bool), k=1)
    blank_QK = np.where(future_QK[..., None], to_rgb(FUTURE), to_rgb(BLOCKED))
    return np.where(allowed_QK[..., None], key_colour_K[None], blank_QK)


def _name_axes(axes: Axes, spans: Sequence[Span]) -> None:
    """Boundaries as thin lines, names of the parts left and below."""
    for span in spans[1:]:
        axes.axhline(span.start - 0.5, color=INK, linewidth=0.35, alpha=0.4)
        axes.axvline(span.start - 0.5, color=INK, linewidth=0.35, alpha=0.4)
    for side in axes.spines.values():
        side.set(color=GREY, linewidth=0.8)
    points_a_token = PANEL_INCHES * 72 * 0.85 / spans[-1].stop
    named = _names_that_fit(spans, points_a_token)
    centres = [(span.start + span.stop - 1) / 2 for span in named]
    names = [span.name for span in named]
    axes.set_yticks(centres, names)
    axes.set_xticks(centres, names, rotation=90)
    axes.tick_params(length=2, color=GREY, pad=2, labelsize=NAME_POINTS, labelcolor=INK)


def _write_tokens(axes: Axes, texts: Sequence[str]) -> None:
    """The text of every token above its column."""
    top = axes.secondary_xaxis("top")
    size = min(TOKEN_POINTS, 0.85 * PANEL_INCHES * 72 * 0.85 / len(texts))
    top.set_xticks(range(len(texts)), texts, rotation=90, fontsize=size, parse_math=False)
    top.tick_params(length=0, pad=2, labelcolor=GREY)
    top.spines["top"].set_visible(False)


def _names_that_fit(spans: Sequence[Span], points_a_token: float) -> list[Span]:
    """The parts whose names do not run into each other; template text and target come first."""
    chosen: list[Span] = []
    for span in sorted(spans, key=lambda span: (span.name.startswith("item"), span.start)):
        apart = [abs(span.start + span.stop - other.start - other.stop) / 2 for other in chosen]
        if not apart or min(apart) * points_a_token > NAME_POINTS * 1.15:
            chosen.append(span)
    return sorted(chosen, key=lambda span: span.start)


def _draw_schedule(axes: Axes, layer_patterns: Sequence[str]) -> None:
    """A strip with one box a layer, coloured and lettered by its pattern."""
    letters = schedule_letters(layer_patterns)
    for layer, (pattern, letter) in enumerate(zip(layer_patterns, letters, strict=True)):
        colour = PATTERN_COLOURS.get(pattern, OTHER_PATTERN)
        axes.add_patch(Rectangle((layer - 0.46, 0), 0.92, 1, facecolor=colour, edgecolor="none"))
        axes.text(layer, 0.5, letter, ha="center", va="center", color="white", fontsize=9)
    axes.set_xlim(-0.6, len(letters) - 0.4)
    axes.set_ylim(0, 1)
    axes.set_yticks([])
    step = 1 if len(letters) <= 40 else 4
    axes.set_xticks(range(0, len(letters), step))
    axes.tick_params(labelsize=7.5, length=0, labelcolor=INK)
    axes.set_xlabel("layer, shallow to deep", fontsize=9, color=GREY)
    for side in axes.spines.values():
        side.set_visible(False)
    cells = {"template": TEMPLATE, "target": TARGET, "blocked": BLOCKED, "future": FUTURE}
    handles = [Patch(facecolor=ITEM_COLOURS[0], label="allowed: the key's colour")]
    handles += [
        Patch(facecolor=colour, edgecolor=FAINT if name == "future" else GREY, label=name)
        for name, colour in cells.items()
    ]
    axes.legend(
        handles=handles,
        loc="lower center",
        bbox_to_anchor=(0.5, 1.05),
        ncols=len(handles),
        frameon=False,
        fontsize=8.5,
        handlelength=1.4,
        columnspacing=1.4,
        labelcolor=INK,
    )
