"""The pages of docs/reference are what schema, conf/, docstrings and run folders say."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from toys import CONF

from hatllm.runs import run_files

ROOT = CONF.parent
sys.path.insert(0, str(ROOT / "docs"))
import write_api  # noqa: E402
import write_settings  # noqa: E402

REFERENCE = ROOT / "docs/reference"


def test_the_page_of_settings_is_what_its_script_writes() -> None:
    assert write_settings.PAGE.read_text() == write_settings.page(), "python docs/write_settings.py"


def test_the_page_of_the_api_is_what_its_script_writes() -> None:
    assert write_api.PAGE.read_text() == write_api.page(), "python docs/write_api.py"


@pytest.mark.parametrize(
    "row",
    [
        "| `mask.split_layer` | int or null | at least 0 | `null` | yes | null = a quarter of the "
        "layers (half where there is no middle group) |",
        "| `trainer.devices` | int | at least 1 | `1` | no | processes on each machine |",
        "| `data.holdout_fraction` | float | 0 to 0.5 | `0.1` | yes | share of the end of train "
        "used as valid where there is no valid split |",
    ],
)
def test_a_setting_has_type_range_default_and_meaning(row: str) -> None:
    assert row in write_settings.PAGE.read_text().splitlines()


def leaves_of(values: dict[str, Any], start: str = "") -> set[str]:
    """Dotted names of all values that are no dictionaries."""
    found = set()
    for name, value in values.items():
        inner = isinstance(value, dict) and value
        found |= leaves_of(value, f"{start}{name}.") if inner else {f"{start}{name}"}
    return found


def test_every_setting_of_a_run_is_on_the_page_and_means_something() -> None:
    rows = [line for line in write_settings.PAGE.read_text().splitlines() if line[:3] == "| `"]
    named = {line.split("`")[1] for line in rows}
    leaves = leaves_of(write_settings.composed(["model=bert4rec"]))
    choices = {f"{group.name}.name" for group in CONF.iterdir()}
    assert len(leaves) > 120
    assert leaves - named - choices <= set(write_settings.SHOWN_WITH)
    assert [line for line in rows if line.split("|")[-2].strip() == ""] == []


def test_every_file_of_a_run_folder_is_on_its_page() -> None:
    page = (REFERENCE / "run_folder.md").read_text()
    names = [str(v) for k, v in vars(run_files).items() if k.endswith(("_FILE", "_PICTURE"))]
    assert len(names) > 10
    assert [name for name in names if Path(name).name not in page] == []


def test_ranges_are_read_from_loops_and_branches(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass
    class Sizes:
        """Sizes."""

        a: int
        b: int
        c: str

    source = (
        '@dataclass\nclass Sizes:\n    """Sizes."""\n    a: int\n    b: int\n    c: str\n'
        "    def __post_init__(self):\n"
        '        names = ("a",)\n'
        '        for field in (*names, "b"):\n'
        '            check_range(f"x.{field}", getattr(self, field), 1, self.c)\n'
        "        if self.a:\n"
        '            check_choice("x.c", self.c, ("u", "v"))\n'
    )
    monkeypatch.setattr(write_settings.inspect, "getsource", lambda _: source)
    assert write_settings.ranges_of(Sizes) == {"a": "1 to `c`", "b": "1 to `c`", "c": "`u`, `v`"}
