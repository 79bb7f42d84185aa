"""A finished run, loaded once, that answers one batch of histories after another."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import torch
from torch import Tensor

from hatllm.config import Config, DecodeConfig
from hatllm.data.datamodule import Examples
from hatllm.data.prompt import IntArray
from hatllm.decode.candidates import Candidates, candidates_of
from hatllm.decode.catalogue import Catalogue
from hatllm.decode.d3 import node_log_mass
from hatllm.decode.predict import title_log_probs
from hatllm.decode.scorer import Scorer, Scorers, build_scorers
from hatllm.decode.search import Search
from hatllm.decode.titles_alike import ranked_titles
from hatllm.memory import naming_what_to_lower
from hatllm.recommend.answers import Answer, Answerer, Asked
from hatllm.recommend.id_answerer import IdAnswerer
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

    def replace_catalogue(self, catalogue: Catalogue) -> None:
        """Answer with other titles from now on; states of the old catalogue are let go."""
        self.parts.catalogue, self._tools = catalogue, None

    @torch.inference_mode()
    def __call__(self, asked: Sequence[Asked]) -> list[list[Answer]]:
        """As `Answerer`; the longest prompts go first.

        A beam is as wide as the run's, or as k where that is more, whatever else is in the batch.
        """
        if not asked:
            return []
        examples, lengths = self._examples([one.history for one in asked])
        find = self._made_tools(lengths)[1]
        found: list[list[Answer]] = [[] for _ in asked]
        rows_of_search: dict[tuple[int, int], list[int]] = defaultdict(list)
        for row in np.argsort(lengths, kind="stable")[::-1].tolist():
            decode = _search_for(self.config.decode, asked[row].k)
            rows_of_search[decode.beam_width, decode.top_k].append(row)
        for (width, top_k), rows in rows_of_search.items():
            decode = replace(self.config.decode, beam_width=width, top_k=top_k)
            for start in range(0, len(rows), decode.users_per_batch):
                chosen = rows[start : start + decode.users_per_batch]
                candidates = self._candidates([asked[row] for row in chosen])
                with naming_what_to_lower(self.config, decoding=True):
                    scorer = self._scorer(examples, chosen)
                    histories = [examples.histories[row] for row in chosen]
                    answers, _ = find(scorer, histories, candidates, decode)
                for user, row in enumerate(chosen):
                    titles = ranked_titles(
                        self.parts.catalogue, answers, user, asked[row].k, candidates
                    )
                    found[row] = [Answer(t.item_ids[0], t.score, t.log_prob) for t in titles]
        return found

    @torch.inference_mode()
    def score(self, history: Sequence[int], item_ids: Sequence[int]) -> list[Answer]:
        """As `Answerer.score`, by teacher forcing: what `decode=exact` would give.

        Raises:
            ValueError: Under `decode=grounding`, which ranks by distance to a text.
        """
        decode, catalogue = self.config.decode, self.parts.catalogue
        if decode.name == "grounding":
            raise ValueError(
                "decode=grounding ranks titles by their distance to a text and has no "
                "log-probability of a title; give decode=beam or decode=exact"
            )
        examples, lengths = self._examples([history])
        self._made_tools(lengths)
        scorer = self._scorer(examples, [0])
        leaf_M = scorer.trie.leaf_of_item(
            torch.tensor(list(item_ids), device=scorer.trie.token_N.device)
        )
        sums = title_log_probs(scorer, leaf_M, torch.zeros_like(leaf_M))
        log_prob_M = sums[decode.normalize == "vocab"]
        if decode.name == "d3":
            log_prob_M = self._mixed(scorer, examples, leaf_M, log_prob_M)
        score_M = log_prob_M / scorer.trie.depth_N[leaf_M] ** decode.length_penalty
        columns = (item_ids, leaf_M.tolist(), score_M.tolist(), log_prob_M.tolist())
        ordered = []
        for item, leaf, score, log_prob in zip(*columns, strict=True):
            titles = catalogue.titles_of(leaf)
            place = next(at for at, items in enumerate(titles) if item in items)
            answer = Answer(item, score, log_prob - math.log(len(titles)))
            ordered.append((-score, leaf, place, answer))
        return [answer for *_, answer in sorted(ordered)]

    def _mixed(
        self, scorer: Scorer, examples: Examples, leaf_M: Tensor, log_prob_M: Tensor
    ) -> Tensor:
        """What `decode=d3` ranks by: along a path the assistant's shares multiply."""
        assistant, weight = self.parts.catalogue.assistant, self.config.decode.llm_weight
        assert assistant is not None and weight is not None
        log_prob_BI = assistant(examples.histories).to(leaf_M.device)
        log_mass_N = node_log_mass(scorer.trie, log_prob_BI)[0]
        mass_M = (log_mass_N[leaf_M] - log_mass_N[0]).to(log_prob_M.dtype)
        return weight * log_prob_M + (1 - weight) * mass_M

    def _examples(self, histories: Sequence[Sequence[int]]) -> tuple[Examples, IntArray]:
        """The histories as the model reads them, and the lengths of their prompts."""
        book, longest = self.parts.catalogue.book, self.config.data.max_history_items
        newest = [np.asarray(h[-longest:], np.int64) for h in histories]
        # Decoding asks for a target only to lay it after the prompt; here nothing follows it.
        anything = np.full(len(newest), book.item_id_I[0])
        examples = Examples(np.arange(len(newest)), newest, anything)
        return examples, examples.prompt_lengths(book, False)

    def _scorer(self, examples: Examples, rows: list[int]) -> Scorer:
        assert self._tools is not None
        book, target_is_item = self.parts.catalogue.book, self.config.mask.target_is_item
        batch = examples.batch(book, np.array(rows), target_is_item, False)
        return self._tools[0].of(batch.to(self.lm.output_embedding_VD.device))

    def _candidates(self, asked: Sequence[Asked]) -> Candidates | None:
        """None = all titles may answer."""
        if not any(len(one.exclude) or one.only is not None for one in asked):
            return None
        exclude, only = [one.exclude for one in asked], [one.only for one in asked]
        device = self.lm.output_embedding_VD.device
        return candidates_of(self.parts.catalogue, exclude, only, device)

    def _made_tools(self, lengths: IntArray) -> tuple[Scorers, Search]:
        """Scorers and search; what is to come is taken to be as long as the first histories."""
        if self._tools is None:
            to_come = np.resize(lengths, self.num_histories or 0)
            catalogue = self.parts.catalogue
            scorers = build_scorers(self.lm, catalogue, self.config, to_come)
            self._tools = scorers, Search(scorers, catalogue, self.config.decode)
        return self._tools


def _search_for(decode: DecodeConfig, k: int) -> DecodeConfig:
    """The run's search, wide enough for k titles; alike for all k that need no wider one."""
    if not decode.is_beam:
        return replace(decode, top_k=max(decode.top_k, k))
    width = max(decode.beam_width, k)
    return replace(decode, beam_width=width, top_k=width)


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
    return IdAnswerer(config, items)
