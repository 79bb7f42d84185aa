"""Answers from the titles that share a word, against those from rows of all titles."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal
from scipy.sparse import csr_matrix

from hatllm.baselines import title_rules as title_rule_module
from hatllm.baselines.ranks_of_scores import TitleIndex, predictions_of
from hatllm.baselines.ranks_of_sparse import sparse_predictions_of
from hatllm.baselines.sequences import sequences_of
from hatllm.baselines.title_rules import title_graph, title_rule
from hatllm.config import TitlesConfig

NUM_ITEMS, NUM_ROWS = 40, 60
WORDS = ["red", "blue", "boat", "lamp", "book", "old", "2", "★"]  # the last is no word


def catalogue(seed: int) -> pl.DataFrame:
    """Titles of one to three words: many alike, some without a word, some twice."""
    random = np.random.default_rng(seed)
    titles = [" ".join(random.choice(WORDS, random.integers(1, 4))) for _ in range(NUM_ITEMS)]
    ids = np.sort(random.choice(1000, NUM_ITEMS, replace=False))
    return pl.DataFrame({"item_id": ids, "title": titles})


def asked(items: pl.DataFrame, seed: int) -> pl.DataFrame:
    random, ids = np.random.default_rng(seed), items["item_id"].to_numpy()
    rows = [random.choice(ids, random.integers(1, 6)).tolist() for _ in range(NUM_ROWS)]
    return pl.DataFrame(
        {"example_id": range(NUM_ROWS), "user_id": range(NUM_ROWS), "history": rows,
         "target": random.choice(ids, NUM_ROWS)}
    )  # fmt: skip


def bought(items: pl.DataFrame, seed: int) -> pl.DataFrame:
    random, ids = np.random.default_rng(seed), items["item_id"].to_numpy()
    pairs = pl.DataFrame({name: random.choice(ids, 80) for name in ("item_id", "next_item")})
    return pairs.unique(maintain_order=True).with_columns(count=pl.lit(3))


def equal(found: pl.DataFrame, expected: pl.DataFrame) -> None:
    # The sum over titles is taken in another order: the last digits of log-probabilities differ.
    assert_frame_equal(found, expected, rel_tol=1e-12, abs_tol=1e-12)
    exact = ["target_rank", "target_item_rank", "top_items", "ambiguous"]
    assert found.select(exact).equals(expected.select(exact))


@pytest.mark.thin("exclude top_k")
@pytest.mark.parametrize("exclude", [False, True])
@pytest.mark.parametrize("top_k", [1, 10, 30])
@pytest.mark.parametrize("last_items", [1, 3])
def test_the_title_rule_answers_as_from_rows_of_all_titles(
    exclude: bool, top_k: int, last_items: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(title_rule_module, "SCORES_AT_A_TIME", 200)  # some rows a batch
    for seed in range(4):
        items = catalogue(seed)
        assert items["title"].n_unique() < NUM_ITEMS
        examples, config = asked(items, seed), TitlesConfig("word", 1, 1, last_items, 0.5, None)
        for rule in (
            title_rule(items, config),
            title_graph(bought(items, seed), 0.5, items, config),
        ):
            found = rule.predictions(examples, items, top_k, exclude)
            assert rule.sparse is not None
            dense = replace(rule, sparse=None)
            equal(found, dense.predictions(examples, items, top_k, exclude))


@pytest.mark.parametrize("exclude", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
def test_any_scores_answer_as_from_rows_of_all_titles(share: float, exclude: bool) -> None:
    random = np.random.default_rng(1)
    items, shape = catalogue(9), (NUM_ROWS, NUM_ITEMS)
    examples, index = asked(items, 9), TitleIndex.of(items)
    # Few values, so that many are equal; items of one title score differently.
    scores = random.integers(0, 4, shape) * (random.random(shape) < share) * 0.25
    target_G = sequences_of(examples, index.item_id_I, 1).target_G
    expected = predictions_of(examples, [(torch.tensor(scores), target_G)], index, 10, exclude)
    halves = [csr_matrix(scores[:25]), csr_matrix(scores[25:])]
    equal(sparse_predictions_of(examples, halves, target_G, index, 10, exclude), expected)


def test_more_titles_are_asked_for_than_are_left() -> None:
    items, rule = catalogue(2)[:4], TitlesConfig("word", 1, 1, 1, 1.0, None)
    examples = asked(items, 2)
    num_titles = items["title"].n_unique()
    table = title_rule(items, rule).predictions(examples, items, num_titles, True)
    title = dict(items.select("item_id", "title").rows())
    gone = [len({title[item] for item in history}) for history in examples["history"].to_list()]
    assert table["top_items"].list.len().to_list() == [num_titles - number for number in gone]
