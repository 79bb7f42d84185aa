"""Secrets of the environment: kept out of everything that is printed, saved or sent.

A secret is the value of an environment variable whose name says so (``HF_TOKEN``,
``WANDB_API_KEY``, ``AWS_*``), or the user part of an address (``https://user:password@host``).
"""

import os
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

SECRET_NAME = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)(_ID)?$|^AWS_")
NOT_SECRET = ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE", "AWS_DEFAULT_OUTPUT")
SHORTEST = 8  # characters; shorter values are words that stand anywhere
HIDDEN = "***"
USER_IN_URL = re.compile(r"(?<=://)[^/\s@'\"]+(?=@)")


def is_secret_name(name: str) -> bool:
    """Whether an environment variable of this name holds a secret."""
    upper = name.upper()
    return bool(SECRET_NAME.search(upper)) and upper not in NOT_SECRET


def secrets() -> dict[str, str]:
    """The environment's secrets by name, longest first."""
    found = {
        name: value
        for name, value in os.environ.items()
        if is_secret_name(name) and len(value) >= SHORTEST
    }
    return dict(sorted(found.items(), key=lambda pair: -len(pair[1])))


def redacted(text: str) -> str:
    """The text with every secret, and the user of every address, replaced by ``***``."""
    for value in secrets().values():
        text = text.replace(value, HIDDEN)
    return USER_IN_URL.sub(HIDDEN, text)


def refuse_secret(where: str, text: str) -> None:
    """Refuse a text that holds a secret; the message names the secret, not its value.

    Args:
        where: What the text is, for the message.
        text: To be saved with the run.

    Raises:
        ValueError: If it holds one.
    """
    _refuse(where, text, secrets())


def _refuse(where: str, text: str, known: dict[str, str]) -> None:
    for name, value in known.items():
        if value in text:
            raise ValueError(
                f"{where} holds the value of the environment variable {name}: settings are saved "
                "with a run and must not hold secrets; libraries read them from the environment"
            )
    if USER_IN_URL.search(text):
        raise ValueError(
            f"{where} holds an address with a user or password before @: settings are saved with "
            "a run; leave it out and use ~/.netrc"
        )


def refuse_secrets_in(config: Any, before: str = "") -> None:
    """Refuse settings that hold a secret.

    Args:
        config: A dataclass of settings.
        before: Its own name with a dot, for messages.

    Raises:
        ValueError: If one does; names the setting.
    """
    known = secrets()  # once: there are hundreds of texts
    for name, text in _texts(config, before):
        _refuse(name, text, known)


def _texts(value: Any, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield name, value
    elif is_dataclass(value):
        for field in fields(value):
            yield from _texts(getattr(value, field.name), f"{name}.{field.name}".lstrip("."))
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _texts(str(key), name)
            yield from _texts(inner, f"{name}.{key}")
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner, name)
