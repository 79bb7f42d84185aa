"""What the benchmarks run: a real catalogue, its users, and one model under any mask."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from transformers import AutoModelForCausalLM

from hatllm.compose import checked, register_schema
from hatllm.config import Config
from hatllm.data.datamodule import Examples
from hatllm.data.prepare import cache_root
from hatllm.data.prompt import Batch, IntArray
from hatllm.masks.schedule import build_schedule
from hatllm.model.backbone import smollm2_folder, tiny_llama
from hatllm.model.masked_lm import MaskedLM
from hatllm.training.assemble import Parts, assemble

CONF = Path(__file__).parents[2] / "conf"
MODELS = {"smollm2": "smollm2_135m", "tiny": "tiny"}
ALL_ROWS = ("data.train_rows=null", "data.valid_rows=null", "data.test_rows=null")


@cache
def composed(*words: str) -> Config:
    """The checked settings that `python run.py WORDS` would have."""
    register_schema()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return checked(compose("config", overrides=list(words)))


class Workload:
    """A catalogue, examples of it and a model, on one device in one precision."""

    def __init__(self, arguments: Any, dtype: str, *words: str) -> None:
        """Choose; nothing is loaded yet.

        Args:
            arguments: model, data, seed, device and set of the command line.
            dtype: Of the frozen weights.
            words: Settings that come before the command line's.
        """
        self.device, self.seed, self.dtype = arguments.device, arguments.seed, dtype
        self.words = [
            f"data={arguments.data}", f"model={MODELS[arguments.model]}", f"model.dtype={dtype}",
            *ALL_ROWS, *words, *arguments.set,
        ]  # fmt: skip
        self.is_tiny = arguments.model == "tiny"

    def config(self, *words: str) -> Config:
        """The settings with some more words."""
        return composed(*self.words, *words)

    @cached_property
    def parts(self) -> Parts:
        """Examples and catalogue."""
        return assemble(self.config())

    @cached_property
    def lm(self) -> MaskedLM:
        """The model, on its device; `under` gives it its mask."""
        return self.parts.load_model(self.config()).to(self.device).eval()

    @contextmanager
    def under(self, config: Config) -> Iterator[MaskedLM]:
        """The model under the mask of a config; one set of weights serves all masks."""
        before = self.lm.schedule
        self.lm.schedule = build_schedule(config.mask, self.lm.num_layers)
        try:
            yield self.lm
        finally:
            self.lm.schedule = before

    def untouched_model(self) -> Any:
        """The same weights as transformers alone would load them."""
        dtype = self.lm.output_embedding_VD.dtype
        if self.is_tiny:
            model: Any = tiny_llama().to(dtype)
        else:
            folder = smollm2_folder(cache_root(self.config()))
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        return model.to(self.device).eval()

    def rows(self, split: str, num_rows: int) -> Examples:
        """Rows of a split, drawn by the seed; fewer rows are the first of more rows.

        Raises:
            ValueError: If the split has not so many.
        """
        frame = self.parts.dataset.splits[split]
        if num_rows > frame.height:
            raise ValueError(f"{num_rows} rows asked for, the {split} split has {frame.height}")
        order = np.random.default_rng(self.seed).permutation(frame.height)
        return self.examples(frame[order[:num_rows]])

    def examples(self, frame: pl.DataFrame) -> Examples:
        """Rows as arrays, each history cut as the settings say."""
        return Examples.of(frame, self.config().data.max_history_items)

    def batches_of_users(self, examples: Examples, size: int) -> list[Batch]:
        """Prompts without titles, the longest first, as `hatllm.decode.predict` cuts them."""
        order = np.argsort(examples.prompt_lengths(self.book, False), kind="stable")[::-1]
        return [self.batch(examples, order[i : i + size]) for i in range(0, len(order), size)]

    def batch(self, examples: Examples, rows: IntArray, with_target: bool = False) -> Batch:
        """The chosen rows as one batch on the device."""
        target_is_item = self.config().mask.target_is_item
        batch = examples.batch(self.book, rows, target_is_item, with_target)
        return batch.to(self.device)

    @property
    def book(self) -> Any:
        """The tokenised catalogue."""
        return self.parts.catalogue.book


def with_beam(config: Config, width: int) -> Config:
    """The settings with another beam width, and no more answers than it finds."""
    top_k = min(width, config.decode.top_k)
    return replace(config, decode=replace(config.decode, beam_width=width, top_k=top_k))


def mean_keys(batch: Batch, num_prefix: int, hung: int) -> float:
    """Keys that a token sees on average under causal attention.

    Args:
        batch: Prompts, with or without titles.
        num_prefix: Tokens that every prompt begins with; they are not run again.
        hung: Title tokens run for all users together, beside those in the batch.
    """
    length_B = batch.valid_BL.sum(1).double()
    own_B = length_B - num_prefix
    pairs = float((own_B * (num_prefix + (own_B + 1) / 2)).sum() + hung * length_B.mean())
    return pairs / max(1.0, float(own_B.sum()) + hung)
