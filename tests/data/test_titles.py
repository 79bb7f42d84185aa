import polars as pl
import pytest

from hatllm.data.titles import clean_title, cut_title, cut_titles, prepared_titles


@pytest.mark.parametrize(
    ("title", "cleaned"),
    [
        ("Salt &amp; Pepper", "Salt & Pepper"),
        ("12&amp;quot; Doll", '12" Doll'),
        ("  Red\n Ball\t", "Red Ball"),
        ("Caf&eacute;", "Café"),
        ("Matrix, The (1999)", "Matrix, The (1999)"),
        ('<span id="productTitle" class="a-size-large">Garlic press</span>', "Garlic press"),
        ("See &amp;amp; Say <b>deluxe</b>, &lt;I&gt;new&lt;/I&gt;", "See & Say deluxe, new"),
        ("Red<br/>Ball<p>of<LI>wool", "Red Ball of wool"),
        ('Press <span class="a-size', "Press"),
        ("I <3 you, 5 < 6 > 4 <unknown> <brand>", "I <3 you, 5 < 6 > 4 <unknown> <brand>"),
    ],
)
def test_clean_title_unescapes_drops_tags_and_folds_white_space(title: str, cleaned: str) -> None:
    assert clean_title(title) == cleaned


def test_blank_titles_become_null() -> None:
    titles = pl.Series("title", ["a", "", "  ", None, "&nbsp;"])
    assert prepared_titles(titles, clean=True).to_list() == ["a", None, None, None, None]


def test_raw_titles_stay_as_they_are() -> None:
    titles = pl.Series("title", ["a  &amp; b", " "])
    assert prepared_titles(titles, clean=False).to_list() == ["a  &amp; b", None]


@pytest.mark.parametrize(
    ("max_characters", "cut"),
    [(99, "The long road"), (13, "The long road"), (12, "The long"), (9, "The long"),
     (8, "The long"), (7, "The"), (3, "The"), (2, "Th")],
)  # fmt: skip
def test_a_title_is_cut_between_words(max_characters: int, cut: str) -> None:
    assert cut_title("The long road", max_characters) == cut


def test_a_cut_title_is_never_blank() -> None:
    assert cut_title("   Road", 2) == "Ro"


def test_cut_titles_are_counted() -> None:
    titles = pl.Series("title", ["Road one", "Road two", "Way"])
    cut, notes = cut_titles(titles, 4)
    assert cut.to_list() == ["Road", "Road", "Way"]
    assert notes == ["2 titles were cut to data.max_title_characters=4"]
    assert cut_titles(titles, None)[0].equals(titles)
