"""Baselines without the history: all titles ranked, the history's removed."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from few_items import popularity_predictions
from toys import TITLES, Compose

from hatllm.baselines.knn import knn_rule, neighbours
from hatllm.baselines.ranks_of_scores import TitleIndex, predictions_of
from hatllm.baselines.title_rules import title_rule
from hatllm.config import KnnConfig, TitlesConfig
from hatllm.data.prepare import load_dataset

SPLITS = ("train", "valid", "test")
ITEMS = pl.DataFrame({"item_id": list(TITLES), "title": list(TITLES.values())})
IDS = sorted(TITLES)
NUM_TITLES = len(set(TITLES.values()))
RULE = TitlesConfig("char_wb", 1, 2, 1, 1.0, None)
GENERATOR = np.random.default_rng(0)
HISTORIES = [GENERATOR.choice(IDS, 1 + row % 5).tolist() for row in range(40)]
EXAMPLES = pl.DataFrame(
    {
        "example_id": range(40),
        "user_id": range(40),
        "history": HISTORIES,
        "target": GENERATOR.choice(IDS, 40).tolist(),
    }
)
COUNTS = pl.DataFrame({"item_id": IDS, "count": [4, 1, 3, 3, 0, 2, 4, 0, 9]})
TRAIN = pl.DataFrame(
    [(row, item) for row, items in enumerate(HISTORIES) for item in items],
    schema=["user_id", "item_id"],
    orient="row",
)
SCORES = torch.from_numpy(GENERATOR.integers(0, 4, (40, len(IDS)))).double()
TARGETS = torch.from_numpy(np.searchsorted(IDS, EXAMPLES["target"].to_numpy()))
Predict = Callable[[int, bool], pl.DataFrame]
PREDICT: dict[str, Predict] = {
    "popularity": lambda k, gone: popularity_predictions(
        COUNTS, EXAMPLES, EXAMPLES, ITEMS, k, gone
    ),
    "knn": lambda k, gone: knn_rule(
        neighbours(TRAIN, KnnConfig("full", 100, 20.0, 0.5)), ITEMS
    ).predictions(EXAMPLES, ITEMS, k, gone),
    "titles": lambda k, gone: title_rule(ITEMS, RULE).predictions(EXAMPLES, ITEMS, k, gone),
    "scores with ties": lambda k, gone: predictions_of(
        EXAMPLES, [(SCORES[:25], TARGETS[:25]), (SCORES[25:], TARGETS[25:])],
        TitleIndex.of(ITEMS), k, gone,
    ),
}  # fmt: skip


@pytest.mark.parametrize("top_k", [2, NUM_TITLES])
@pytest.mark.parametrize("kind", PREDICT)
def test_without_the_history_a_baseline_ranks_what_is_left(kind: str, top_k: int) -> None:
    whole, left = PREDICT[kind](NUM_TITLES, False), PREDICT[kind](top_k, True)
    for before, after, history in zip(whole.to_dicts(), left.to_dicts(), HISTORIES, strict=True):
        gone = {TITLES[item] for item in history}
        pairs = zip(before["top_items"], before["top_log_probs"], strict=True)
        kept = [(item, p) for item, p in pairs if TITLES[item] not in gone]
        assert after["top_items"] == [item for item, _ in kept[:top_k]]
        assert after["top_log_probs"] == pytest.approx([p for _, p in kept[:top_k]])
        titles = [TITLES[item] for item, _ in kept]
        target = TITLES[after["target_item"]]
        rank = titles.index(target) + 1 if target in titles[:top_k] else None
        assert after["target_rank"] == rank
        assert (after["target_item_rank"] is None) or after["target_item_rank"] >= rank
        for column in ("target_trie_log_prob", "history_length", "ambiguous"):
            assert after[column] == before[column]


def test_items_of_the_historys_titles_are_not_counted_above_the_target() -> None:
    # "Heat" is the title of 11 and of 20; 44 is the target below both.
    example = pl.DataFrame({"example_id": [0], "user_id": [0], "history": [[20]], "target": [44]})
    score_BI = torch.tensor([[0.0, 0, 9, 8, 0, 7, 5, 0, 0]])
    batches = [(score_BI, torch.tensor([IDS.index(44)]))]
    table = predictions_of(example, batches, TitleIndex.of(ITEMS), 4, True)
    assert table.select("target_rank", "target_item_rank").row(0) == (2, 2)
    assert table["top_items"].to_list()[0][:2] == [31, 44]


# Found by scripts that share no code with this one; ties there count against the target. On Books
# 0.3 % of the targets stand in their history: they are never found. Left in as answers, as a script
# did that leaves out the rest of the history alone, they bring .0463 and .0410.
@pytest.mark.slow
@pytest.mark.skipif("HATLLM_DATA_ROOT" not in os.environ, reason="HATLLM_DATA_ROOT is not set")
@pytest.mark.parametrize(
    ("name", "hit_rate", "ndcg"),
    [
        ("msl_toys", 0.0795, 0.0463),
        ("msl_books", 0.0436, 0.0383),
        ("msl_clothing", 0.0406, 0.0233),
        ("msl_office", 0.1371, 0.0829),
    ],
)
def test_the_title_rule_without_the_history_has_the_figures_found_apart_from_it(
    compose_config: Compose, name: str, hit_rate: float, ndcg: float, tmp_path: Path
) -> None:
    rows = [f"data.{split}_rows={'null' if split == 'test' else 8}" for split in SPLITS]
    places = [f"data_root={os.environ['HATLLM_DATA_ROOT']}", f"cache_root={tmp_path}"]
    dataset = load_dataset(compose_config(f"data={name}", *rows, *places))
    rule = TitlesConfig("word", 1, 1, 1, 1.0, None)
    found = title_rule(dataset.items, rule)
    table = found.predictions(dataset.splits["test"], dataset.items, 10, True)
    gains = (1 / (table["target_rank"] + 1).log(2)).fill_null(0.0)
    assert table["target_rank"].is_not_null().mean() == pytest.approx(hit_rate, abs=0.001)
    assert gains.mean() == pytest.approx(ndcg, abs=0.001)
