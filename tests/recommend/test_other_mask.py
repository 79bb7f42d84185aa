"""The weights of a run under another mask, against a run folder that says that it was made so."""

import shutil
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from toys import Compose

import hatllm
from hatllm.recommend.other_mask import mask_names, mask_of
from hatllm.recommend.recommender import Recommender, Request

pytestmark = pytest.mark.long

HISTORY = ["Red Boat", "Old Lamp", "Tiny Book"]
WORDS = {  # what a run made under each would have been told
    "causal": ["mask=causal"],
    "hatllm_segments": ["mask=hatllm_segments"],
    "reversed": ["mask=reversed"],
    "CFFI": ["mask=custom", "mask.layers=CFFI"],
}


@pytest.fixture(scope="module")
def loaded(finished_once: Path) -> Recommender:
    return hatllm.load(finished_once)


@pytest.mark.parametrize("mask", WORDS)
def test_another_mask_answers_as_a_run_loaded_with_it(
    loaded: Recommender, finished_once: Path, tmp_path: Path, compose_config: Compose, mask: str
) -> None:
    folder = shutil.copytree(finished_once, tmp_path / "other")
    saved = OmegaConf.load(folder / "config.yaml")
    saved.mask = OmegaConf.structured(compose_config(*WORDS[mask]).mask)
    OmegaConf.save(saved, folder / "config.yaml")
    plain = hatllm.load(folder, ["fast=false"])
    own = loaded.recommend(HISTORY, 24)
    expected = plain.recommend(HISTORY, 24)
    got = loaded.recommend(HISTORY, 24, mask=mask)
    assert got != own
    assert [one.title for one in got] == [one.title for one in expected]
    assert [one.log_prob for one in got] == pytest.approx(
        [one.log_prob for one in expected], abs=1e-4
    )
    titles = [one.title for one in got[:5]]
    assert [one.log_prob for one in loaded.score(HISTORY, titles, mask)] == pytest.approx(
        [one.log_prob for one in plain.score(HISTORY, titles)], abs=1e-4
    )
    assert loaded.recommend(HISTORY, 24) == own  # the run's own mask is its own again


def test_requests_of_several_masks_in_one_batch_are_answered_each_under_its_own(
    loaded: Recommender,
) -> None:
    masks = [None, "causal", "two_phase", None, "causal", *mask_names()]
    asked = [Request(HISTORY[place % 2 :], 5, mask=mask) for place, mask in enumerate(masks)]
    for request, got in zip(asked, loaded.recommend_many(asked), strict=True):
        (alone,) = loaded.recommend_many([request])
        assert [one.title for one in got] == [one.title for one in alone]
        assert [one.log_prob for one in got] == pytest.approx(
            [one.log_prob for one in alone], abs=1e-5
        )


def test_titles_added_later_are_there_under_every_mask(finished_once: Path) -> None:
    loaded = hatllm.load(finished_once)
    loaded.recommend(HISTORY, mask="causal")
    loaded.add_items(["Grand Piano"])
    found = loaded.recommend(HISTORY, 25, mask="causal")
    assert "Grand Piano" in [one.title for one in found]


def test_the_presets_are_those_that_the_command_line_has(
    loaded: Recommender, compose_config: Compose
) -> None:
    assert len(mask_names()) > 5
    for name in mask_names():
        assert mask_of(name, loaded.config.mask) == compose_config(f"mask={name}").mask


@pytest.mark.parametrize("mask", ["nothing", "custom", "IF", "../mask/causal", ""])
def test_a_mask_that_there_is_not_is_refused(loaded: Recommender, mask: str) -> None:
    with pytest.raises(ValueError, match=r"mask"):
        loaded.recommend(HISTORY, mask=mask)
