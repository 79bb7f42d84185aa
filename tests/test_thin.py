"""The cases of a grid that are left show all that is asked for."""

from collections.abc import Hashable
from itertools import product

import pytest
from thin import covering

Case = dict[str, Hashable]


def grid(**sizes: int) -> list[Case]:
    return [dict(zip(sizes, row, strict=True)) for row in product(*map(range, sizes.values()))]


def shown(
    cases: list[dict[str, Hashable]], kept: set[int], *names: str
) -> set[tuple[Hashable, ...]]:
    return {tuple(cases[place][name] for name in names) for place in kept}


@pytest.mark.parametrize(
    ("groups", "size"),
    [([], 11), ([["loss", "form"]], 11), ([["mask", "form"], ["loss", "form"]], 22)],
)
def test_every_value_and_every_combination_of_a_group_is_left(
    groups: list[list[str]], size: int
) -> None:
    cases = grid(mask=11, loss=3, form=2)
    kept = covering(cases, groups)
    every = set(range(len(cases)))
    for names in (["mask"], ["loss"], ["form"], *groups):
        assert shown(cases, kept, *names) == shown(cases, every, *names)
    assert len(kept) == size


def test_a_mask_meets_each_way_about_as_often_as_the_other() -> None:
    cases = grid(mask=11, fast=2)
    kept = covering(cases, [])
    assert sorted(sum(cases[n]["fast"] == way for n in kept) for way in (0, 1)) == [5, 6]


def test_the_same_cases_are_left_every_time() -> None:
    cases = grid(mask=5, loss=3, form=2)
    assert covering(cases, [["loss", "form"]]) == covering(cases, [["loss", "form"]])
    assert len(covering(grid(a=3, b=3), [["a", "b"]])) == 9  # nothing can be left out


GRID = pytest.mark.parametrize("a", [0, 1, 2])
OTHER = pytest.mark.parametrize("b", [[0], [1]])  # lists have no hash


@pytest.mark.thin()
@GRID
@OTHER
def test_a_grid_of_parameters_is_thinned(request: pytest.FixtureRequest, a: int, b: list) -> None:
    family = [
        item
        for item in request.session.items
        if item.nodeid.startswith(request.node.nodeid.partition("[")[0] + "[")
    ]
    if len(family) > 1:  # not where one case is asked for by its name
        quick = [item for item in family if item.get_closest_marker("slow") is None]
        assert len(quick) in (0, 3)  # none under `-m slow`
        assert {repr(item.callspec.params["b"]) for item in quick} in (set(), {"[0]", "[1]"})
