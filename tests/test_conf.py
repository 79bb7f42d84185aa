"""Every file in conf/ composes, validates and says what it is."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from hatllm.compose import checked, register_schema
from hatllm.masks.schedule import build_schedule

CONF = Path(__file__).resolve().parents[1] / "conf"
FILES = sorted(path.relative_to(CONF) for path in CONF.glob("*/**/*.yaml"))
CHOICES = [path for path in FILES if not path.stem.startswith("_")]
NEEDED = {  # what a choice asks its user for
    "data/custom": ["data.interactions_file=a.csv", "data.items_file=b.csv"],
    "data/amazon": ["data.category=Video_Games"],
    "decode/d3": ["decode.assistant_run=outputs/sasrec"],
    "mask/custom": ["mask.layers=IFFC", "model=tiny"],
    "model/huggingface": ["model.source=somebody/model"],
    "task/evaluate": ["task.run_folder=outputs/run"],
    "task/recommend": ["task.run_folder=outputs/run"],
}


@pytest.mark.parametrize("path", CHOICES, ids=str)
def test_every_choice_composes_and_validates(path: Path) -> None:
    group, choice = path.parts[0], "/".join(path.with_suffix("").parts[1:])
    if path == Path("sweep/optuna.yaml"):
        pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    register_schema()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        words = [f"{group}={choice}", *NEEDED.get(f"{group}/{choice}", [])]
        config = checked(compose("config", overrides=words))
    named = config.scale if group == "scale" else getattr(config, group).name
    assert named == (None if choice == "none" else choice) or group == "data"
    if config.model.num_layers is not None:
        assert len(build_schedule(config.mask, config.model.num_layers).patterns) > 0


@pytest.mark.parametrize("path", FILES, ids=str)
def test_every_file_begins_with_its_own_name(path: Path) -> None:
    lines = (CONF / path).read_text().splitlines()
    assert any(line.startswith(f"# conf/{path}: ") for line in lines[:2])


def test_the_readme_command_puts_intra_layers_below_the_split() -> None:
    register_schema()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = checked(compose("config", overrides=["mask.split_layer=16", "data=sports"]))
    letters = build_schedule(config.mask, 30).letters
    assert letters == "I" * 16 + "F" * 7 + "C" * 7


def test_an_experiment_may_change_what_its_scale_sets() -> None:
    register_schema()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = checked(compose("config", overrides=["experiment=demo", "task=train"]))
        assert (config.data.train_rows, config.data.test_rows) == (320, 200)
        typed = checked(compose("config", overrides=["experiment=demo", "data.test_rows=7"]))
    assert typed.data.test_rows == 7
