"""Command lines as they should not be: settings of the schema with values of every kind."""

import random
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

from experiments.robustness.bad_tables import encoded, tables
from experiments.robustness.inputs import CONF, SHOP, composed, one_step
from hatllm.config import Config
from hatllm.hardware import check_hardware
from hatllm.runs.name import config_hash, run_folder
from hatllm.trusted import refuse_foreign_code

VALUES = (
    "0", "1", "-1", "2", "3", "7", "0.5", "1.0", "-0.0", "1e-9", "1e300", "nan", "inf", "-inf",
    "null", "true", "false", "''", "abc", "[]", "{}", "[1]", "[a,b]", "{a:1}",
    "{a:{b:[1,{c:2}]}}", "[[[[1]]]]", "9223372036854775807", "9223372036854775808",
    "-9223372036854775809", "1000000000000000000000000000000", "0x10", "1_000", "'1'", "' '",
    "/", "../x", "a/b", "~nobody/x", "🎉", "'\\x00'", "${seed}", "${nope}", "${oc.env:NOPE}",
    "${oc.env:NOPE,1}", "${", "run:x", "IFFC", "IIFFFFCC", "IXC", "{title}", "'{title}'",
    "x{title}\\n", "intra", "cross", "full", "beam", "msl", "lml", "vocab", "trie", "segments",
    "float32", "bfloat16", "lora", "none", "q_proj", "[q_proj]", "[lm_head]", "['']", "ddp",
    "gpu", "sdpa", "eager", "flex",
)  # fmt: skip
WHOLE_WORDS = (
    "=", "=1", "a", "a=b=c", "++", "+a.b.c=1", "~mask", "~data.name", "mask@x=hatllm",
    "mask=[a,b]", "-x", "mask=hatllm,causal", "data.name=", "x" * 5000 + "=1",
    "data.prompt.prefix=" + "é" * 5000, "[1]=2", "seed=1=2", "seed==1", "data.prompt={}",
    "model.lora=null", "model=null", "loss=[]", "scale=../x", "experiment.cells={a:[b]}",
    "+experiment.cells.x=[seed=1]", "experiment.grid={}", "\x00=1",
    "mask.layers=" + "F" * 100_000, "model.sequence={}", "data.prompt.target='a{title}b'",
)  # fmt: skip
LARGEST_RUN = 10_000  # settings above it are checked, not run


@cache
def settings() -> list[str]:
    """Names of all settings and groups."""
    return sorted(_names(Config, ""))


def _names(schema: Any, before: str) -> Iterator[str]:
    for field in fields(schema):
        yield before + field.name
        if is_dataclass(field.type):
            yield from _names(field.type, f"{before}{field.name}.")


def choices(group: str) -> list[str]:
    """Files of a group in conf/."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml")) or ["none"]


def word(random_: random.Random) -> str:
    """One word of a command line."""
    roll = random_.random()
    if roll < 0.1:
        return random_.choice(WHOLE_WORDS)
    name = random_.choice(settings())
    if roll < 0.2:
        group = random_.choice(("mask", "loss", "decode", "model", "trainer", "scale", "logger"))
        return f"{group}={random_.choice([*choices(group), 'nope'])}"
    if roll < 0.3:
        letters = list(name)
        letters[random_.randrange(len(letters))] = random_.choice("abcxyz._/")
        name = "".join(letters)
    return f"{random_.choice(['', '', '', '', '+', '++'])}{name}={random_.choice(VALUES)}"


def settings_input(random_: random.Random, folder: Path) -> tuple[str, Callable[[], str]]:
    """A command line of one to three odd words over a small shop."""
    words = [word(random_) for _ in range(random_.choice((1, 1, 2, 3)))]
    made = tables(random.Random(0))

    def use() -> str:
        for stem, rows in (("plays", made.plays), ("songs", made.songs)):
            (folder / f"{stem}.csv").write_bytes(encoded(rows, "csv"))
        files = [
            f"data.interactions_file={folder}/plays.csv",
            f"data.items_file={folder}/songs.csv",
        ]
        refuse_foreign_code(words, [CONF])
        config = composed([*SHOP, *files, "decode.top_k=3", f"cache_root={folder}/cache",
                           f"output_root={folder}/out", "data_root=null", *words])  # fmt: skip
        run_folder(config), config_hash(config)
        return one_step(config) if runs_here(config, folder) else "accepted, not run"

    return " ".join(words)[:300], use


def runs_here(config: Config, folder: Path) -> bool:
    """Whether it is a run of seconds on this machine that writes below the folder only."""
    check_hardware(config)
    places = (config.cache_root, config.output_root)
    return (
        config.task.name == "train"
        and config.model.kind == "llm"
        and config.model.name == "tiny"
        and config.model.source == "tiny"
        and config.data.source == "custom"
        and not config.model.compile
        and config.trainer.devices * config.trainer.num_nodes == 1
        and all(str(place).startswith(str(folder)) for place in places)
        and max(_numbers(config)) <= LARGEST_RUN
    )


def _numbers(value: Any) -> Iterator[float]:
    if is_dataclass(value):
        for field in fields(value):
            yield from _numbers(getattr(value, field.name))
    elif isinstance(value, int | float):
        yield value
