"""What a run is called: the settings that count, their hash, its label and its folder."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from hatllm.config import OTHER_RUNS, Config, only_what_counts


def config_hash(config: Config) -> str:
    """Twelve hexadecimal digits over every setting that can change the numbers."""
    text = json.dumps(settings_that_count(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def settings_that_count(config: Config) -> dict[str, Any]:
    """Every setting that can change the numbers; other runs by the names of their folders."""
    kept = counted(asdict(config))
    if not config.is_seeded:
        del kept["seed"]
    return kept


def counted(settings: Mapping[str, Any]) -> dict[str, Any]:
    """As `settings_that_count`, of all settings by name, groups as dictionaries, and the seed."""
    kept = only_what_counts(settings)
    for group, setting in OTHER_RUNS:
        folder = kept[group].get(setting)  # a baseline has none
        if folder is not None:
            kept[group][setting] = Path(folder).name
    return kept


def of_any_seed(config: Config, find: Callable[[str], Config | None]) -> Config:
    """Settings that are equal for runs that differ in the seed only, and so in the runs they need.

    Args:
        config: A run.
        find: Gives the settings of another run by its folder; None = there is no such run.

    Returns:
        The run with seed 0, needing others by the names that they have with seed 0; one that is
        not found keeps its folder.
    """
    config = replace(
        config, seed=0, run_name=None, model=replace(config.model), decode=replace(config.decode)
    )
    for group, setting in OTHER_RUNS:
        part = getattr(config, group)
        folder = getattr(part, setting)
        if folder is not None and (run := find(folder)) is not None:
            setattr(part, setting, run_folder(of_any_seed(run, find)).name)
    return config


def settings_by_name(config: Config) -> dict[str, Any]:
    """Every setting that can change the numbers, by its dotted name."""
    return by_dotted_name(settings_that_count(config))


def by_dotted_name(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings, groups as dictionaries, by their dotted names."""

    def flat(values: Mapping[str, Any], start: str = "") -> Iterator[tuple[str, Any]]:
        for name, value in values.items():
            if isinstance(value, Mapping):
                yield from flat(value, f"{start}{name}.")
            else:
                yield f"{start}{name}", value

    return dict(flat(settings))


def run_label(config: Config) -> str:
    """What a table calls this run: equal for runs that differ in the seed only."""
    if config.experiment.cell is not None:
        return config.experiment.cell
    # Other answers than those of its twin, so another row of a table.
    suffix = "-nohistory" if config.decode.exclude_history else ""
    return _settings_label(config) + suffix


def _settings_label(config: Config) -> str:
    if config.model.kind != "llm":
        return config.model.name
    tuned = config.trains or config.model.start_from is not None
    mask = config.mask.name if config.mask.layers is None else config.mask.layers
    for short, value in (
        ("split", config.mask.split_layer),
        ("cross", config.mask.num_cross_layers),
    ):
        mask += "" if value is None else f"-{short}{value}"
    return mask if tuned else ("untuned" if mask == "causal" else f"untuned-{mask}")


def run_folder(config: Config) -> Path:
    """Folder of this run under `output_root`; the same settings always give the same folder."""
    return Path(config.output_root).expanduser() / (config.run_name or _name(config))


def _name(config: Config) -> str:
    parts = [config.data.name, config.model.name]
    if config.model.kind == "llm":
        parts += [_settings_label(config), config.loss.name]
    if config.is_seeded:
        parts.append(f"s{config.seed}")
    return "-".join([*parts, config_hash(config)[:8]])
