"""A finished run's model, loaded once, that answers one batch of histories after another."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import torch

from hatllm.config import Config
from hatllm.data.datamodule import Examples
from hatllm.data.prompt import IntArray
from hatllm.decode.by_title import ranked_titles
from hatllm.decode.scorer import Scorers, build_scorers
from hatllm.decode.search import Search
from hatllm.model.out_of_memory import naming_what_to_lower
from hatllm.tasks.assemble import assemble_to_answer
from hatllm.tasks.evaluate import load_tuned
from hatllm.tasks.run_folder import load_items


class Answer(NamedTuple):
    """One recommended title."""

    item_id: int  # of items that share the title the first
    score: float  # log_prob / length ** decode.length_penalty, of the title's tokens
    log_prob: float  # nats; titles that became the same tokens share their probability


class Answerer:
    """Finds the best titles for histories of item ids."""

    def __init__(self, config: Config, num_histories: int | None) -> None:
        """Load model and catalogue, all of it from the run's folder.

        Args:
            config: A finished run's settings with the command line's on top.
            num_histories: How many this process will be asked for; decides whether states of the
                catalogue pay (`decode.state_cache=null`). None = other processes would make the
                same states beside this one: only states that lie ready are used.

        Raises:
            ValueError: If the run is not an LLM's, or a file of its folder is missing.
        """
        if config.model.kind != "llm":
            raise ValueError(
                f"task=recommend needs an LLM run, this one is model={config.model.name}"
            )
        self.config, self.num_histories = config, num_histories
        assert config.task.run_folder is not None
        folder = Path(config.task.run_folder)
        self.parts = assemble_to_answer(config, folder)
        self.lm = load_tuned(config, self.parts, folder)
        self._tools: tuple[Scorers, Search] | None = None

    @torch.inference_mode()
    def __call__(self, histories: list[list[int]]) -> list[list[Answer]]:
        """The best titles of each history, best first; the longest prompts go first.

        Args:
            histories: Item ids, oldest first, at least one each.
        """
        if not histories:
            return []
        book, config = self.parts.catalogue.book, self.config
        newest = [np.asarray(h[-config.data.max_history_items :], np.int64) for h in histories]
        # Decoding asks for a target only to lay it after the prompt; here nothing follows it.
        anything = np.full(len(newest), book.item_id_I[0])
        examples = Examples(np.arange(len(newest)), newest, anything)
        lengths = examples.prompt_lengths(book, False)
        scorers, find = self._tools or self._make_tools(lengths)
        found: list[list[Answer]] = [[] for _ in histories]
        order = np.argsort(lengths, kind="stable")[::-1]
        for start in range(0, len(order), config.decode.users_per_batch):
            chosen = order[start : start + config.decode.users_per_batch]
            batch = examples.batch(book, chosen, config.mask.target_is_item, False)
            batch = batch.to(self.lm.output_embedding_VD.device)
            with naming_what_to_lower(config, decoding=True):
                answers, _ = find(scorers.of(batch), [newest[row] for row in chosen])
            for user, row in enumerate(chosen.tolist()):
                titles = ranked_titles(self.parts.catalogue, answers, user, config.decode.top_k)
                found[row] = [Answer(t.item_ids[0], t.score, t.log_prob) for t in titles]
        return found

    def _make_tools(self, lengths: IntArray) -> tuple[Scorers, Search]:
        """Scorers and search; what is to come is taken to be as long as the first histories."""
        to_come = np.resize(lengths, self.num_histories or 0)
        catalogue = self.parts.catalogue
        scorers = build_scorers(self.lm, catalogue, self.config, to_come)
        self._tools = scorers, Search(scorers, catalogue, self.config.decode)
        return self._tools


def catalogue_of(config: Config) -> pl.DataFrame:
    """The finished run's items: item_id, title, source_id."""
    assert config.task.run_folder is not None
    return load_items(Path(config.task.run_folder))
