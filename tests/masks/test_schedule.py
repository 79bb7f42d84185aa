import re

import pytest
from toys import PRESETS, Compose

from hatllm.masks.schedule import build_schedule

LETTERS_OF_8 = {
    "causal": "FFFFFFFF",
    "cross_only": "CCCCCCCC",
    "custom": "ICFIICFI",
    "hatllm": "IIFFFFCC",
    "hatllm_segments": "IIFFFFCC",
    "intra_only": "IIIIIIII",
    "no_cross": "IIFFFFFF",
    "no_intra": "FFFFFFCC",
    "reversed": "CCFFFFII",
    "two_phase": "IIIICCCC",
}


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_gives_its_letters(name: str, compose_config: Compose) -> None:
    words = ["mask.layers=ICFIICFI"] if name == "custom" else []
    config = compose_config(f"mask={name}", *words).mask
    schedule = build_schedule(config, 8)
    assert schedule.letters == LETTERS_OF_8[name]
    assert config.name == name
    assert schedule.intra_scope == ("segments" if name == "hatllm_segments" else "items")
    assert (schedule.cross_sees_self, schedule.target_is_item) == (False, True)


@pytest.mark.parametrize(
    ("words", "num_layers", "letters"),
    [
        ("mask=hatllm", 30, "I" * 7 + "F" * 16 + "C" * 7),
        ("mask=hatllm mask.split_layer=16", 30, "I" * 16 + "F" * 7 + "C" * 7),
        ("mask=hatllm mask.split_layer=27", 30, "I" * 27 + "C" * 3),
        ("mask=hatllm mask.split_layer=30", 30, "I" * 30),
        ("mask=hatllm mask.split_layer=0", 4, "FFFC"),
        ("mask=hatllm mask.num_cross_layers=0", 4, "IFFF"),
        ("mask=hatllm mask.split_layer=1 mask.num_cross_layers=3", 4, "ICCC"),
        ("mask=hatllm", 3, "FFF"),
        ("mask=hatllm", 1, "F"),
        ("mask=two_phase", 30, "I" * 15 + "C" * 15),
        ("mask=two_phase mask.split_layer=10", 30, "I" * 10 + "C" * 20),
        ("mask=two_phase mask.split_layer=1 mask.num_cross_layers=4", 5, "ICCCC"),
        ("mask=reversed mask.split_layer=2 mask.num_cross_layers=1", 4, "CCFI"),
        ("mask=custom mask.layers=CIFFI", 5, "CIFFI"),
    ],
)
def test_a_schedule_has_the_letters_asked_for(
    words: str, num_layers: int, letters: str, compose_config: Compose
) -> None:
    assert build_schedule(compose_config(*words.split()).mask, num_layers).letters == letters


@pytest.mark.parametrize(
    ("words", "num_layers", "parts"),
    [
        ("mask=hatllm mask.split_layer=31", 30, ["mask.split_layer=31", "30"]),
        (
            "mask=hatllm mask.split_layer=20 mask.num_cross_layers=11",
            30,
            ["mask.num_cross_layers=11", "at most 10", "mask.split_layer=20", "30 layers"],
        ),
        ("mask=hatllm mask.num_cross_layers=4", 4, ["mask.num_cross_layers=4", "4 layers"]),
        (
            "mask=two_phase mask.num_cross_layers=3",
            8,
            ["mask.num_cross_layers=3", "null or 4", "8 layers"],
        ),
        ("mask=two_phase mask.split_layer=9", 8, ["mask.split_layer=9", "8"]),
        ("mask=custom mask.layers=IFC", 4, ["mask.layers='IFC' has 3 letters", "4 layers"]),
    ],
)
def test_an_impossible_schedule_names_field_value_and_layers(
    words: str, num_layers: int, parts: list[str], compose_config: Compose
) -> None:
    with pytest.raises(ValueError) as error:
        build_schedule(compose_config(*words.split()).mask, num_layers)
    for part in parts:
        assert re.search(rf"{re.escape(part)}\b", str(error.value)), (part, str(error.value))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("mask.shallow=intre", r"mask.shallow='intre' must be one of .*did you mean 'intra'"),
        ("mask.middle=none", r"mask.middle='none' must be one of intra, full, cross"),
        ("mask.deep=within", r"mask.deep='within' must be one of"),
        ("mask.split_layer=-1", r"mask.split_layer=-1 must be at least 0"),
        ("mask.num_cross_layers=-2", r"mask.num_cross_layers=-2 must be at least 0"),
        ("mask.intra_scope=item", r"mask.intra_scope='item' must be one of items, segments"),
        ("mask.layers=IXC", r"mask.layers='IXC' holds 'X'"),
        ("mask=custom", r"mask=custom needs mask.layers, one letter a layer"),
    ],
)
def test_a_wrong_mask_setting_is_refused_by_name(
    words: str, message: str, compose_config: Compose
) -> None:
    with pytest.raises(ValueError, match=message):
        compose_config(*words.split())


def test_groups_are_the_runs_of_equal_layers(compose_config: Compose) -> None:
    groups = build_schedule(compose_config("mask=hatllm").mask, 8).groups
    assert groups == [("intra", 0, 1), ("full", 2, 5), ("cross", 6, 7)]


def test_positions_restart_in_the_intra_layers_of_scope_segments_only(
    compose_config: Compose,
) -> None:
    segments = build_schedule(compose_config("mask=hatllm_segments").mask, 4)
    assert [segments.restarts(layer) for layer in range(4)] == [True, False, False, False]
    items = build_schedule(compose_config("mask=hatllm").mask, 4)
    assert not any(items.restarts(layer) for layer in range(4))
