"""The title rule by meaning against cosines written out."""

import math

import polars as pl
import torch

from hatllm.baselines.title_rules import sentence_rule
from hatllm.config import TitlesConfig

ITEMS = pl.DataFrame({"item_id": [3, 5, 8, 9], "title": ["A", "B", "C", "D"]})
# At 0, 20, 90 and 120 degrees.
VECTORS = torch.tensor([[math.cos(math.radians(x)), math.sin(math.radians(x))]
                        for x in (0, 20, 90, 120)])  # fmt: skip


def rule(last_items: int, decay: float) -> TitlesConfig:
    return TitlesConfig("word", 1, 1, last_items, decay, "unused")


def example(history: list[int], target: int) -> pl.DataFrame:
    return pl.DataFrame(
        {"example_id": [0], "user_id": [7], "history": [history], "target": [target]}
    )


def test_titles_rank_by_their_angle_to_the_last_one() -> None:
    table = sentence_rule(VECTORS, rule(1, 1.0)).predictions(example([8, 3], 9), ITEMS, 4)
    assert table["top_items"].to_list() == [[3, 5, 8, 9]]
    cosines = [1.0, math.cos(math.radians(20)), 0.0, -0.5]
    total = math.log(sum(map(math.exp, cosines)))
    expected = torch.tensor([cosine - total for cosine in cosines])
    torch.testing.assert_close(torch.tensor(table["top_log_probs"][0].to_list()), expected)
    assert table["target_rank"].to_list() == [4]


def test_older_titles_weigh_less_by_the_decay() -> None:
    # 9 first, then 3. Half a vector at 120 degrees and a whole one at 0 sum to (0.75, 0.433), which
    # lies at 30 degrees: 20 is nearest, then 0, 90, 120. With equal weights it lies at 60: 90, 20.
    for decay, best in ((0.0, [3, 5, 8, 9]), (0.5, [5, 3, 8, 9])):
        table = sentence_rule(VECTORS, rule(2, decay)).predictions(example([9, 3], 5), ITEMS, 4)
        assert table["top_items"].to_list() == [best], decay
    table = sentence_rule(VECTORS, rule(2, 1.0)).predictions(example([9, 3], 5), ITEMS, 4)
    assert table["top_items"][0].to_list()[:2] == [8, 5]
