"""What settings may set off: the code of an allow-list and nothing else.

Hydra builds whatever ``_target_`` names, before our own code runs. So every YAML file that Hydra
could read, and every word of the command line, is looked through first.
"""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from hatllm.redact import is_secret_name, refuse_secret

TARGETS = ("hatllm.many.hydra_sweep.Sweep",)  # what a file in conf/ may have built
# What may be set of Hydra itself; the rest could load code (callbacks, logging), change the
# environment of child processes (job.env_set) or add folders of settings (searchpath).
# Lightning gives each process that it starts a job.name of its own.
IN_WORDS = (
    "launcher", "sweeper", "sweep", "run", "mode", "verbose", "output_subdir", "job.name",
)  # fmt: skip
IN_FILES = (*IN_WORDS, "callbacks", "help", "job.chdir")
IN_DEFAULTS = ("launcher", "sweeper", "job_logging", "hydra_logging")
COMMANDS = ("setup", "python")  # of a cluster's launcher: shell, typed but not read from a file
NO_NAME = re.compile(r"|null|true|false|[{[].*|[-+]?(nan|inf|[\d._]+(e[-+]?\d+)?)", re.I | re.S)
LONGEST_NAME = 200  # characters of a setting or a choice
BUILT = re.compile(r"(?<!\w)_target_(?!\w)")  # as a key of its own
BUILDERS = re.compile(r"oc\.(create|decode)\b")  # resolvers that make settings out of a text
ENVIRONMENT = re.compile(r"oc\.env:\s*['\"]?(\w+)")


def refuse_foreign_code(words: list[str], folders: list[Path]) -> None:
    """Refuse a command line or settings files that could run code of their own choice.

    Args:
        words: The command line's overrides.
        folders: Every folder in which Hydra looks for YAML files.

    Raises:
        ValueError: With one line that names the word or the file, and what is allowed.
    """
    for word in words:
        _check_word(word)
        group, equals, choice = word.lstrip("+~").partition("=")
        if not any((folder / group.split("@")[0]).is_dir() for folder in folders):
            continue
        if ".." in choice or len(choice) > LONGEST_NAME:
            raise ValueError(f"{group}={choice[:LONGEST_NAME]} must name a file of {group}/")
        if equals and NO_NAME.fullmatch(choice.strip()):
            raise ValueError(f"{word} must name a file of {group}/")
    for folder in folders:
        for path in sorted(folder.rglob("*.yaml")):
            _check_file(path, folder)


def _check_word(word: str) -> None:
    key = word.split("=")[0].lstrip("+~")
    where = f"{key}=..." if "=" in word else key
    refuse_secret(where, word)
    if len(key) > LONGEST_NAME:
        raise ValueError(f"{key[:LONGEST_NAME]}... is not a setting; see python run.py --help")
    if BUILT.search(word):
        raise ValueError(f"{where} must not name code to run (_target_)")
    _check_text(where, word)
    if "@hydra" in key or (re.match(r"hydra[./]", key) and not _starts(key[6:], IN_WORDS)):
        raise ValueError(
            f"{where} cannot be set: of Hydra itself only {', '.join(IN_WORDS)} can, since others "
            "could run code"
        )


def _starts(key: str, allowed: tuple[str, ...]) -> bool:
    """Whether a key of Hydra is allowed, as itself or below another."""
    return any(key == name or re.match(rf"{re.escape(name)}[./@]", key) for name in allowed)


def _leads(key: str, allowed: tuple[str, ...]) -> bool:
    """Whether an allowed key lies below this one."""
    return any(name.startswith(f"{key}.") for name in allowed)


def _check_text(where: str, text: str) -> None:
    if BUILDERS.search(text):
        raise ValueError(f"{where} must not use oc.create or oc.decode; write the value itself")
    for name in ENVIRONMENT.findall(text):
        if is_secret_name(name):
            raise ValueError(f"{where} must not read {name}: settings are saved with a run")


def _check_file(path: Path, folder: Path) -> None:
    stamp = path.stat()
    _check_content(path, folder, stamp.st_mtime_ns, stamp.st_size)


@cache
def _check_content(path: Path, folder: Path, mtime_ns: int, size: int) -> None:
    """Look through one file; the stamp makes a changed one another."""
    relative = path.relative_to(folder)
    if relative.parts[0] == "hydra" and not _starts("/".join(relative.parts[1:]), IN_WORDS):
        raise ValueError(f"{path} must not be there: it would change Hydra itself")
    content = settings_of(path)
    header = re.search(r"^#\s*@package\s+(\S+)", path.read_text("utf-8"), re.MULTILINE)
    if header and "hydra" in header.group(1):
        raise ValueError(f"{path} must not have the package {header.group(1)}")
    for keys, value in _walk(content, (), set()):
        _check_value(str(path), keys, value)


def settings_of(path: Path) -> Any:
    """What a YAML file holds: plain values, whatever its tags say.

    Raises:
        ValueError: If it is no YAML of plain values.
    """
    try:
        return yaml.load(path.read_text("utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} cannot be read as YAML: {reason}") from error


def _check_value(path: str, keys: tuple[str, ...], value: Any) -> None:
    name = ".".join(keys)
    if keys and keys[-1] == "_target_" and value not in TARGETS:
        raise ValueError(f"{path}: {name}={value!r} must be one of {', '.join(TARGETS)}")
    if "()" in keys:
        raise ValueError(f"{path}: {name} must not name code to run")
    below = ".".join(keys[1:])
    if keys[0] == "hydra" and below and not (_starts(below, IN_FILES) or _leads(below, IN_FILES)):
        raise ValueError(f"{path}: {name} must not be there: it would change Hydra itself")
    if {"hydra", "launcher"} <= {*keys, *Path(path).parts} and keys[-1] in COMMANDS and value:
        raise ValueError(f"{path}: {name} is a shell command; type it on the command line")
    if keys[0] == "defaults":
        group = re.search(r"(?:^|\s|/)hydra/([\w/]+)", keys[-1])
        if ".." in str(value):
            raise ValueError(f"{path}: defaults must not lead out of their folder: {value}")
        if "@hydra" in "".join(keys) or (group and not _starts(group.group(1), IN_DEFAULTS)):
            raise ValueError(f"{path}: {keys[-1]!r} must not be there: it would change Hydra")
    if isinstance(value, str):
        if BUILT.search(value) or "@hydra" in value:
            raise ValueError(f"{path}: {name} must not name code to run")
        _check_text(f"{path}: {name}", value)


def _walk(
    value: Any, keys: tuple[str, ...], seen: set[int]
) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every value with the keys that lead to it; a value that YAML repeats counts once."""
    if isinstance(value, dict | list):
        if id(value) in seen:
            return
        seen.add(id(value))
    if isinstance(value, dict):
        for key, inner in value.items():
            if isinstance(inner, dict | list) or inner is None:
                yield (*keys, str(key)), None
            yield from _walk(inner, (*keys, str(key)), seen)
    elif isinstance(value, list):
        for inner in value:
            yield from _walk(inner, keys, seen)
    elif keys:
        yield keys, value
