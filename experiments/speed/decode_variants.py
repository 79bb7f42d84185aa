"""Ways to decode, over one workload: transformers' `generate`, our plain path, the fast paths."""

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from experiments.speed.equality import Answer
from experiments.speed.field import FieldSearch, left_padded
from experiments.speed.floor import wait_for
from experiments.speed.workload import Workload
from hatllm.config import Config
from hatllm.data.prompt import Batch
from hatllm.decode.beam import Answers
from hatllm.decode.fast.tree_scorer import TreeScorers
from hatllm.decode.predict import search
from hatllm.decode.scorer import Scorers, build_scorers

FAST = {
    "causal/vocab": ("mask=causal", "decode.normalize=vocab"),
    "causal/trie": ("mask=causal", "decode.normalize=trie"),
    "hatllm/trie": ("mask=hatllm", "decode.normalize=trie"),
    "hatllm_segments/trie": ("mask=hatllm_segments", "decode.state_cache=false"),
    "hatllm_segments/trie+states": ("mask=hatllm_segments", "decode.state_cache=true"),
}
PLAIN = ("plain hatllm_segments/trie",)  # timed; the others only check equality
FIELD = "generate"
VARIANTS = (FIELD, *PLAIN, *FAST)


class Bench:
    """All variants over one workload."""

    def __init__(self, arguments: argparse.Namespace, dtype: str) -> None:
        self.workload = Workload(arguments, dtype, "scale=published", "model.tuning=none")
        self.device, self.dtype = arguments.device, dtype
        self.size = arguments.rows_per_batch
        self.folder = tempfile.TemporaryDirectory()  # states of the catalogue, made anew
        self.scorers: dict[str, Scorers] = {}
        self.setup_s: dict[str, float] = {}
        self.made_field: FieldSearch | None = None

    def close(self) -> None:
        """Delete the states."""
        self.folder.cleanup()

    def batches(self, num_users: int) -> list[Batch]:
        """The first users of the test split, in batches."""
        return self.workload.batches_of_users(self.workload.rows("test", num_users), self.size)

    def config(self, name: str) -> Config:
        """The settings of one of our variants."""
        fast = not name.startswith("plain ")
        words = (*FAST[name.removeprefix("plain ")], f"fast={fast}")
        return self.workload.config(*words, f"cache_root={self.folder.name}")

    @property
    def field(self) -> FieldSearch:
        """The field's search."""
        if self.made_field is None:
            width = self.workload.config().decode.beam_width
            model = self.workload.untouched_model()
            self.made_field = FieldSearch(model, self.workload.book, width)
        return self.made_field

    @contextmanager
    def ready(self, name: str) -> Iterator[Scorers]:
        """Scorers of a variant, made at the first call; the model is under its mask meanwhile."""
        config = self.config(name)
        # The model is loaded before inference mode begins, or its weights could not be cast.
        with self.workload.under(config) as lm, torch.inference_mode():
            if name not in self.scorers:
                start = time.perf_counter()
                lengths = self._lengths()
                self.scorers[name] = build_scorers(
                    lm, self.workload.parts.catalogue, config, lengths
                )
                wait_for(self.device)
                self.setup_s[name] = time.perf_counter() - start
            yield self.scorers[name]

    def _lengths(self) -> Any:
        return self.workload.rows("test", 1).prompt_lengths(self.workload.book, False)

    def search(self, name: str, batch: Batch) -> Any:
        """What is timed."""
        if name == FIELD:
            field, prompts = self.field, left_padded(batch)
            with torch.inference_mode():
                return field.run(*prompts, with_scores=False)
        # With model.compile=true the plain path stays as it is.
        stance = "force_eager" if name.startswith("plain ") else "default"
        with self.ready(name) as scorers, torch.compiler.set_stance(stance):
            return search(scorers.of(batch), self.config(name).decode)[0]

    def answers(self, name: str, batch: Batch) -> list[Answer]:
        """Titles, by row of the book, and log-probabilities."""
        if name == FIELD:
            field = self.field
            with torch.inference_mode():
                return field.answers(batch)
        return self._as_titles(self.search(name, batch))

    def _as_titles(self, answers: Answers) -> list[Answer]:
        trie, book = self.workload.parts.catalogue.trie.to("cpu"), self.workload.book
        titles = []
        for leaves, log_probs in zip(
            answers.leaf_BW.tolist(), answers.log_prob_BW.tolist(), strict=True
        ):
            found = [(leaf, p) for leaf, p in zip(leaves, log_probs, strict=True) if leaf >= 0]
            items = [int(trie.items_of_leaf(leaf)[0]) for leaf, _ in found]
            rows = [int(book.rows_of(torch.tensor([item]).numpy())[0]) for item in items]
            titles.append([(row, p) for row, (_, p) in zip(rows, found, strict=True)])
        return titles

    def backbone(self, name: str) -> Any:
        """The transformers model that a variant runs."""
        return self.field.model if name == FIELD else self.workload.lm.backbone[0]

    def layers_run(self, name: str) -> int:
        """Layers that prompts and titles go through."""
        scorers = self.scorers.get(name)
        states = scorers.states if isinstance(scorers, TreeScorers) else None
        return self.workload.lm.num_layers - (states.num_layers if states else 0)
