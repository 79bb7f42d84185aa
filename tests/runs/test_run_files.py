"""What is read of a run folder whose files were damaged."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf
from toys import Compose

from hatllm.runs.folder import write_config
from hatllm.runs.run_files import (
    read_environment,
    read_identity,
    read_manifest,
    read_metrics,
    read_settings,
)


@pytest.mark.parametrize(
    "damage", [b"", b'{"label": "x", "se', b"[1]", b"\xff\xfe\x00{", b"[" * 100_000]
)
def test_a_damaged_json_file_of_a_run_is_named(tmp_path: Path, damage: bytes) -> None:
    for name, read in (
        ("run.json", read_identity), ("metrics.json", read_metrics),
        ("environment.json", read_environment), ("split_manifest.json", read_manifest),
    ):  # fmt: skip
        (tmp_path / name).write_bytes(damage)
        with pytest.raises(ValueError, match=f"{name} is damaged"):
            read(tmp_path)


@pytest.mark.parametrize(
    "words",
    [
        ["loss.tau=1e-9", "trainer.learning_rate=3", "run_name='1e5'"],
        ["experiment=paper/main", "seed=7", "run_name=yes"],
        ["data=custom", "data.interactions_file='é: #'", "data.items_file='{a: b}'", "model=knn"],
    ],
    ids=["numbers", "groups", "texts"],
)  # fmt: skip
def test_settings_are_written_as_omegaconf_writes_them_and_read_as_they_were(
    compose_config: Compose, tmp_path: Path, words: list[str]
) -> None:
    config = compose_config(*words)
    write_config(tmp_path, config)
    node = OmegaConf.structured(config)
    assert (tmp_path / "config.yaml").read_text("utf-8") == OmegaConf.to_yaml(node)
    assert read_settings(tmp_path) == OmegaConf.to_container(node)


@pytest.mark.parametrize("text", ["", "[1]", "a: [", "model"])
def test_damaged_settings_are_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"config\.yaml"):
        read_settings(tmp_path)
