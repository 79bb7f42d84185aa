"""How one title came about, on a real small run: against its own answers and the masks."""

from pathlib import Path

import numpy as np
import pytest

from hatllm.compose import checked
from hatllm.recommend.answerer import LlmAnswerer
from hatllm.recommend.answers import asked_of, catalogue_of
from hatllm.runs.folder import load_config
from hatllm.serve.schema import WhyAnswer
from hatllm.serve.why import Explainer

HISTORY = [1, 7, 3]


@pytest.fixture(scope="module")
def answerer(finished_once: Path) -> LlmAnswerer:
    saved = load_config(finished_once)
    saved.task.run_folder = str(finished_once)
    config = checked(saved)
    return LlmAnswerer(config, catalogue_of(config), num_histories=None)


@pytest.fixture(scope="module")
def told(answerer: LlmAnswerer) -> tuple[WhyAnswer, float]:
    """Why the first answer came about, and the log-probability that the search gave it."""
    (best, *_), = answerer(asked_of(answerer.config, [HISTORY]))  # fmt: skip
    items = catalogue_of(answerer.config)
    title = dict(items.select("item_id", "title").iter_rows())
    return Explainer(answerer, title)("run", HISTORY, best.item_id), best.log_prob


def test_the_path_spells_the_title_and_multiplies_to_its_probability(
    told: tuple[WhyAnswer, float],
) -> None:
    why, log_prob = told
    assert "".join(step.token for step in why.path).startswith(why.title)
    assert why.log_prob == pytest.approx(log_prob, abs=1e-4)
    for step in why.path:
        assert len(step.others) == min(step.num_choices - 1, 4)
        if step.num_choices == 1:
            assert step.prob == pytest.approx(1.0)
        assert step.prob + sum(other.prob for other in step.others) <= 1.0001


def test_attention_adds_up_and_is_nowhere_a_mask_forbids_it(
    told: tuple[WhyAnswer, float], answerer: LlmAnswerer
) -> None:
    why, _ = told
    names = [part.name for part in why.parts]
    assert names == ["prefix", "item 1", "item 2", "item 3", "response", "target"]
    assert [layer.pattern for layer in why.layers] == list(answerer.parts.schedule.patterns)
    target = np.array(why.masks["intra"])[5]
    assert (target[1:4] == 0).all()  # the title sees no history item below
    assert target[0] == 1  # but the template it does
    for layer in why.layers:
        assert sum(layer.attention) == pytest.approx(1.0, abs=1e-4)
        mask = np.array(why.masks[layer.pattern])
        forbidden = (mask[4] == 0) & (mask[5] == 0)
        assert (np.array(layer.attention)[forbidden] == 0).all()


def test_explaining_leaves_the_answers_as_they_were(answerer: LlmAnswerer) -> None:
    before = answerer(asked_of(answerer.config, [HISTORY]))
    items = catalogue_of(answerer.config)
    explain = Explainer(answerer, dict(items.select("item_id", "title").iter_rows()))
    explain("run", HISTORY, before[0][0].item_id)
    assert answerer(asked_of(answerer.config, [HISTORY])) == before
