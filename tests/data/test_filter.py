import polars as pl

from hatllm.data.filter import k_core, min_rated, titled_only
from hatllm.data.json_lines import MAX_SAMPLES, BadRows


def pairs(rows: list[tuple[int, int]]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=["user_id", "item_id"], orient="row")


def test_k_core_goes_on_until_nothing_falls_away() -> None:
    # Item 3 has one row; without it user 2 falls, then item 2, then user 1.
    core = [(3, 1), (3, 4), (4, 4), (4, 1)]
    assert k_core(pairs([(1, 1), (1, 2), (2, 2), (2, 3), *core]), 2).rows() == core


def test_k_core_of_one_keeps_all_rows() -> None:
    assert k_core(pairs([(1, 1), (2, 2)]), 1).height == 2


def test_k_core_may_leave_nothing() -> None:
    assert k_core(pairs([(1, 1), (2, 2)]), 2).is_empty()


def test_untitled_and_unknown_items_are_dropped_and_counted() -> None:
    items = pl.DataFrame({"item_id": [1, 2], "title": ["a", None], "source_id": ["x", "y"]})
    bad_rows = BadRows()
    kept, titled = titled_only(pairs([(1, 1), (1, 2), (2, 2), (2, 9)]), items, bad_rows)
    assert kept.rows() == [(1, 1)]
    assert titled["item_id"].to_list() == [1]
    assert bad_rows.counts == {
        "interaction with an unknown item": 1,
        "item without a title": 1,
        "interaction with an untitled item": 2,
    }
    assert bad_rows.samples["interaction with an unknown item"] == ["user_id=2, item_id=9"]


def test_bad_rows_keep_a_few_short_samples() -> None:
    bad_rows = BadRows()
    bad_rows.add("reason", ("x" * 1000 for _ in range(20)), 20)
    report = bad_rows.report()["reason"]
    assert report["count"] == 20
    assert len(report["samples"]) == MAX_SAMPLES
    assert max(map(len, report["samples"])) == 200


def test_unrated_and_low_rated_interactions_are_dropped_and_counted() -> None:
    interactions = pl.DataFrame({"item_id": [1, 2, 3, 4], "rating": [3.0, 2.5, None, 5.0]})
    bad_rows = BadRows()
    kept = min_rated(interactions, 3.0, bad_rows)
    assert kept.rows() == [(1,), (4,)]
    assert bad_rows.counts == {"interaction without a rating": 1, "interaction rated below 3": 1}
    assert min_rated(kept, None, bad_rows).equals(kept)
