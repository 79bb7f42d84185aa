"""A title far longer than the others: which setting helps, and what the report says."""

from collections.abc import Callable
from pathlib import Path

import pytest

Cli = Callable[..., int]


def test_a_title_too_long_for_the_backbone_is_refused_and_then_cut(
    cli: Cli, shop: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    items = tmp_path / "shop" / "items.csv"
    items.write_text(items.read_text().replace("Blue Boat", "Blue Boat" + " very long" * 9000))
    assert cli(*shop, "task=masks") == 2
    assert "set data.max_title_characters, which cuts titles" in capsys.readouterr().err
    assert cli(*shop, "task=masks", "data.max_title_characters=20") == 0


def test_what_prepare_took_is_told_in_words_and_cut_titles_are_counted(
    cli: Cli, shop: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli(*shop, "task=prepare", "data.max_title_characters=9") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "{" not in said
    assert "data and report" in said
    report = (tmp_path / "outputs/data-custom/data_report.md").read_text()
    assert "titles were cut to data.max_title_characters=9" in report
