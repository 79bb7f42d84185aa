"""Refusals that name the setting, its value and what would be right."""

import difflib
import math
from collections.abc import Iterable
from typing import Any

LARGEST = 2**53  # of any number; a float still tells its neighbours apart


def check_choice(field: str, value: str, choices: Iterable[str]) -> None:
    """Refuse a value outside a closed set, naming the nearest valid one.

    Raises:
        ValueError: If ``value`` is not one of ``choices``.
    """
    choices = list(choices)
    if value in choices:
        return
    near = difflib.get_close_matches(str(value), choices, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"{field}={value!r} must be one of {', '.join(choices)}{hint}")


def check_range(field: str, value: float | None, low: float, high: float | None = None) -> None:
    """Refuse a number outside ``[low, high]``; null passes.

    Raises:
        ValueError: If the number is out of range.
    """
    if value is None:
        return
    if (isinstance(value, float) and not math.isfinite(value)) or value > LARGEST:
        raise ValueError(f"{field}={value} must be a finite number of at most {LARGEST}")
    if value < low or (high is not None and value > high):
        limit = f"at least {low}" if high is None else f"between {low} and {high}"
        raise ValueError(f"{field}={value} must be {limit}")


def check_positive(field: str, value: float | None) -> None:
    """Refuse what is not a finite number above 0; null passes.

    Raises:
        ValueError: If it is not.
    """
    if value is not None and not 0 < value < math.inf:
        raise ValueError(f"{field}={value} must be above 0, and finite")


def check_url(field: str, value: str | None, has_checksum: bool) -> None:
    """Refuse an address whose file nobody could vouch for; null passes.

    Raises:
        ValueError: If it is neither https, nor http with a known checksum.
    """
    if value is None or value.startswith("https://"):
        return
    if not (value.startswith("http://") and has_checksum):
        raise ValueError(
            f"{field}={value!r} must begin with https:// (http:// needs its _sha256 setting too)"
        )


def check_extras(
    group: str, config: Any, name: str, needed: Iterable[str], optional: Iterable[str]
) -> None:
    """Refuse settings of one choice of a group under another, and their absence under that one.

    Raises:
        ValueError: If a setting is null where it counts, or given where it does not.
    """
    for field in (*needed, *optional):
        value = getattr(config, field)
        if config.name == name and value is None and field in needed:
            raise ValueError(f"{group}.{field}=null must be given with {group}={name}")
        if config.name != name and value is not None:
            raise ValueError(
                f"{group}.{field}={value!r} must be null with {group}={config.name}: it belongs to "
                f"{group}={name}"
            )
