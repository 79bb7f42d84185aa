"""What a run would answer if its search were another: a wider beam, another temperature."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from typing import NamedTuple

from hatllm.model.masked_lm import MaskedLM
from hatllm.recommend.answerer import LlmAnswerer
from hatllm.recommend.recommender import Recommendation, Recommender, Request
from hatllm.serve.refusal import Refusal


class WhatIf(NamedTuple):
    """One request and how it is to be searched."""

    request: Request
    beam_width: int | None  # None = the run's
    temperature: float | None  # None = the run's


def check_what_if(recommender: Recommender, asked: WhatIf) -> None:
    """Refuse a search that the run does not have.

    Raises:
        Refusal: 422, by the name of the field.
    """
    field = "temperature" if asked.beam_width is None else "beam_width"
    if not isinstance(recommender.answerer, LlmAnswerer):
        message = f"model={recommender.config.model.name} has no {field}"
        raise Refusal(422, "no_what_if", message, field)
    decode = recommender.config.decode
    if asked.beam_width is not None and not decode.is_beam:
        raise Refusal(422, "no_what_if", f"decode={decode.name} has no beam_width", field)


def recommend_if(recommender: Recommender, asked: Sequence[WhatIf]) -> list[list[Recommendation]]:
    """The best titles of each request under its own search.

    Args:
        recommender: A loaded LLM run; it answers as before afterwards.
        asked: What `check_what_if` lets through.
    """
    answerer = recommender.answerer
    assert isinstance(answerer, LlmAnswerer)
    found = []
    for one in asked:
        other = copy(recommender)
        other.answerer = _with_beam(answerer, one.beam_width)
        with _at_temperature(answerer.lm, one.temperature):
            found += other.recommend_many([one.request])
    return found


def _with_beam(answerer: LlmAnswerer, width: int | None) -> LlmAnswerer:
    """The same weights under a beam of another width; `k` titles need one of at least k."""
    if width is None:
        return answerer
    other = copy(answerer)
    decode = answerer.config.decode
    decode = replace(decode, beam_width=width, top_k=min(decode.top_k, width))
    other.config = replace(answerer.config, decode=decode)
    return other


@contextmanager
def _at_temperature(lm: MaskedLM, temperature: float | None) -> Iterator[None]:
    before = lm.trie_temperature, lm.vocab_temperature
    if temperature is not None:
        lm.trie_temperature = lm.vocab_temperature = temperature
    try:
        yield
    finally:
        lm.trie_temperature, lm.vocab_temperature = before
