"""Ranks against a sorted list of Python tuples."""

import polars as pl
import pytest
import torch
from few_items import ITEMS, popularity_predictions
from frames import popularity_alone

from hatllm.baselines.ranks_of_scores import TitleIndex, predictions_of, target_ranks
from hatllm.metrics.from_predictions import evaluate_predictions

SHARED = pl.DataFrame({"item_id": [2, 4, 6, 8, 10], "title": ["A", "B", "A", "C", "B"]})
EXAMPLES = pl.DataFrame(
    {
        "example_id": [7, 8, 9],
        "user_id": [1, 1, 2],
        "history": [[2], [4, 8], [10]],
        "target": [6, 8, 4],
    }
)
SCORES = torch.tensor([[1.0, 0.2, 3.0, 2.0, 2.5], [1.0, 5.0, 0.0, 4.0, 0.0], [0.0, 1, 0, 2, 3]])
TARGETS = torch.tensor([2, 3, 1])


def test_titles_rank_by_their_best_item_and_items_by_their_own() -> None:
    table = predictions_of(EXAMPLES, [(SCORES, TARGETS)], TitleIndex.of(SHARED), top_k=3)
    # Titles best first: A 3.0, B 2.5, C 2.0 | B 5, C 4, A 1 | B 3, C 2, A 0.
    assert table["target_rank"].to_list() == [1, 2, 1]
    assert table["top_items"].to_list() == [[2, 4, 8], [4, 8, 2], [4, 8, 2]]  # lowest ids
    # Items best first: 6, 10, 8, ... | 4, 8, ... | 10, 8, 4.
    assert table["target_item_rank"].to_list() == [1, 2, 3]
    assert table["ambiguous"].to_list() == [True, False, True]


def test_ranks_beyond_the_list_are_null_and_the_list_has_its_length() -> None:
    table = predictions_of(EXAMPLES, [(SCORES, TARGETS)], TitleIndex.of(SHARED), top_k=1)
    assert table["target_rank"].to_list() == [1, None, 1]
    assert table["target_item_rank"].to_list() == [1, None, None]
    assert table["top_items"].list.len().to_list() == [1, 1, 1]


def test_the_table_has_the_columns_and_types_of_popularity() -> None:
    table = predictions_of(EXAMPLES, [(SCORES, TARGETS)], TitleIndex.of(SHARED), top_k=2)
    counts = SHARED.select("item_id", count=pl.lit(1))
    other = popularity_predictions(counts, EXAMPLES, EXAMPLES, SHARED, top_k=2)
    assert table.schema == other.schema
    same = ["example_id", "user_id", "target_item", "history_length", "ambiguous"]
    assert table.select(same).equals(other.select(same))
    falling = table["top_log_probs"].to_list()
    assert all(first >= second and first <= 0 for first, second in falling)


def test_the_rows_of_the_catalogue_may_come_in_any_order() -> None:
    shuffled = SHARED.sample(fraction=1.0, shuffle=True, seed=1)
    tables = [
        predictions_of(EXAMPLES, [(SCORES, TARGETS)], TitleIndex.of(items), top_k=3)
        for items in (SHARED, shuffled)
    ]
    assert tables[0].equals(tables[1])


def test_ranks_and_metrics_equal_a_brute_force_sort() -> None:
    score_BI = torch.randint(0, 6, (200, len(ITEMS))).float()  # many ties
    target_B = torch.randint(0, len(ITEMS), (200,))
    index = TitleIndex.of(ITEMS)
    examples = pl.DataFrame(
        {
            "example_id": range(200),
            "user_id": range(200),
            "history": [[ITEMS["item_id"][0]]] * 200,
            "target": index.item_id_I[target_B.numpy()],
        }
    )
    batches = [(score_BI[:90], target_B[:90]), (score_BI[90:], target_B[90:])]
    table = predictions_of(examples, batches, index, top_k=10)
    tie = index.tie_I.tolist()
    expected = []
    for row, target in zip(score_BI.tolist(), target_B.tolist(), strict=True):
        order = sorted(range(len(row)), key=lambda item: (-row[item], tie[item]))
        expected.append(order.index(target) + 1)
        assert (
            index.item_id_I[order[:10]].tolist() == table["top_items"][len(expected) - 1].to_list()
        )
    assert table["target_rank"].to_list() == [r if r <= 10 else None for r in expected]
    metrics = evaluate_predictions(table, ITEMS, popularity_alone(table, ITEMS), (1, 5, 10))
    assert metrics["HR@5"] == pytest.approx(sum(r <= 5 for r in expected) / 200)
    assert metrics["MRR@10"] == pytest.approx(sum(1 / r for r in expected if r <= 10) / 200)
    assert metrics["item_NDCG@10"] == metrics["NDCG@10"]
    assert "trie_NLL" not in metrics


def test_a_model_that_tells_nothing_apart_ranks_at_random() -> None:
    items = pl.DataFrame({"item_id": range(400), "title": [f"t{i}" for i in range(400)]})
    ranks, _ = target_ranks(torch.zeros(400, 400), torch.arange(400), TitleIndex.of(items))
    assert sorted(ranks.tolist()) == list(range(1, 401))  # one rank each: no target is favoured
    early = ranks[:200].double().mean()
    assert 170 < early < 231  # by id it would be 100.5


def test_scores_that_are_not_numbers_are_refused() -> None:
    score_BI = torch.full((1, len(ITEMS)), float("nan"))
    with pytest.raises(ValueError, match="must be finite"):
        target_ranks(score_BI, torch.tensor([0]), TitleIndex.of(ITEMS))
