"""Which cases of a grid of parameters run between two edits; the whole grid is `slow`."""

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence

import pytest

Values = tuple[tuple[str, Hashable], ...]  # arguments of a group, each with its value


def thin_out(items: Iterable[pytest.Item]) -> None:
    """Mark as `slow` the cases that ``@pytest.mark.thin("a b", ...)`` can do without.

    What is left shows every value of every argument, and every combination of the arguments that
    a string names together.
    """
    grids: dict[str, list[pytest.Function]] = {}
    for item in items:
        if (
            isinstance(item, pytest.Function)
            and item.get_closest_marker("thin") is not None
            and item.get_closest_marker("slow") is None  # those are left out anyway
        ):
            grids.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for cases in grids.values():
        marker = cases[0].get_closest_marker("thin")
        assert marker is not None
        # Equal values are one value; not all can be compared, or put into sets.
        shown = [{k: repr(value) for k, value in case.callspec.params.items()} for case in cases]
        kept = covering(shown, [group.split() for group in marker.args])
        for number, case in enumerate(cases):
            if number not in kept:
                case.add_marker("slow")


def covering(cases: Sequence[dict[str, Hashable]], groups: Iterable[list[str]]) -> set[int]:
    """Few of the cases that together show all that the cases show.

    Args:
        cases: The value of each argument.
        groups: Arguments of which every combination counts, not only every value.

    Returns:
        Places in `cases`.
    """
    every = [*groups, *([name] for name in cases[0])]
    shows = [{tuple((name, case[name]) for name in group) for group in every} for case in cases]
    missing, kept, used = set().union(*shows), set[int](), Counter[Values]()
    while missing:
        # Of equals the one whose values were used least, so that each meets many others.
        best = max(
            range(len(cases)),
            key=lambda n: (len(shows[n] & missing), -sum(used[x] for x in shows[n]), -n),
        )
        kept.add(best)
        missing -= shows[best]
        used.update(shows[best])
    return kept
