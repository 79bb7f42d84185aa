"""Hydra's composing, each choice of groups once: the settings of most tests differ in values alone.

Hydra reads thirty files for every command line, for a quarter of a second. Which files, and what
they say together, depends on the words that choose groups; the other words are then set by Hydra
itself, here as ever. Another choice reads the files again that it shares with the first, but each
file is parsed once. Processes of their own compose without any of this.
"""

import pickle
from dataclasses import replace
from typing import Any

import pytest
from hydra._internal import config_loader_impl, defaults_list
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.defaults_list import DefaultsList
from hydra.core.config_store import ConfigStore
from hydra.core.default_element import InputDefault
from hydra.core.override_parser.types import Override
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig
from toys import CONF

create_defaults_list = config_loader_impl.create_defaults_list
compose_defaults = ConfigLoaderImpl._compose_config_from_defaults_list
load_file = FileConfigSource.load_config
interpolation_map = defaults_list._create_interpolation_map


class Composed:
    """What was composed before, by the words that choose groups."""

    def __init__(self) -> None:
        self.lists: dict[tuple[Any, ...], DefaultsList] = {}
        self.configs: dict[int, bytes] = {}  # by the identity of a list that is kept above
        self.groups: dict[tuple[Any, ...], bool] = {}
        self.files: dict[tuple[str, str], bytes] = {}

    def defaults(
        self,
        repo: CachingConfigRepository,
        config_name: str | None,
        overrides_list: list[Override],
        prepend_hydra: bool,
        skip_missing: bool,
    ) -> DefaultsList:
        """The files of a command line, in their order."""
        settings = (config_name, prepend_hydra, skip_missing)
        sources = tuple((source.provider, source.path) for source in repo.get_sources())
        files = [source for source in repo.get_sources() if source.scheme() == "file"]
        words = [word for word in overrides_list if not word.is_sweep_override()]
        chosen = [word for word in words if self._is_group(repo, sources, word)]
        if not all(map(is_conf, files)) or any(isinstance(word.value(), dict) for word in chosen):
            return create_defaults_list(repo, config_name, overrides_list, *settings[1:])
        key = (sources, *settings, *(word.input_line for word in chosen))
        if key not in self.lists:
            self.lists[key] = create_defaults_list(repo, config_name, overrides_list, *settings[1:])
        return replace(self.lists[key], config_overrides=[w for w in words if w not in chosen])

    def config(
        self, loader: ConfigLoaderImpl, defaults: list[Any], repo: CachingConfigRepository
    ) -> DictConfig:
        """What these files say together."""
        known = any(kept.defaults is defaults for kept in self.lists.values())
        if not known:
            return compose_defaults(loader, defaults, repo)
        if id(defaults) not in self.configs:
            self.configs[id(defaults)] = pickle.dumps(compose_defaults(loader, defaults, repo))
        return pickle.loads(self.configs[id(defaults)])

    def file(self, source: FileConfigSource, path: str) -> ConfigResult:
        """What one file says."""
        if not is_conf(source):
            return load_file(source, path)
        key = (source.path, path)
        if key not in self.files:
            self.files[key] = pickle.dumps(load_file(source, path))
        return pickle.loads(self.files[key])

    def _is_group(
        self, repo: CachingConfigRepository, sources: tuple[Any, ...], word: Override
    ) -> bool:
        key = (sources, word.key_or_group)
        if key not in self.groups:
            self.groups[key] = repo.group_exists(word.key_or_group)
        return self.groups[key]


def is_conf(source: Any) -> bool:
    """Whether a source of Hydra's is our conf/.

    run.py's folder is a path, that of Hydra's compose() begins with file://.
    """
    return bool(source.path.removeprefix("file://") == str(CONF))


def map_where_needed(overrides: Any, defaults: list[InputDefault], self_added: bool) -> DictConfig:
    """The choices so far, by which `${...}` among defaults are replaced, where there are such."""
    if any(default.is_interpolation() for default in defaults):
        return interpolation_map(overrides, defaults, self_added)
    return DictConfig({})


def compose_once(patch: pytest.MonkeyPatch) -> None:
    """Let Hydra compose each choice of groups of conf/ once, and do nothing for nothing."""
    composed = Composed()
    patch.setattr(
        FileConfigSource, "load_config", lambda self, config_path: composed.file(self, config_path)
    )
    patch.setattr(defaults_list, "_create_interpolation_map", map_where_needed)
    # Each composing copies the store with all its nodes; what is loaded from it is a copy anyway.
    patch.setattr(ConfigStore, "__deepcopy__", lambda self, memo: self, raising=False)
    patch.setattr(config_loader_impl, "create_defaults_list", composed.defaults)
    patch.setattr(
        ConfigLoaderImpl,
        "_compose_config_from_defaults_list",
        lambda self, defaults, repo: composed.config(self, defaults, repo),
    )
