"""Scores are taken at the temperature that was trained: against a model written out by hand."""

import pytest
import torch
from reference import Reference, dict_trie, prompt_pieces, title_ids
from toys import (
    HISTORIES,
    PROMPT,
    TARGETS,
    TITLES,
    Compose,
    schedule_of,
    toy_catalogue,
    toy_frame,
    toy_lm,
)

from hatllm.decode.predict import predict
from hatllm.model.backbone import tiny_llama

LETTERS = "IFFC"
CLOSE = 2e-4  # nats summed over a title of ten tokens, float32 against float64


def log_prob_by_hand(history: list[int], title: str, legal_only: bool, temperature: float) -> float:
    """log softmax(logit / temperature), summed over the title's tokens."""
    reference = Reference(tiny_llama(), LETTERS, "items", False, True)
    ids = title_ids(PROMPT, title)
    logits = reference.logits(prompt_pieces(PROMPT, [TITLES[i] for i in history]), ids[:-1])
    trie, total = dict_trie([title_ids(PROMPT, name) for name in TITLES.values()]), 0.0
    for row, token in zip(logits.double(), ids, strict=True):
        scaled = row / temperature
        kept = scaled[sorted(trie)] if legal_only else scaled
        total += float(scaled[token] - kept.logsumexp(0))
        trie = trie[token]
    return total


@torch.no_grad()
@pytest.mark.parametrize("search", ["beam", "exact"])
@pytest.mark.parametrize("normalize", ["trie", "vocab"])
def test_a_search_at_a_temperature_is_brute_force_at_it(
    search: str, normalize: str, compose_config: Compose
) -> None:
    config = compose_config(
        f"decode={search}", f"decode.normalize={normalize}", "decode.temperature=3.0",
        "decode.beam_width=8", "decode.top_k=8",
    )  # fmt: skip
    lm = toy_lm(schedule_of(LETTERS))
    lm.trie_temperature, lm.vocab_temperature = config.temperatures
    table = predict(lm, toy_catalogue(), toy_frame(), config, "test")
    for history, items, log_probs in zip(
        HISTORIES, table["top_items"], table["top_log_probs"], strict=True
    ):
        brute = {
            title: log_prob_by_hand(history, title, normalize == "trie", 3.0)
            for title in set(TITLES.values())
        }
        best = sorted(brute, key=brute.__getitem__, reverse=True)
        assert [TITLES[item] for item in items] == best
        assert list(log_probs) == pytest.approx([brute[title] for title in best], abs=CLOSE)


@torch.no_grad()
def test_a_target_is_scored_at_the_temperature_of_each_normalization(
    compose_config: Compose,
) -> None:
    config = compose_config("loss=msl", "loss.tau=4.5")
    lm = toy_lm(schedule_of(LETTERS))
    lm.trie_temperature, lm.vocab_temperature = config.temperatures
    table = predict(lm, toy_catalogue(), toy_frame(), config, "test")
    rows = list(zip(HISTORIES, TARGETS, strict=True))
    by_trie = [log_prob_by_hand(history, TITLES[t], True, 4.5) for history, t in rows]
    by_vocabulary = [log_prob_by_hand(history, TITLES[t], False, 1.0) for history, t in rows]
    assert table["target_trie_log_prob"].to_list() == pytest.approx(by_trie, abs=CLOSE)
    assert table["target_vocab_log_prob"].to_list() == pytest.approx(by_vocabulary, abs=CLOSE)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["loss=msl", "loss.tau=4.5"], (4.5, 1.0)),
        (["loss=lml", "loss.tau=4.5"], (1.0, 1.0)),
        (["loss=msl", "loss.tau=4.5", "decode.temperature=1"], (1.0, 1.0)),
        (["loss=lml", "decode.temperature=2.5"], (2.5, 2.5)),
    ],
)
def test_null_is_what_was_trained(
    words: list[str], expected: tuple[float, float], compose_config: Compose
) -> None:
    assert compose_config(*words).temperatures == expected


def test_a_temperature_of_zero_is_refused(compose_config: Compose) -> None:
    with pytest.raises(ValueError, match=r"decode.temperature=0.* must be above 0"):
        compose_config("decode.temperature=0.0")
