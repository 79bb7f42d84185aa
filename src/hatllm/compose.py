"""From Hydra's composed config to a checked `Config`, and its errors as one clear line."""

import difflib
import errno
import re
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from hatllm.config import Config
from hatllm.hardware import AUTO, fastest_dtype
from hatllm.redact import refuse_secrets_in

# What may be changed when a finished run is used again; the rest is part of what it is.
CHANGEABLE = ("task", "decode", "fast", "logger", "trainer.accelerator", "trainer.devices",
              "trainer.num_nodes", "trainer.strategy", "model.dtype", "model.backend",
              "model.compile", "data.valid_rows", "data.test_rows", "data.histories",
              "data_root", "cache_root", "output_root", "num_threads", "sweep")  # fmt: skip
# From more words to the config of a command line with them, and all of its words.
Compose = Callable[[list[str]], tuple[Config, list[str]]]
LONGEST_LINE = 1000  # characters of a message
PLACES = ("data_root", "cache_root", "output_root", "num_threads", "task", "sweep")


def register_schema() -> None:
    """Make the schema known to Hydra as ``schema``, the first of the defaults."""
    ConfigStore.instance().store(name="schema", node=Config)


def checked(composed: DictConfig) -> Config:
    """The typed config, its ranges checked; what is `auto` or null becomes its value here.

    Raises:
        ValueError: With one line that names field, value and what would be right.
    """
    try:
        config = OmegaConf.to_object(composed)
    except MissingMandatoryValue as error:
        raise ValueError(f"{error.full_key} has no value; give {error.full_key}=...") from None
    except OmegaConfBaseException as error:
        if isinstance(error.__cause__, ValueError):
            raise ValueError(str(error.__cause__)) from error
        raise
    assert isinstance(config, Config)
    refuse_secrets_in(config)
    if config.model.dtype == AUTO:
        config.model.dtype = _dtype_here(config)
    config.trainer.monitor = config.monitor
    return config


def _dtype_here(config: Config) -> str:
    """The type that `model.dtype=auto` stands for; baselines compute in float32."""
    if config.model.kind != "llm":
        return "float32"
    return fastest_dtype(config.trainer.accelerator, Path(config.cache_root).expanduser())


def config_of(words: list[str], conf: Path) -> Config:
    """The config of a command line, from Python: what ``python run.py WORDS`` would run.

    Args:
        words: Overrides, such as ``mask=hatllm`` or ``seed=2``.
        conf: The folder of config groups.

    Raises:
        ValueError: As `checked`.
    """
    register_schema()
    with initialize_config_dir(str(conf.resolve()), version_base="1.3"):
        return checked(compose("config", overrides=words))


def composed_with(given: list[str], more: list[str]) -> tuple[Config, list[str]]:
    """The config of a command line with more words, inside `hydra.main`.

    Args:
        given: Its words.
        more: More; each takes the place of the given ones of its setting.

    Returns:
        The checked config, and all the words that make it.

    Raises:
        ValueError: As `checked`.
    """
    keys = {word.split("=")[0] for word in more}
    words = [*(word for word in given if word.split("=")[0] not in keys), *more]
    return checked(compose("config", overrides=words)), words


def with_finished_run(composed: DictConfig, overrides: list[str], saved: Any) -> DictConfig:
    """The settings of a finished run with the command line's on top.

    Args:
        composed: The command line's composed config.
        overrides: Its words, such as ``decode.beam_width=20``.
        saved: The finished run's settings.

    Returns:
        Settings to evaluate or recommend with.

    Raises:
        ValueError: If an override would make it another run.
    """
    merged = OmegaConf.create(OmegaConf.to_container(saved), flags={"allow_objects": True})
    keys = [re.split(r"[=@]", word.lstrip("+~"))[0].replace("/", ".") for word in overrides]
    for key in (*keys, *PLACES):
        if not any(key == allowed or key.startswith(f"{allowed}.") for allowed in CHANGEABLE):
            raise ValueError(
                f"{key} is fixed by the finished run; with it you can change "
                f"{', '.join(CHANGEABLE)}"
            )
        value = OmegaConf.select(composed, key)
        if OmegaConf.is_config(value):
            value = OmegaConf.to_container(value, resolve=True)
        OmegaConf.update(merged, key, value, merge=False)
    typed = OmegaConf.merge(OmegaConf.structured(Config), merged)
    assert isinstance(typed, DictConfig)
    return typed


def one_line(error: BaseException, conf: Path) -> str:
    """What is wrong with a command line, in one line.

    Args:
        error: Raised while composing or checking.
        conf: The folder of config groups.

    Returns:
        Field, value, and the nearest valid name where there is one.
    """
    line = _line(error, conf)
    return line if len(line) <= LONGEST_LINE else f"{line[:LONGEST_LINE]}..."


def _line(error: BaseException, conf: Path) -> str:
    if isinstance(error, MemoryError):
        return "out of memory: lower scale, model or decode.users_per_batch"
    if isinstance(error, OSError) and error.strerror is not None:
        return _system_error(error)
    text = str(error).strip()
    causes = "\n".join(str(e) for e in (error, error.__cause__) if e is not None)
    if "hydra/sweeper/optuna" in causes:
        return "sweep=optuna needs a package: pip install -e '.[sweeps]'"
    if found := re.search(r"Could not (?:find|load) '([\w/.-]+)/([\w.-]+)'", causes):
        group, choice = found.groups()
        if (conf / group).is_dir():
            group, _, folder = group.partition("/")
            choice = f"{folder}/{choice}" if folder else choice
            near = _near(choice, _options(conf, group))
            return f"{group}={choice!r} is not in conf/{group}/{near}"
    if found := re.search(r"Could not override '([\w./]+)'", causes):
        return f"{found.group(1)} is not a setting" + _near_key(found.group(1))
    if found := re.search(r"full_key: ([\w.]+)", causes):
        key = found.group(1)
        first = causes.splitlines()[0]
        if "not in" in first or "not a valid" in first:
            return f"{key} is not a setting" + _near_key(key)
        if value := re.search(r"[Vv]alue '(.*?)'.*?could not be converted to (\w+)", causes):
            return f"{key}={value.group(1)!r} must be of type {value.group(2)}"
        return f"{key}: {first}"
    return " ".join(text.split())


def _system_error(error: OSError) -> str:
    """What the system refused, and what helps; a run goes on where it stopped."""
    reason = error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT | errno.EFBIG:
            helps = "make room"
        case errno.EROFS | errno.EACCES | errno.EPERM:
            helps = "make the folder writable"
        case _:
            return f"{reason}"
    return (
        f"{reason}. Either {helps} or give another folder (output_root, cache_root); the same "
        "command goes on where it stopped"
    )


def _options(conf: Path, group: str) -> list[str]:
    files = (path for path in (conf / group).rglob("*.yaml") if path.stem[0] != "_")
    return sorted(path.relative_to(conf / group).with_suffix("").as_posix() for path in files)


def _near(word: str, choices: list[str]) -> str:
    near = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"{hint} (there are: {', '.join(choices)})"


def _near_key(key: str) -> str:
    names = sorted(_setting_names(Config))
    near = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else "; see python run.py --help"


def _setting_names(schema: Any, before: str = "") -> set[str]:
    names = set()
    for field in fields(schema):
        name = f"{before}{field.name}"
        names.add(name)
        if is_dataclass(field.type):
            names |= _setting_names(field.type, f"{name}.")
    return names
