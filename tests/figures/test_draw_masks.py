"""Mask pictures of a prompt small enough to be written down."""

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb

from hatllm.figures.draw_masks import BLOCKED, FUTURE, ITEM_COLOURS, TARGET, TEMPLATE, draw_masks
from hatllm.figures.masks_text import masks_as_text
from hatllm.figures.prompt_spans import layer_ranges, name_spans, schedule_letters

SEGMENTS = [-1, -1, 0, 0, 1, -2, 2, 2]  # prefix, two items, response, target
FULL = torch.ones(8, 8, dtype=torch.bool).tril()
INTRA = torch.tensor(
    [
        [1, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0, 0],
        [1, 1, 0, 0, 1, 0, 0, 0],
        [1, 1, 1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 0, 1, 1, 0],
        [1, 1, 0, 0, 0, 1, 1, 1],
    ],
    dtype=torch.bool,
)
MASKS = {"intra": INTRA, "full": FULL}


def test_parts_of_a_prompt_get_their_names() -> None:
    spans = name_spans(SEGMENTS)
    names = ["prefix", "item 1", "item 2", "response", "target"]
    assert [span.name for span in spans] == names
    assert [(span.start, span.stop) for span in spans] == [(0, 2), (2, 4), (4, 5), (5, 6), (6, 8)]


def test_a_prompt_without_target_ends_with_the_response() -> None:
    assert [span.name for span in name_spans([-1, 0, 1, -1])] == [
        "prefix",
        "item 1",
        "item 2",
        "response",
    ]


def test_template_text_behind_the_target_is_no_response() -> None:
    names = [span.name for span in name_spans([-1, 0, 1, -1, 2, -1])]
    assert names == ["prefix", "item 1", "item 2", "response", "target", "template"]


def test_one_history_item_is_no_target() -> None:
    assert [span.name for span in name_spans([-1, 0, -1])] == ["prefix", "item 1", "response"]
    assert [span.name for span in name_spans([-1, 0, -1, 1])][-1] == "target"


def test_layers_of_a_pattern_are_ranges() -> None:
    patterns = ["intra"] * 3 + ["full"] + ["cross", "cross"] + ["full"]
    expected = {"intra": "layers 0-2", "full": "layers 3, 6", "cross": "layers 4-5"}
    assert layer_ranges(patterns) == expected
    assert layer_ranges(["full"]) == {"full": "layer 0"}
    assert schedule_letters(patterns) == "IIIFCCF"


def test_text_has_one_character_for_each_pair_of_parts() -> None:
    text = masks_as_text(MASKS, ["intra", "intra", "full"], SEGMENTS)
    assert text.splitlines()[:7] == [
        "           layers 0-1: intra   layer 2: full",
        "           P 1 2 R T           P 1 2 R T",
        "prefix     ◣                   ◣",
        "item 1     █ ◣                 █ ◣",
        "item 2     █ · ◣               █ █ ◣",
        "response   █ █ █ ◣             █ █ █ ◣",
        "target     █ · · █ ◣           █ █ █ █ ◣",
    ]
    assert text.splitlines()[-1] == "layers IIF"


def test_text_tells_partial_blocks_apart() -> None:
    only_self = torch.eye(2, dtype=torch.bool)
    window = torch.ones(3, 3).tril().bool() & ~torch.ones(3, 3).tril(-2).bool()
    assert "╲" in masks_as_text({"cross": only_self}, ["cross"], [0, 0]).splitlines()[2]
    assert "▒" in masks_as_text({"full": window}, ["full"], [0, 0, 0]).splitlines()[2]


def test_cells_have_the_colour_of_the_key() -> None:
    figure = draw_masks(MASKS, ["intra", "full"], list("abcdefgh"), SEGMENTS)
    pixels_QK3 = np.asarray(figure.axes[0].images[0].get_array())
    expected = {
        (3, 0): TEMPLATE,
        (3, 2): ITEM_COLOURS[0],
        (5, 4): ITEM_COLOURS[1],
        (7, 6): TARGET,
        (4, 2): BLOCKED,
        (0, 7): FUTURE,
    }
    for cell, colour in expected.items():
        assert pixels_QK3[cell] == pytest.approx(to_rgb(colour)), cell


def test_there_is_one_panel_a_pattern_in_use() -> None:
    masks = MASKS | {"cross": FULL}
    figure = draw_masks(masks, ["full", "intra", "full"], ["$a_"] * 8, SEGMENTS)
    titles = [axes.get_title() for axes in figure.axes if axes.images]
    assert titles == ["layers 0, 2: full", "layer 1: intra"]
    figure.canvas.draw_idle()


def test_two_hundred_tokens_are_drawn_with_names_that_do_not_touch() -> None:
    segments = [-1] * 30 + [item for item in range(40) for _ in range(4)] + [-2] * 8
    allowed = torch.ones(198, 198, dtype=torch.bool).tril()
    axes = draw_masks({"full": allowed}, ["full"] * 30, ["x"] * 198, segments).axes[0]
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert {"prefix", "response"} <= set(names)
    assert np.diff(axes.get_yticks()).min() * 5 * 72 * 0.85 / 198 > 7.5  # points; the font's size


def test_masks_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="names 'cross'; there are masks for intra, full"):
        masks_as_text(MASKS, ["cross"], SEGMENTS)
    with pytest.raises(ValueError, match=r"'full' mask has shape \(8, 8\), the prompt 3 tokens"):
        masks_as_text(MASKS, ["full"], [-1, 0, 1])
    with pytest.raises(ValueError, match="got 3 tokens and 8 segment_ids"):
        draw_masks(MASKS, ["full"], ["a"] * 3, SEGMENTS)
    with pytest.raises(ValueError, match="at least one entry"):
        masks_as_text(MASKS, [], SEGMENTS)
