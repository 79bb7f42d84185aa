"""The same histories without a server: our decoder in batches, and transformers alone."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from transformers import AutoModelForCausalLM

from experiments.speed.field import FieldSearch
from experiments.speed.workload import composed
from hatllm.config import Config
from hatllm.data.datamodule import Examples
from hatllm.data.prepare import cache_root
from hatllm.model.backbone import smollm2_folder, tiny_llama
from hatllm.recommend.answerer import LlmAnswerer
from hatllm.recommend.answers import asked_of, catalogue_of
from hatllm.runs.run_files import EXAMPLES_FILE
from hatllm.serve.loading import config_to_serve


class LoadedRun:
    """A finished LLM run in this process."""

    def __init__(self, folder: Path, words: Sequence[str]) -> None:
        """Load it with the settings that the server will have.

        Args:
            folder: The run's.
            words: Settings of run.py on top.
        """
        self.folder = folder
        words = ("task=serve", f"task.run_folder={folder}", *words)
        self.config = config_to_serve(folder, composed(*words), words)
        items = catalogue_of(self.config)
        self.title = dict(items.select("item_id", "title").iter_rows())
        self.answerer = LlmAnswerer(self.config, items, None)

    def histories(self, limit: int) -> list[list[int]]:
        """Of the first test users, as item ids."""
        return pl.read_parquet(self.folder / EXAMPLES_FILE)["history"].head(limit).to_list()

    def titles(self, history: list[int]) -> list[str]:
        """The newest items as a client would name them."""
        newest = history[-self.config.data.max_history_items :]
        return [self.title[item] for item in newest]

    def users_per_second(self, histories: Sequence[list[int]]) -> float:
        """Our decoder over all histories, as `task=evaluate` has them; loading not counted."""
        self.answerer(asked_of(self.config, histories[:1]))  # makes what all batches share
        start = time.perf_counter()
        self.answerer(asked_of(self.config, histories))
        return len(histories) / (time.perf_counter() - start)

    def generate_users_per_second(self, histories: Sequence[list[int]]) -> float:
        """Transformers' `generate` with a trie of dicts, causal, one history after the other."""
        config, book = self.config, self.answerer.parts.catalogue.book
        field = FieldSearch(untouched_model(config), book, config.decode.beam_width)
        newest = [np.asarray(h[-config.data.max_history_items :], np.int64) for h in histories]
        places = np.arange(len(newest))
        examples = Examples(places, newest, np.full(len(newest), book.item_id_I[0]))
        is_item = config.mask.target_is_item
        start = time.perf_counter()
        with torch.inference_mode():
            for place in places:
                field.answers(examples.batch(book, np.array([place]), is_item, False))
        return len(histories) / (time.perf_counter() - start)


def untouched_model(config: Config) -> Any:
    """The run's backbone as transformers alone would load it.

    Raises:
        ValueError: If the run has another backbone than the two that need no account.
    """
    dtype = getattr(torch, config.model.dtype)
    match config.model.name:
        case "tiny":
            model: Any = tiny_llama().to(dtype)
        case "smollm2_135m":
            folder = smollm2_folder(cache_root(config))
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        case name:
            raise ValueError(f"the run's model={name} must be tiny or smollm2_135m")
    return model.eval()
