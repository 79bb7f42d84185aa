"""Groups composed once give what Hydra gives that composes everything."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import composing
import pytest
from hydra import compose, initialize_config_dir
from hydra._internal import config_loader_impl, defaults_list
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.defaults_list import DefaultsList
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import ConfigCompositionException
from omegaconf import DictConfig, OmegaConf
from toys import CONF

from hatllm.compose import register_schema

pytestmark = pytest.mark.long  # every command composed twice

COMMANDS = (
    [],
    ["seed=3", "model.lora.dropout=0.0", "hydra.verbose=true"],
    ["model=knn", "seed=2"],
    ["mask=causal", "model.lora.dropout=0.5", "loss.tau=2"],
    ["experiment=demo", '+experiment.cells.one=["a"]', "~experiment.cells.popularity"],
    ["experiment=paper/main", "experiment.only=[msl]", "scale=smoke"],
)


@pytest.fixture(autouse=True)
def schema() -> Iterator[None]:
    register_schema()
    yield
    GlobalHydra.instance().clear()


def composed(words: list[str], conf: Path = CONF) -> DictConfig:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf), version_base="1.3"):
        return compose("config", overrides=words, return_hydra_config=True)


def plainly(words: list[str], conf: Path = CONF) -> DictConfig:
    with pytest.MonkeyPatch.context() as patch:
        name = "create_defaults_list"
        patch.setattr(config_loader_impl, name, composing.create_defaults_list)
        name = "_compose_config_from_defaults_list"
        patch.setattr(ConfigLoaderImpl, name, composing.compose_defaults)
        patch.setattr(FileConfigSource, "load_config", composing.load_file)
        name = "_create_interpolation_map"
        patch.setattr(defaults_list, name, composing.interpolation_map)
        patch.delattr(ConfigStore, "__deepcopy__")
        return composed(words, conf)


def everything(node: object, path: str = "") -> Iterator[tuple[object, ...]]:
    """Of every node its type, its flags and what it may hold."""
    if isinstance(node, DictConfig):
        meta = node._metadata
        yield path, meta.ref_type, meta.object_type, meta.optional, meta.element_type, meta.flags
        if not (node._is_none() or node._is_missing() or node._is_interpolation()):
            for key in node:
                yield from everything(node._get_node(key), f"{path}.{key}")


def test_a_command_line_reads_the_files_of_its_groups_once(
    cli: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lists = []
    create = composing.create_defaults_list

    def counting(*given: Any) -> DefaultsList:
        lists.append(given)
        return create(*given)

    monkeypatch.setattr(composing, "create_defaults_list", counting)
    for seed in (1, 2, 3):
        assert cli("model=knn", "mask=reversed", "loss=bear", f"seed={seed}", "--cfg", "job") == 0
        assert f"\nseed: {seed}\n" in capsys.readouterr().out
    assert len(lists) == 1


@pytest.mark.parametrize("words", COMMANDS)
def test_the_second_time_gives_the_same_as_the_first_and_as_hydra(words: list[str]) -> None:
    plain, first, second = plainly(words), composed(words), composed(words)
    assert OmegaConf.to_yaml(plain) == OmegaConf.to_yaml(first) == OmegaConf.to_yaml(second)
    assert list(everything(plain)) == list(everything(first)) == list(everything(second))


def test_what_a_command_line_sets_does_not_reach_the_next() -> None:
    assert composed(["seed=3"]).seed == 3
    first = composed([])
    assert first.seed == plainly([]).seed != 3
    first.model.lora.dropout = 0.77
    assert composed([]).model.lora.dropout != 0.77


@pytest.mark.parametrize("words", [["mask=no"], ["no=1"], ["no/such=1"], ["model.no=1"]])
def test_what_is_wrong_stays_wrong_in_hydras_words(words: list[str]) -> None:
    with pytest.raises(Exception) as plain:
        plainly(words)
    for _ in range(2):
        with pytest.raises(type(plain.value)) as found:
            composed(words)
        assert str(found.value) == str(plain.value)


def test_files_of_another_folder_are_read_each_time(tmp_path: Path) -> None:
    for seed in (5, 6):
        (tmp_path / "config.yaml").write_text(f"seed: {seed}\n")
        assert composed([], tmp_path).seed == seed
    with pytest.raises(ConfigCompositionException):
        composed(["no=1"], tmp_path)
