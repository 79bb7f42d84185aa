from dataclasses import fields
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from hatllm.config import DataConfig

from .settings import CONF

FILES = sorted(path.stem for path in (CONF / "data").glob("[!_]*.yaml"))
NEEDED = {  # what the user has to name
    "amazon": ["data.category=Video_Games"],
    "custom": ["data.interactions_file=a.csv", "data.items_file=b.csv"],
}
MAX_DIFFERENCES = 20  # lines: every file but the first holds its differences only


def compose_data(name: str, overrides: list[str]) -> DataConfig:
    ConfigStore.instance().store(group="data", name="data_schema", node=DataConfig)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        composed = compose(overrides=[f"+data=[data_schema,{name}]", *overrides])
    config = OmegaConf.to_object(composed.data)
    assert isinstance(config, DataConfig)
    return config


@pytest.mark.parametrize("name", FILES)
def test_every_file_composes_to_a_valid_config(name: str) -> None:
    config = compose_data(name, NEEDED.get(name, []))
    expected = {"amazon": "amazon_Video_Games"}.get(name, name)
    assert config.name == expected
    assert config.prompt.response.endswith('"')
    assert config.prompt.target == '{title}"'


def test_the_base_holds_every_key_but_what_a_source_is_called() -> None:
    held = OmegaConf.load(CONF / "data" / "_base.yaml")
    assert set(held) == {field.name for field in fields(DataConfig)} - {"name", "source"}


@pytest.mark.parametrize("name", FILES)
def test_other_files_are_short_and_say_what_they_are(name: str) -> None:
    lines = Path(CONF / "data" / f"{name}.yaml").read_text().splitlines()
    assert lines[0].startswith(f"# conf/data/{name}.yaml: ")
    assert len(lines) <= MAX_DIFFERENCES


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("msl_")])
def test_published_presets_keep_the_authors_strings_and_prompt(name: str) -> None:
    config = compose_data(name, [])
    assert not config.clean_titles
    assert config.prompt.prefix.startswith("Below is an instruction that describes a task, paired")
    assert config.prompt.history_item == '"{title}", '
    assert config.prompt.response == '\n\n### Response:\n"'


def test_a_release_may_be_typed_as_a_number() -> None:
    assert compose_data("sports", ["data.release=2018"]).release == "2018"
