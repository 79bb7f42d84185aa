import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from hatllm.data.sources.amazon import RELEASES, fetch_amazon, read_amazon

from .settings import data_config

DAY = 86_400
# (user, item, time): two files in one, ordered by item as the published ones are.
REVIEWS = [("U1", "A1", 2 * DAY), ("U2", "A1", DAY), ("U1", "A2", DAY), ("U1", "A3", 3 * DAY)]
TITLES = {"A1": "It's one", "A2": 'Two "2"', "A9": "Nobody's"}  # A3 has no metadata


def write_lines(path: Path, lines: list[str]) -> Path:
    path.write_bytes(gzip.compress("".join(f"{line}\n" for line in lines).encode()))
    return path


def write_release(folder: Path, release: str) -> tuple[Path, Path]:
    names = RELEASES[release]
    reviews = [
        {names.user: user, names.item: item, names.time: time * names.units_per_second, "text": "x"}
        for user, item, time in REVIEWS
    ]
    metadata = [{names.item: item, "title": title} for item, title in TITLES.items()]
    literal = repr if release == "2014" else json.dumps
    return (
        write_lines(folder / "reviews.gz", [json.dumps(review) for review in reviews]),
        write_lines(folder / "meta.gz", [literal(record) for record in metadata]),
    )


@pytest.mark.parametrize("release", ["2014", "2018", "2023"])
def test_every_release_gives_the_same_tables(tmp_path: Path, release: str) -> None:
    tables = read_amazon(*write_release(tmp_path, release), release)
    assert tables.users.rows() == [(1, "U1"), (2, "U2")]
    assert tables.items.rows() == [(1, "It's one", "A1"), (2, 'Two "2"', "A2"), (3, None, "A3")]
    # In order of time, ties (day 1) in the order of the file.
    assert tables.interactions.rows() == [
        (2, 1, DAY),
        (1, 2, DAY),
        (1, 1, 2 * DAY),
        (1, 3, 3 * DAY),
    ]
    assert tables.bad_rows.counts == {"item without metadata": 1}


def test_milliseconds_order_reviews_of_one_second(tmp_path: Path) -> None:
    lines = [
        json.dumps({"user_id": "U", "parent_asin": item, "timestamp": time})
        for item, time in (("A", 5_900), ("B", 5_100))
    ]
    reviews = write_lines(tmp_path / "reviews.gz", lines)
    tables = read_amazon(reviews, write_lines(tmp_path / "meta.gz", []), "2023")
    assert tables.interactions.rows() == [(1, 2, 5), (1, 1, 5)]


def test_bad_lines_of_reviews_and_metadata_are_counted(tmp_path: Path) -> None:
    review = json.dumps({"reviewerID": "U", "asin": "A", "unixReviewTime": 5})
    reviews = [review, review, "{oops", '{"asin": "A", "unixReviewTime": 5}']
    reviews.append('{"reviewerID": "U", "asin": "B", "unixReviewTime": "May"}')
    metadata = ["{'asin': 'A', 'title': 'first'}", "{'asin': 'A'", "{'asin': 'A', 'title': 'last'}"]
    metadata += ["{'title': 'no asin'}", "__import__('os').getcwd()"]
    tables = read_amazon(
        write_lines(tmp_path / "r.gz", reviews), write_lines(tmp_path / "m.gz", metadata), "2014"
    )
    assert tables.interactions.height == 1
    assert tables.items["title"].to_list() == ["first"]
    assert tables.bad_rows.counts == {
        "line of r.gz that is no JSON object": 1,
        "review without user or item": 1,
        "review with a bad timestamp": 1,
        "review that stands there twice": 1,
        "line of m.gz that is no Python literal": 3,
        "item listed twice": 1,
    }


def test_a_page_script_is_no_title(tmp_path: Path) -> None:
    names = RELEASES["2018"]
    review = json.dumps({names.user: "U", names.item: "A", names.time: 5})
    record = json.dumps({"asin": "A", "title": "var start = new Date().getTime();"})
    reviews = write_lines(tmp_path / "r.gz", [review])
    tables = read_amazon(reviews, write_lines(tmp_path / "m.gz", [record]), "2018")
    assert tables.items["title"].to_list() == [None]
    assert tables.bad_rows.counts == {"title that is a page's script": 1}


def test_a_cut_off_metadata_file_is_refused(tmp_path: Path) -> None:
    reviews, metadata = write_release(tmp_path, "2014")
    metadata.write_bytes(metadata.read_bytes()[:-20])
    with pytest.raises(ValueError, match="cut off"):
        read_amazon(reviews, metadata, "2014")


def amazon_config(**overrides: Any) -> Any:
    settings = {"name": "toys", "source": "amazon", "release": "2014", "category": "Toys"}
    return data_config(**settings | overrides)


def test_published_files_under_data_root_are_used(tmp_path: Path) -> None:
    for name in ("reviews_Toys_5.json.gz", "meta_Toys.json.gz"):
        (tmp_path / name).touch()
    reviews, metadata = fetch_amazon(amazon_config(), tmp_path, tmp_path / "cache")
    assert (reviews.parent, metadata.parent) == (tmp_path, tmp_path)


def test_one_published_file_alone_is_refused_naming_the_other(tmp_path: Path) -> None:
    (tmp_path / "reviews_Toys_5.json.gz").touch()
    with pytest.raises(ValueError, match=r"but not meta_Toys\.json\.gz"):
        fetch_amazon(amazon_config(), tmp_path, tmp_path / "cache")


@pytest.mark.parametrize(
    ("release", "files"),
    [
        ("2014", ("reviews_Toys_5.json.gz", "meta_Toys.json.gz")),
        ("2018", ("Toys_5.json.gz", "meta_Toys.json.gz")),
        ("2023", ("Toys.jsonl.gz", "meta_Toys.jsonl.gz")),
    ],
)
def test_each_release_has_its_file_names(release: str, files: tuple[str, str]) -> None:
    addresses = RELEASES[release].reviews_url, RELEASES[release].metadata_url
    names = tuple(url.format(category="Toys").rsplit("/", 1)[1] for url in addresses)
    assert names == files


@pytest.mark.parametrize("release", ["2014", "2023"])
def test_stars_are_read_where_they_are_asked_for(tmp_path: Path, release: str) -> None:
    names = RELEASES[release]
    reviews = [
        json.dumps({names.user: "U", names.item: "A", names.time: at, names.rating: stars})
        for at, stars in ((1, 5.0), (2, 1), (3, None))
    ]
    files = write_lines(tmp_path / "r.gz", reviews), write_lines(tmp_path / "m.gz", [])
    ratings = read_amazon(*files, release, names.rating).interactions["rating"]
    assert ratings.to_list() == [5.0, 1.0, None]
    with pytest.raises(ValueError, match=r"data\.rating_column='stars' of .* holds no number"):
        read_amazon(*files, release, "stars")
