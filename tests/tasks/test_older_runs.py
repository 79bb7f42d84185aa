"""Runs that were finished before a setting existed can still be used."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from toys import Compose

from hatllm.compose import checked
from hatllm.tasks.run_folder import config_hash, load_config, write_config

NEWER = {
    "experiment": ("datasets", "data_overrides", "grid", "compared_with", "views", "published"),
    "model": ("knn", "sequence", "item_vectors", "item_curriculum"),
}


def test_a_setting_newer_than_a_run_is_neutral(compose_config: Compose, tmp_path: Path) -> None:
    config = compose_config("mask=hatllm")
    write_config(tmp_path, config)
    (tmp_path / "run.json").write_text("{}")
    path = tmp_path / "config.yaml"
    settings = yaml.safe_load(path.read_text())
    for group, names in NEWER.items():
        for name in names:
            del settings[group][name]
    path.write_text(yaml.safe_dump(settings))
    again = checked(load_config(tmp_path))
    assert again == config
    assert config_hash(again) == config_hash(config)


@pytest.mark.parametrize("name", ["shared_embedding", "patience", "cloze"])
def test_a_setting_newer_than_a_run_is_null_in_an_optional_group_too(
    compose_config: Compose, tmp_path: Path, name: str
) -> None:
    config = compose_config("model=sasrec")
    write_config(tmp_path, config)
    (tmp_path / "run.json").write_text("{}")
    path = tmp_path / "config.yaml"
    settings = yaml.safe_load(path.read_text())
    del settings["model"]["sequence"][name]
    path.write_text(yaml.safe_dump(settings))
    again = checked(load_config(tmp_path)).model.sequence
    assert config.model.sequence is not None
    assert again == replace(config.model.sequence, **{name: None})


def test_a_setting_that_has_no_neutral_value_is_still_asked_for(
    compose_config: Compose, tmp_path: Path
) -> None:
    write_config(tmp_path, compose_config())
    (tmp_path / "run.json").write_text("{}")
    path = tmp_path / "config.yaml"
    settings = yaml.safe_load(path.read_text())
    del settings["loss"]["tau"]
    path.write_text(yaml.safe_dump(settings))
    with pytest.raises(ValueError, match=r"loss\.tau has no value"):
        checked(load_config(tmp_path))
