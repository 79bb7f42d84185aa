"""The study of recipes on a small shop with the random model."""

import itertools
from pathlib import Path

import polars as pl
import pytest
from shop import write_shop

from experiments.recipe import draw, study
from experiments.speed.workload import composed
from hatllm.config import Config
from hatllm.decode.predict import predict


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.delenv("HATLLM_DATA_ROOT", raising=False)
    return [
        "scale=smoke", *write_shop(tmp_path / "shop"), f"cache_root={tmp_path / 'cache'}",
        "data.train_targets=every", "loss.tau=3", "mask=causal",
    ]  # fmt: skip


@pytest.fixture
def config(words: list[str]) -> Config:
    return composed(*words)


def test_a_budget_is_seconds_of_steps_and_its_last_point_stands_at_its_end(config: Config) -> None:
    ticks = itertools.count()  # a step lasts from one tick to the next: a second
    points = list(study.curve_of(config, 4.0, 2, True, lambda: float(next(ticks))))
    assert [(point["seconds"], point["step"]) for point in points] == [(0, 0), (2, 2), (4, 4)]
    assert points[1]["titles"] > 2 * config.trainer.global_batch_size  # histories teach too
    assert ["NDCG@10" in point for point in points] == [False, False, True]


def test_the_rate_follows_the_budget_that_is_left(config: Config) -> None:
    training = study.Training(config)
    rates = []
    for step, left in enumerate((1.0, 0.5, 0.25)):
        training.step(step, left)
        rates.append(training.optimizer.param_groups[0]["lr"] / config.trainer.learning_rate)
    assert rates == [1.0, 0.5, 0.25]  # one step of warm-up: none is below its share


def test_the_nll_of_valid_rows_is_that_of_the_predictions_table(config: Config) -> None:
    training = study.Training(config)
    training.step(0, 1.0)
    valid_nll = training.valid_nll()
    module = training.module
    table = predict(module.lm, training.parts.catalogue, module.valid, config, "valid")
    assert valid_nll == pytest.approx(-table["target_trie_log_prob"].mean(), abs=1e-4)


def test_a_curve_that_is_there_is_not_made_again(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "curves.csv"
    settings = [word for word in words if not word.startswith(("data=", "scale="))]
    settings += ["model=tiny", "model.lora.target_modules=[q_proj]"]
    arguments = ["--data", "custom", "--seconds", "0.01", "--valid-rows", "4", "--points", "1"]
    arguments += [part for word in settings for part in ("--set", word)]
    arguments += ["--output", str(table)]
    study.main([*arguments, "--only", "last"])
    first = pl.read_csv(table)
    assert first["recipe"].unique().to_list() == ["last"]
    monkeypatch.setattr(study, "curve_of", lambda *_: pytest.fail("made again"))
    study.main([*arguments, "--only", "last"])
    assert pl.read_csv(table).equals(first)


def test_every_recipe_composes_and_has_a_name_of_its_own() -> None:
    recipes = study.recipes()
    assert len({tuple(words) for words in recipes.values()}) == len(recipes)
    for words in recipes.values():
        composed("scale=published", "data=ml100k", *words)


def test_the_figure_has_a_line_a_recipe(tmp_path: Path) -> None:
    curves = pl.DataFrame(
        {"data": "shop", "recipe": ["a", "a", "b", "b"], "seconds": [0.0, 9.0, 0.0, 8.0],
         "trie_NLL": [9.0, 8.0, 9.0, 7.0], "NDCG@10": [None, 0.1, None, 0.2]}
    )  # fmt: skip
    panels = draw.draw(curves).axes
    assert [len(axes.lines) for axes in panels] == [2, 2]
    curves.write_csv(tmp_path / "curves.csv")
    draw.main(["--curves", str(tmp_path / "curves.csv")])
    assert (tmp_path / "shop.png").stat().st_size > 1000
