"""A finished run, loaded once, that answers one batch of histories after another."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import torch

from hatllm.config import Config
from hatllm.data.datamodule import Examples
from hatllm.data.prompt import IntArray
from hatllm.decode.scorer import Scorers, build_scorers
from hatllm.decode.search import Search
from hatllm.decode.titles_alike import ranked_titles
from hatllm.memory import naming_what_to_lower
from hatllm.recommend.answers import Answer, Answerer
from hatllm.recommend.fused_answerer import FusedAnswerer
from hatllm.recommend.id_answerer import IdAnswerer
from hatllm.runs.folder import finished_config, load_config
from hatllm.training.assemble import assemble_from_folder, load_tuned


class LlmAnswerer:
    """Finds the best titles with a tuned LLM."""

    def __init__(self, config: Config, items: pl.DataFrame, num_histories: int | None) -> None:
        """Load the model; all that it answers with is in the run's folder.

        Args:
            config: A finished run's settings with the command line's on top.
            items: Its catalogue, as `catalogue_of` gives it.
            num_histories: How many this process will be asked for; decides whether states of the
                catalogue pay (`decode.state_cache=null`). None = other processes would make the
                same states beside this one: only states that lie ready are used.

        Raises:
            ValueError: If its weights are missing, or a setting does not fit.
        """
        assert config.task.run_folder is not None
        self.config, self.num_histories = config, num_histories
        self.parts = assemble_from_folder(config, Path(config.task.run_folder), items)
        self.lm = load_tuned(self.parts, config)
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


def answerer_of(config: Config, items: pl.DataFrame, num_histories: int | None) -> Answerer:
    """What answers for a finished run, an LLM's or a baseline's.

    Args:
        config: The run's settings with the command line's on top.
        items: Its catalogue, as `catalogue_of` gives it.
        num_histories: As `LlmAnswerer`.

    Raises:
        ValueError: If something that the run has learned is missing or does not fit.
    """
    if config.model.kind == "llm":
        return LlmAnswerer(config, items, num_histories)
    if config.model.kind == "fusion":
        return FusedAnswerer(config, partial(_fused_part, config, items, num_histories))
    return IdAnswerer(config, items)


def _fused_part(
    config: Config, items: pl.DataFrame, num_histories: int | None, field: str
) -> Answerer:
    """What answers for one of the runs that a fused run is made of."""
    folder = str(getattr(config.model, field))
    load_config(Path(folder), f"model.{field}")  # refuses by name what is no finished run
    saved = finished_config(Path(folder))
    assert saved is not None
    task = replace(config.task, run_folder=folder)
    return answerer_of(replace(saved, task=task), items, num_histories)
