"""The title rule with transitions against sums of cosines and logarithms."""

from math import log

import polars as pl
import pytest

from hatllm.baselines.title_rules import title_graph, title_rule, title_vectors
from hatllm.config import TitlesConfig
from hatllm.data.train_interactions import transition_counts

RULE = TitlesConfig("word", 1, 1, 1, 1.0, None)
TITLES = ["Red Boat", "red boat: 2", "The Lamp", "Boat Lamp", "Green Book"]
ITEMS = pl.DataFrame({"item_id": [3, 5, 8, 9, 11], "title": TITLES})
EXAMPLES = pl.DataFrame(
    {"example_id": [0, 1], "user_id": [7, 8], "history": [[8, 3], [3, 8]], "target": [11, 9]}
)
# From 3 to 11 twice, from 3 to 8 once, from 8 to 3 once; from 11 to 3 once.
TRAIN = pl.DataFrame({"user_id": [1, 1, 1, 1, 2, 2, 2], "item_id": [3, 11, 3, 11, 8, 3, 8]})


def test_a_title_scores_its_cosine_and_the_log_of_its_count() -> None:
    counts = transition_counts(TRAIN)
    table = title_graph(counts, 0.5, ITEMS, RULE).predictions(EXAMPLES, ITEMS, 5)
    vectors = title_vectors(TITLES, RULE).toarray()
    for row, last, after in ((0, 0, {4: 2, 2: 1}), (1, 2, {0: 1})):
        cosine = vectors @ vectors[last]
        score = {i: cosine[i] + 0.5 * log(1 + after.get(i, 0)) for i in range(5)}
        items = ITEMS["item_id"].to_list()
        found = [score[items.index(item)] for item in table["top_items"][row]]
        assert found == pytest.approx(sorted(score.values(), reverse=True))
        total = sum(2.718281828459045**s for s in score.values())
        log_probs = [s - log(total) for s in found]
        assert table["top_log_probs"][row].to_list() == pytest.approx(log_probs)
    assert table["target_rank"].to_list() == [3, 2]  # 1, .7 and .5 ln 3; 1 and a lamp


def test_without_weight_it_is_the_title_rule() -> None:
    rules = title_graph(transition_counts(TRAIN), 0.0, ITEMS, RULE), title_rule(ITEMS, RULE)
    tables = [rule.predictions(EXAMPLES, ITEMS, 5) for rule in rules]
    assert tables[0].equals(tables[1])


def test_the_last_item_counts_however_many_titles_are_read() -> None:
    rule = TitlesConfig("word", 1, 1, 2, 0.0, None)  # the older one weighs nothing
    pairs = transition_counts(TRAIN)
    rules = [title_graph(pairs, 0.5, ITEMS, config) for config in (RULE, rule)]
    tables = [each.predictions(EXAMPLES, ITEMS, 5) for each in rules]
    assert tables[0].equals(tables[1])
