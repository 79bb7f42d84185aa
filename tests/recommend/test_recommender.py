"""A finished run from Python, against the run's own answers and against brute force."""

from pathlib import Path

import polars as pl
import pytest
from cli import call_cli, smoke_words

import hatllm
from hatllm.recommend.recommender import Recommendation, Recommender, Request

PRIOR = ["loss.prior=popularity"]
KINDS = {
    "popularity": ["model=popularity"],
    "knn": ["model=knn"],
    "titles": ["model=titles"],
    "sasrec": ["model=sasrec", "model.sequence.max_epochs=1"],
    "llm": ["model=tiny", "mask=hatllm", "trainer.max_steps=1", "decode=exact", *PRIOR],
}
HISTORY = ["Red Boat", "s5", "Old Lamp"]  # titles and an id of the source files
ALL = 24


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a finished run of each kind; their source files are gone."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        words = smoke_words(folder)
        for kind, more in KINDS.items():
            assert call_cli(patch, folder, *words, f"run_name={kind}", *more) == 0
    (folder / "shop").rename(folder / "gone")
    return folder / "outputs"


@pytest.fixture(scope="module", params=KINDS)
def loaded(request: pytest.FixtureRequest, runs: Path) -> Recommender:
    return hatllm.load(runs / request.param)


def close(got: list[Recommendation], expected: list[Recommendation]) -> None:
    assert [one.title for one in got] == [one.title for one in expected]
    assert [one.log_prob for one in got] == pytest.approx(
        [one.log_prob for one in expected], abs=1e-4
    )
    assert [one.rank for one in got] == list(range(1, len(got) + 1))


def test_a_run_answers_as_it_did_for_its_test_split(loaded: Recommender) -> None:
    items = dict(loaded.catalogue.select("item_id", "title").rows())
    examples = pl.read_parquet(loaded.folder / "examples.parquet").sort("example_id")
    before = pl.read_parquet(loaded.folder / "predictions.parquet").sort("example_id")
    asked = [Request([items[i] for i in h], 5) for h in examples["history"].to_list()]
    for got, row in zip(loaded.recommend_many(asked), before.to_dicts(), strict=True):
        assert [one.item_id for one in got] == row["top_items"][:5]
        assert [one.log_prob for one in got] == pytest.approx(row["top_log_probs"][:5], abs=1e-4)


def test_only_block_and_the_history_are_the_whole_list_without_them(loaded: Recommender) -> None:
    whole = loaded.recommend(HISTORY, k=ALL)
    assert len(whole) == ALL
    history = {"Red Boat", "Blue Boat", "Old Lamp"}
    only = ["Red Boat", "Tiny Book", "New Lamp", "Grand Boat", "Old Book"]
    for k in (2, ALL):
        for exclude, allowed, block in (
            (True, None, []),
            (False, None, ["Tiny Book", "New Boat"]),
            (False, only, []),
            (True, only, ["New Lamp"]),
        ):
            got = loaded.recommend(HISTORY, k, exclude, allowed, block)
            gone = {*block, *(history if exclude else ())}
            expected = [
                one
                for one in whole
                if one.title not in gone and one.title in (allowed or [one.title])
            ]
            close(got, [one._replace(rank=0) for one in expected[:k]])


def test_requests_of_a_batch_are_answered_as_they_are_alone(loaded: Recommender) -> None:
    only = ["Tiny Book", "New Lamp", "Grand Boat"]
    requests = [
        Request(HISTORY, 3),
        Request(["Tiny Lamp"], 20, True),
        Request(["New Book", "Old Boat"], 2, False, only),
        Request(HISTORY[::-1], 12, True, only, ["New Lamp"]),
        Request(["Red Boat"] * 7, 1, False, None, ["Red Lamp"]),
    ]
    together = loaded.recommend_many(requests)
    for request, got in zip(requests, together, strict=True):
        (alone,) = loaded.recommend_many([request])
        close(got, alone)
    assert [len(found) for found in together] == [3, 20, 2, 2, 1]


def test_the_scores_of_all_titles_are_the_list_of_all_titles(loaded: Recommender) -> None:
    whole = loaded.recommend(HISTORY, k=ALL)
    close(loaded.score(HISTORY, [one.title for one in whole][::-1]), whole)
    (one,) = loaded.score(HISTORY, ["Tiny Book"])
    assert one.log_prob == pytest.approx(
        next(other.log_prob for other in whole if other.title == "Tiny Book"), abs=1e-4
    )


def test_no_older_entry_takes_the_place_of_one_that_names_no_item(loaded: Recommender) -> None:
    longest = loaded.config.data.max_history_items
    newest = ["Old Lamp", "Red Boat", *["Nothing"] * (longest - 2)]
    history = ["Tiny Book", "Nothing", *newest]
    expected = loaded.recommend(newest[:2], ALL)
    close(loaded.recommend(history, ALL, skip_unknown=True), expected)
    without = [one.title for one in expected if one.title not in history]
    got = loaded.recommend(history, ALL, exclude_history=True, skip_unknown=True)
    assert [one.title for one in got] == without  # the older one, unread, is no answer either
    with pytest.raises(ValueError, match="history: 'Nothing' is neither"):
        loaded.recommend(["Old Lamp", *["Nothing"] * longest], skip_unknown=True)


def test_what_does_not_fit_is_named_with_the_nearest_titles(loaded: Recommender) -> None:
    with pytest.raises(ValueError, match=r"history: 'Red Boot' is neither .* near: .*'Red Boat'"):
        loaded.recommend(["Red Boot", "Old Lamp"])
    expected = loaded.recommend(["Old Lamp"], 3)
    close(loaded.recommend(["Red Boot", "Old Lamp"], 3, skip_unknown=True), expected)
    for words, message in (
        ({"history": ["Nothing"], "skip_unknown": True}, "history: 'Nothing' is neither"),
        ({"history": []}, r"history=\[\] must hold"),
        ({"history": HISTORY, "k": 101}, "k=101 must be between 1 and 100"),
        ({"history": HISTORY, "only": ["Nothing"]}, "only: 'Nothing' is neither"),
        ({"history": HISTORY, "block": [99]}, "block: 99 is no item id"),
    ):
        with pytest.raises(ValueError, match=message):
            loaded.recommend(**words)
    assert loaded.recommend(HISTORY, only=[]) == []


def test_titles_are_found_by_their_beginning_then_by_near_spelling(loaded: Recommender) -> None:
    assert [one.title for one in loaded.items("red b", 3)] == [
        "Red Bicycle", "Red Boat", "Red Book",
    ]  # fmt: skip
    assert loaded.items("Grnd Lmp", 1)[0].title == "Grand Lamp"
    assert loaded.items("  ") == []


def test_a_run_says_what_it_is(loaded: Recommender) -> None:
    info, settings = loaded.info, loaded.settings()
    assert info.name == loaded.folder.name and info.model == settings["model"]["name"]
    assert info.mask == ("IFFC" if info.name == "llm" else None)
    assert 0 <= info.metrics["test"]["HR@10"] <= 1


@pytest.mark.parametrize("kind", ["llm", "titles"])
def test_titles_that_training_never_saw_are_ranked(runs: Path, kind: str) -> None:
    loaded = hatllm.load(runs / kind)
    before = loaded.recommend(HISTORY, k=ALL)
    known = next(one.item_id for one in before if one.title == "Tiny Book")
    new, other, same = loaded.add_items(["Old Lamp: Special", "A Zebra", "Tiny Book"])
    assert same == known and new == other - 1 == max(one.item_id for one in before) + 1
    whole = loaded.recommend(HISTORY, k=100)
    assert {one.title for one in whole} == {
        *(one.title for one in before), "Old Lamp: Special", "A Zebra",
    }  # fmt: skip
    close(loaded.score(HISTORY, [one.title for one in whole]), whole)
    # A new title can stand in a history, too.
    assert len(loaded.recommend(["A Zebra"], 30, exclude_history=True)) == ALL + 1
    if kind == "titles":
        assert "Old Lamp: Special" in [one.title for one in whole[:2]]


@pytest.mark.parametrize("kind", ["knn", "popularity", "sasrec"])
def test_runs_that_know_items_by_id_refuse_new_titles_by_name(runs: Path, kind: str) -> None:
    with pytest.raises(ValueError, match=rf"model={kind} knows items by id"):
        hatllm.load(runs / kind).add_items(["A Zebra"])


def test_settings_are_changed_as_on_the_command_line_and_what_a_run_is_stays(runs: Path) -> None:
    changed = hatllm.load(runs / "llm", ["decode.exclude_history=true"])
    plain = hatllm.load(runs / "llm").recommend(HISTORY, 5, exclude_history=True)
    close(changed.recommend(HISTORY, 5), plain)
    with pytest.raises(ValueError, match=r"mask.name is fixed by the finished run"):
        hatllm.load(runs / "llm", ["mask.name=causal"])
    with pytest.raises(ValueError, match="no such folder"):
        hatllm.load(runs / "nothing")
