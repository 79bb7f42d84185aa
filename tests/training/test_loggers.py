"""What W&B is told, read back from the file of an offline run."""

import json
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from frames import predictions_frame
from matplotlib.figure import Figure
from pytorch_lightning.loggers import WandbLogger
from toys import Compose
from wandb_file import Logged, read_offline_run

from hatllm.config import Config
from hatllm.figures.saving import save_figure
from hatllm.masks.schedule import build_schedule
from hatllm.training.loggers import build_loggers, log_results, settings_to_group_by

MANIFEST = {"data_hash": "d4", "split_hash": "5f2c", "rows": {}}
ITEMS = pl.DataFrame({"item_id": [0, 1], "title": ["A", "B"]})


def grouped(config: Config, num_layers: int = 8) -> dict[str, object]:
    schedule = build_schedule(config.mask, num_layers)
    return settings_to_group_by(config, MANIFEST, schedule)


@pytest.fixture
def logged(compose_config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Logged:
    """A run whose second validation of three is its best, and whose answers are sent."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = compose_config("logger=wandb", "model=tiny")
    schedule = build_schedule(config.mask, 4)
    loggers = build_loggers(config, tmp_path, MANIFEST, schedule)
    (wandb,) = (logger for logger in loggers if isinstance(logger, WandbLogger))
    for step, ndcg in enumerate((0.1, 0.5, 0.2)):
        wandb.log_metrics({"val/NDCG@10": ndcg}, step)
    metrics = {
        "valid": {"NDCG@10": 0.5, "NDCG@10_se": 0.1},
        "test": {"NDCG@10": 0.4, "NDCG@10_se": 0.2},
        "popularity": {"NDCG@10": 0.3},
    }
    picture = save_figure(Figure(figsize=(1, 1)), tmp_path / "masks.png")
    log_results(loggers, metrics, predictions_frame([1, None]), ITEMS, picture)
    return read_offline_run(tmp_path)


def test_the_summary_holds_the_chosen_checkpoint_and_not_the_last_validation(
    logged: Logged,
) -> None:
    assert [row["val/NDCG@10"] for row in logged.history if "val/NDCG@10" in row] == [0.1, 0.5, 0.2]
    assert logged.summary["val/NDCG@10"] == 0.5
    assert logged.summary["test/NDCG@10"] == 0.4
    assert logged.summary["popularity/NDCG@10"] == 0.3


def test_masks_predictions_and_final_metrics_are_logged(logged: Logged, tmp_path: Path) -> None:
    (media,) = tmp_path.glob("wandb/offline-run-*/files/media")
    (picture,) = logged.summary["masks/filenames"]
    assert (media.parent / picture).read_bytes() == (tmp_path / "masks.png").read_bytes()
    tables = {
        name: json.loads((media.parent / logged.summary[f"{name}/path"]).read_text())["data"]
        for name in ("metrics", "test/predictions")
    }
    assert tables["metrics"] == [
        ["valid", "NDCG@10", 0.5, 0.1],
        ["test", "NDCG@10", 0.4, 0.2],
        ["popularity", "NDCG@10", 0.3, None],
    ]
    assert tables["test/predictions"] == [[0, "A", 1, "A | B"], [1, "A", None, "A | B"]]


def test_the_schedule_and_the_hashes_are_config_of_wandb(logged: Logged) -> None:
    assert logged.config["schedule"] == {
        "layers": "IFFC",
        "split_layer": 1,
        "num_cross_layers": 1,
    }
    assert (logged.config["data_hash"], logged.config["split_hash"]) == ("d4", "5f2c")
    assert len(logged.config["code_hash"]) == 12


def test_a_default_schedule_meets_the_same_one_given_in_numbers(compose_config: Compose) -> None:
    default = grouped(compose_config())
    explicit = grouped(compose_config("mask.split_layer=2", "mask.num_cross_layers=2"))
    other = grouped(compose_config("mask.split_layer=3"))
    assert default["schedule"] == explicit["schedule"]
    assert default["schedule"] == {"layers": "IIFFFFCC", "split_layer": 2, "num_cross_layers": 2}
    assert other["schedule"] == {"layers": "IIIFFFCC", "split_layer": 3, "num_cross_layers": 2}


@pytest.mark.parametrize(
    ("words", "expected"),
    {
        ("mask=two_phase",): ("IIIICCCC", 4, 4),
        ("mask=causal",): ("FFFFFFFF", None, None),
        ("mask=reversed",): ("CCFFFFII", 2, 2),
        ("mask=custom", "mask.layers=IFIFCCCC"): ("IFIFCCCC", None, None),
        ("mask.split_layer=0", "mask.num_cross_layers=0"): ("FFFFFFFF", 0, 0),
    }.items(),
)
def test_depths_are_those_of_the_groups_where_there_are_any(
    compose_config: Compose, words: tuple[str, ...], expected: tuple[str, int | None, int | None]
) -> None:
    schedule = grouped(compose_config(*words))["schedule"]
    assert isinstance(schedule, dict)
    assert tuple(schedule.values()) == expected


def test_a_model_without_layers_has_no_schedule(compose_config: Compose) -> None:
    config = replace(compose_config("model=popularity"))
    assert "schedule" not in settings_to_group_by(config, MANIFEST, None)
