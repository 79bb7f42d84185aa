"""A short version of the fuzz run, and laws over made-up titles and rows."""

import random
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toys import toy_catalogue

from experiments.robustness import fuzz
from experiments.robustness.odd_exports import foreign_csv
from hatllm.data.json_lines import BadRows
from hatllm.data.sources.csv_table import as_utf8, parse_csv, read_csv_texts, told_separator
from hatllm.data.sources.timestamps import to_microseconds
from hatllm.data.titles import clean_title, prepared_titles

pytestmark = pytest.mark.long

QUICK = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
MOMENTS = st.integers(1_000_000_000, 4_000_000_000)  # Unix seconds
TITLES = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


TRAIN_FIRST = ("run folders", "one-token titles")
PARTS = ["data files", "settings", *(pytest.param(p, marks=pytest.mark.slow) for p in TRAIN_FIRST)]


@pytest.mark.parametrize("part", PARTS)
def test_wrong_input_is_refused_in_one_line_or_works(
    part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if part == "run folders":
        make, count = fuzz.FinishedRun.made_in(tmp_path).input, 12
    elif part == "one-token titles":
        make, count = fuzz.OneTokenTitles.made_in(tmp_path).input, 6
    else:
        make = {"data files": fuzz.data_files_input, "settings": fuzz.settings_input}[part]
        count = {"data files": 40, "settings": 25}[part]
    found, num_failed = fuzz.fuzz({part: (make, count)}, seed=7)
    assert num_failed == 0, capsys.readouterr().out
    assert found[part]["tried"] == count
    assert found[part]["refused"] > 0
    assert found[part]["accepted"] > 0 or part == "settings"


def test_a_traceback_and_a_foreign_message_count_as_failures(tmp_path: Path) -> None:
    def ours() -> str:
        fuzz.one_line(ValueError("x"), fuzz.CONF)
        raise ValueError("not from inside the package")

    def broken() -> str:
        raise KeyError("x")

    for use in (ours, broken):
        _, outcome, message = fuzz.try_input(lambda *_, use=use: ("it", use), "1", tmp_path)
        assert outcome == "failed"
        assert "Traceback" in message


@QUICK
@given(st.lists(TITLES, min_size=1, max_size=20))
def test_cleaned_titles_are_clean_and_no_blank_one_is_left(titles: list[str]) -> None:
    cleaned = prepared_titles(pl.Series("title", titles, dtype=pl.Utf8), True)
    assert len(cleaned) == len(titles)
    for title in cleaned.drop_nulls():
        assert title.strip()
        assert title == " ".join(title.split())


@QUICK
@given(st.dictionaries(st.integers(0, 99), TITLES.map(clean_title).filter(bool), min_size=1))
def test_items_share_a_leaf_exactly_where_they_share_a_title(titles: dict[int, str]) -> None:
    titles = {item: title for item, title in titles.items() if "<s>" not in title}
    titles = {item: title for item, title in titles.items() if "</s>" not in title} or {1: "a"}
    trie = toy_catalogue(titles).trie
    leaf = dict(zip(trie.item_id_I.tolist(), trie.item_leaf_I.tolist(), strict=True))
    assert trie.num_leaves == len(set(titles.values()))
    for item, title in titles.items():
        same = {other for other in titles if titles[other] == title}
        assert set(trie.items_of_leaf(leaf[item]).tolist()) == same


@QUICK
@given(st.binary(max_size=200), st.integers(0, 2**32))
def test_every_line_of_a_csv_file_is_a_row_or_a_bad_row(
    tmp_path: Path, noise: bytes, seed: int
) -> None:
    lines = [b"a,b", *(b"%d,x%d" % (i, i) for i in range(5))]
    lines.insert(1 + random.Random(seed).randrange(5), noise.replace(b'"', b"'"))
    path = tmp_path / "t.csv"
    content = b"\n".join(lines)
    path.write_bytes(content)
    bad_rows = BadRows()
    rows = read_csv_texts(path, ",", bad_rows)
    num_lines = sum(1 for line in content.replace(b"\r", b"\n").split(b"\n") if line)
    assert rows.height + sum(bad_rows.counts.values()) == num_lines - 1


@QUICK
@given(st.integers(0, 2**32))
def test_csv_files_of_any_form_hold_the_same_table(seed: int) -> None:
    random_ = random.Random(seed)
    titles = [random_.choice(("Song one", "Song; two", 'The "Song"', "Song, three")) for _ in "123"]
    rows = [{"song": f"{place:03d}", "name": title} for place, title in enumerate(titles)]
    path = Path("songs.csv")
    content, _ = as_utf8(foreign_csv(rows, random_), None, path)
    separator = told_separator(content, ["song", "name"], ",")
    table = parse_csv(content, separator, BadRows(), path)
    assert table["song"].to_list() == ["000", "001", "002"]
    assert [title.replace("ó", "o") for title in table["name"]] == titles


@QUICK
@given(
    st.lists(
        st.tuples(
            st.integers(1_000_000_000, 4_000_000_000), st.sampled_from((1, 10**3, 10**6, 10**9))
        ),
        min_size=1,
    )
)
def test_times_of_any_units_in_one_column_are_the_same_times(
    times: list[tuple[int, int]],
) -> None:
    numbers = pl.Series("at", [seconds * factor for seconds, factor in times])
    expected = [seconds * 1_000_000 for seconds, _ in times]
    assert to_microseconds(numbers)[0].to_list() == expected
