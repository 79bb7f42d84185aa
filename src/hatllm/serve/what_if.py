"""What a run would answer if its mask or its search were another: a wider beam, a temperature."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from typing import NamedTuple

from hatllm.masks.schedule import build_schedule
from hatllm.model.masked_lm import MaskedLM
from hatllm.recommend.answerer import LlmAnswerer
from hatllm.recommend.other_mask import mask_of
from hatllm.recommend.recommender import Recommendation, Recommender, Request
from hatllm.serve.refusal import Refusal


class WhatIf(NamedTuple):
    """One request, which may name a mask, and how it is to be searched."""

    request: Request
    beam_width: int | None  # None = the run's
    temperature: float | None  # None = the run's


def check_what_if(recommender: Recommender, asked: WhatIf) -> None:
    """Refuse a mask or a search that the run does not have.

    Raises:
        Refusal: 422, by the name of the field.
    """
    field = "temperature" if asked.beam_width is None else "beam_width"
    if asked.request.mask is not None:
        check_mask(recommender, asked.request.mask)
        field = "mask"
    if not isinstance(recommender.answerer, LlmAnswerer):
        message = f"model={recommender.config.model.name} has no {field}"
        raise Refusal(422, "no_what_if", message, field)
    decode = recommender.config.decode
    if asked.beam_width is not None and not decode.is_beam:
        message = f"decode={decode.name} has no beam_width"
        raise Refusal(422, "no_what_if", message, "beam_width")


def check_mask(recommender: Recommender, mask: str) -> None:
    """Refuse a mask that there is not, or that the run's model does not take.

    Raises:
        Refusal: 422.
    """
    if not isinstance(recommender.answerer, LlmAnswerer):
        message = f"model={recommender.config.model.name} has no mask"
        raise Refusal(422, "no_what_if", message, "mask")
    try:
        build_schedule(mask_of(mask, recommender.config.mask), recommender.answerer.lm.num_layers)
    except ValueError as error:
        raise Refusal(422, "no_what_if", str(error), "mask") from error


def recommend_if(recommender: Recommender, asked: Sequence[WhatIf]) -> list[list[Recommendation]]:
    """The best titles of each request under its own search.

    Args:
        recommender: A loaded LLM run; it answers as before afterwards.
        asked: What `check_what_if` lets through.
    """
    found = []
    for one in asked:
        answerer = recommender.answerer_under(one.request.mask)
        assert isinstance(answerer, LlmAnswerer)
        other = copy(recommender)
        other.answerer = _with_beam(answerer, one.beam_width)
        with _at_temperature(answerer.lm, one.temperature):
            found += other.recommend_many([replace(one.request, mask=None)])
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
