"""Hydra's composing, each choice of groups once: the settings of most tests differ in values alone.

Hydra reads thirty files for every command line, for a quarter of a second. Which files, and what
they say together, depends on the words that choose groups; the other words are then set by Hydra
itself, here as ever. Processes of their own compose without any of this.
"""

import pickle
from dataclasses import replace
from typing import Any

import pytest
from hydra._internal import config_loader_impl
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository
from hydra._internal.defaults_list import DefaultsList
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig
from toys import CONF

create_defaults_list = config_loader_impl.create_defaults_list
compose_defaults = ConfigLoaderImpl._compose_config_from_defaults_list


class Composed:
    """What was composed before, by the words that choose groups."""

    def __init__(self) -> None:
        self.lists: dict[tuple[Any, ...], DefaultsList] = {}
        self.configs: dict[int, bytes] = {}  # by the identity of a list that is kept above
        self.groups: dict[tuple[Any, ...], bool] = {}

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
        # run.py's folder is a path, that of Hydra's compose() begins with file://.
        if any(source.path.removeprefix("file://") != str(CONF) for source in files) or any(
            isinstance(word.value(), dict) for word in chosen
        ):
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

    def _is_group(
        self, repo: CachingConfigRepository, sources: tuple[Any, ...], word: Override
    ) -> bool:
        key = (sources, word.key_or_group)
        if key not in self.groups:
            self.groups[key] = repo.group_exists(word.key_or_group)
        return self.groups[key]


def compose_once(patch: pytest.MonkeyPatch) -> None:
    """Let Hydra compose each choice of groups of conf/ once."""
    composed = Composed()
    patch.setattr(config_loader_impl, "create_defaults_list", composed.defaults)
    patch.setattr(
        ConfigLoaderImpl,
        "_compose_config_from_defaults_list",
        lambda self, defaults, repo: composed.config(self, defaults, repo),
    )
