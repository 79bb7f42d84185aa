"""The configured search of a run, with what it needs besides prompts, model and trie."""

from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor

from hatllm.data.prompt import IntArray
from hatllm.decode.beam import Answers, asking_the_model, beam_search
from hatllm.decode.candidates import Candidates
from hatllm.decode.catalogue import Catalogue
from hatllm.decode.d3 import asking_both
from hatllm.decode.exact import Certificate, exact_search
from hatllm.decode.grounding import (
    embed_texts,
    embed_titles,
    nearest_titles,
    with_room,
    write_texts,
)
from hatllm.decode.information_gain import asking_for_gain, gain_factors
from hatllm.decode.scorer import Scorer, Scorers
from hatllm.decode.trie import ItemTrie

if TYPE_CHECKING:
    from hatllm.config import DecodeConfig


def search(
    scorer: Scorer, config: "DecodeConfig", candidates: Candidates | None = None
) -> tuple[Answers, Certificate | None]:
    """What the model alone finds along the trie; the certificate comes with `decode=exact`."""
    if config.name == "exact":
        return exact_search(scorer, config, candidates)
    return beam_search(scorer, config, candidates=candidates), None


class Search:
    """Finds the titles of one batch of users after another."""

    def __init__(self, scorers: Scorers, catalogue: Catalogue, config: "DecodeConfig") -> None:
        """Make once what all batches share: under `decode=grounding` the titles' embeddings.

        Args:
            scorers: Makes the scorers of the batches; under `decode=grounding` their trie gets room
                for what is written.
            catalogue: Tokenised titles; under `decode=d3` with its assistant.
            config: The search.

        Raises:
            ValueError: If `decode.information_gain` is asked for where train is not at hand.
        """
        self.config, self.assistant = config, catalogue.assistant
        self.factor_N = None
        if config.information_gain is not None:
            self.factor_N = _factors(catalogue, scorers.trie, config.information_gain)
        if config.name == "grounding":
            end_id = int(catalogue.book.target[0][-1])
            title_FD = embed_titles(scorers.lm, scorers.trie, end_id)
            num_titles = scorers.trie.num_nodes
            scorers.trie = with_room(scorers.trie, config)
            self.grounded = partial(_grounded, config, title_FD, num_titles, end_id)

    def __call__(
        self,
        scorer: Scorer,
        histories: list[IntArray],
        candidates: Candidates | None = None,
        config: "DecodeConfig | None" = None,
    ) -> tuple[Answers, Certificate | None]:
        """The best titles of each user; the certificate comes with `decode=exact`.

        Args:
            scorer: Prompts, model and trie.
            histories: Item ids of each user, oldest first.
            candidates: Which titles may answer; None = all.
            config: The search with another width or top_k; None = as it was made.
        """
        config = config or self.config
        match config.name:
            case "grounding":
                return self.grounded(scorer, candidates, config.top_k), None
            case "d3":
                assert self.assistant is not None and config.llm_weight is not None
                log_prob_BI = self.assistant(histories).to(scorer.trie.token_N.device)
                ask = asking_the_model(scorer, config.normalize)
                ask = asking_both(ask, scorer.trie, log_prob_BI, config.llm_weight)
                return beam_search(scorer, config, ask, candidates), None
            case _ if self.factor_N is not None:
                ask = asking_for_gain(asking_the_model(scorer, config.normalize), self.factor_N)
                return beam_search(scorer, config, ask, candidates), None
            case _:
                return search(scorer, config, candidates)


def _factors(catalogue: Catalogue, trie: ItemTrie, alpha: float) -> Tensor:
    count_I = catalogue.train_count_I
    if count_I is None:
        raise ValueError(
            f"decode.information_gain={alpha} needs the train rows, which task=train and "
            "task=evaluate read and no other task does; leave it null"
        )
    return gain_factors(trie, count_I.to(trie.token_N.device), alpha)


def _grounded(
    config: "DecodeConfig",
    title_FD: Tensor,
    num_titles: int,
    end_id: int,
    scorer: Scorer,
    candidates: Candidates | None,
    top_k: int,
) -> Answers:
    token_BL = write_texts(scorer, config, num_titles, end_id)
    text_BD = embed_texts(scorer.lm, token_BL, end_id)
    return nearest_titles(scorer.trie, text_BD, title_FD, top_k, candidates)
