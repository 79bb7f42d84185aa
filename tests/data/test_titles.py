import polars as pl
import pytest

from hatllm.data.titles import clean_title, prepared_titles


@pytest.mark.parametrize(
    ("title", "cleaned"),
    [
        ("Salt &amp; Pepper", "Salt & Pepper"),
        ("12&amp;quot; Doll", '12" Doll'),
        ("  Red\n Ball\t", "Red Ball"),
        ("Caf&eacute;", "Café"),
        ("Matrix, The (1999)", "Matrix, The (1999)"),
    ],
)
def test_clean_title_unescapes_twice_and_folds_white_space(title: str, cleaned: str) -> None:
    assert clean_title(title) == cleaned


def test_blank_titles_become_null() -> None:
    titles = pl.Series("title", ["a", "", "  ", None, "&nbsp;"])
    assert prepared_titles(titles, clean=True).to_list() == ["a", None, None, None, None]


def test_raw_titles_stay_as_they_are() -> None:
    titles = pl.Series("title", ["a  &amp; b", " "])
    assert prepared_titles(titles, clean=False).to_list() == ["a  &amp; b", None]
