"""The presets, a small catalogue and its prompts, for tests of several rooms."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import polars as pl

from hatllm.config import Config, PromptConfig
from hatllm.data.prompt import Batch, PromptBook, build_batch, build_prompt_book
from hatllm.decode.predict import Catalogue
from hatllm.masks.schedule import Schedule
from hatllm.model.backbone import byte_tokenizer, tiny_llama
from hatllm.model.masked_lm import MaskedLM

CONF = Path(__file__).parents[1] / "conf"
PRESETS = sorted(path.stem for path in (CONF / "mask").glob("[!_]*.yaml"))
Compose: TypeAlias = Callable[..., Config]  # command-line words to a checked config

NAMES = {"I": "intra", "F": "full", "C": "cross"}

# "Toy" begins "Toy Story", "Alien" begins "Aliens", and the title "Heat" belongs to two items.
TITLES = {
    3: "Toy Story",
    10: "Toy",
    11: "Heat",
    20: "Heat",
    25: "Alien",
    31: "Aliens",
    44: "Up",
    52: "Antz",
    70: "It",
}
HISTORIES = [[3, 25, 3], [44], [10, 11, 52, 31, 70]]  # different lengths; one with a repeated item
TARGETS = [20, 3, 44]

PROMPT = PromptConfig(
    prefix="Seen:\n", history_item='"{title}"\n', response='Next: "', target='{title}"'
)


def toy_book(titles: Mapping[int, str] = TITLES, prompt: PromptConfig = PROMPT) -> PromptBook:
    return build_prompt_book(byte_tokenizer(), prompt, list(titles), list(titles.values()))


def toy_catalogue(titles: Mapping[int, str] = TITLES, prompt: PromptConfig = PROMPT) -> Catalogue:
    return Catalogue.of(toy_book(titles, prompt))


def toy_batch(
    book: PromptBook,
    target_is_item: bool,
    with_target: bool,
    histories: Sequence[Sequence[int]] = HISTORIES,
    targets: Sequence[int] = TARGETS,
) -> Batch:
    return build_batch(
        book,
        list(range(len(histories))),
        [np.asarray(history, np.int64) for history in histories],
        targets,
        target_is_item,
        with_target,
    )


def toy_frame(
    histories: Sequence[Sequence[int]] = HISTORIES, targets: Sequence[int] = TARGETS
) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "example_id": [100 + i for i in range(len(histories))],
            "user_id": [7 * i for i in range(len(histories))],
            "history": [list(history) for history in histories],
            "target": list(targets),
        }
    )


def schedule_of(
    letters: str, scope: str = "items", sees_self: bool = False, target_is_item: bool = True
) -> Schedule:
    return Schedule(tuple(NAMES[x] for x in letters), scope, sees_self, target_is_item)


def toy_lm(schedule: Schedule, backend: str = "sdpa") -> MaskedLM:
    return MaskedLM(tiny_llama(len(schedule.patterns)), schedule, backend).eval()
