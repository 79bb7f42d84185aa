"""Scores on top of the titles' shares: against a model and a trie of dicts written out by hand."""

import math

import numpy as np
import pytest
import torch
from reference import Reference, byte_ids, prompt_pieces, title_ids
from toys import HISTORIES, PROMPT, TARGETS, TITLES, Compose, toy_catalogue, toy_frame, toy_lm

from hatllm.data.prompt import Batch, build_batch
from hatllm.decode.catalogue import Catalogue
from hatllm.decode.predict import predict
from hatllm.masks.schedule import build_schedule
from hatllm.model.backbone import tiny_llama
from hatllm.training.lightning_module import Recommender

Words = list[str]
CLOSE = 2e-4  # nats summed over a title of ten tokens, float32 against float64
NAMES = sorted(set(TITLES.values()))
# Far from alike, so that the titles' order goes by them too.
SHARES = {name: (1 + 7 * place % 5) for place, name in enumerate(NAMES)}
SHARES = {name: share / sum(SHARES.values()) for name, share in SHARES.items()}
IDS = {name: title_ids(PROMPT, name) for name in NAMES}


def catalogue_with_prior() -> Catalogue:
    shares = [SHARES[TITLES[item]] for item in sorted(TITLES)]
    return toy_catalogue().with_prior(torch.tensor(shares, dtype=torch.float64).log())


def log_prob_by_hand(logits: torch.Tensor, ids: list[int], tau: float) -> float:
    """log softmax(logit / tau + log share below the child), of a title's tokens with logits."""
    total = 0.0
    for place, row in enumerate(logits.double()[: len(ids)]):
        below: dict[int, float] = {}
        for name, other in IDS.items():
            if other[:place] == ids[:place]:
                below[other[place]] = below.get(other[place], 0.0) + SHARES[name]
        tokens = list(below)
        scores = row[tokens] / tau + torch.tensor([math.log(below[t]) for t in tokens]).double()
        total += float(scores.log_softmax(0)[tokens.index(ids[place])])
    return total


@pytest.mark.thin("search fast")
@torch.no_grad()
@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("search", ["beam", "exact"])
def test_a_search_under_every_mask_is_brute_force_with_the_prior(
    unlike_preset: Words, search: str, fast: bool, compose_config: Compose
) -> None:
    wide = [f"decode.beam_width={len(NAMES)}", f"decode.top_k={len(NAMES)}"]
    config = compose_config(*unlike_preset, f"decode={search}", "loss.tau=3", *wide, f"fast={fast}")
    lm = toy_lm(build_schedule(config.mask, 4))
    lm.trie_temperature, lm.vocab_temperature = config.temperatures
    table = predict(lm, catalogue_with_prior(), toy_frame(), config, "test")
    schedule = lm.schedule
    model = Reference(
        tiny_llama(), schedule.letters, schedule.intra_scope, False, schedule.target_is_item
    )
    for row, history, target in zip(table.to_dicts(), HISTORIES, TARGETS, strict=True):
        pieces = prompt_pieces(PROMPT, [TITLES[item] for item in history])
        brute = {
            name: log_prob_by_hand(model.logits(pieces, ids[:-1]), ids, 3.0)
            for name, ids in IDS.items()
        }
        best = sorted(brute, key=brute.__getitem__, reverse=True)
        assert [TITLES[item] for item in row["top_items"]] == best
        assert row["top_log_probs"] == pytest.approx([brute[n] for n in best], abs=CLOSE)
        assert row["target_trie_log_prob"] == pytest.approx(brute[TITLES[target]], abs=CLOSE)
        assert sum(map(math.exp, brute.values())) == pytest.approx(1)


@torch.no_grad()
def test_equal_logits_give_every_title_its_share(compose_config: Compose) -> None:
    wide = [f"decode.beam_width={len(NAMES)}", f"decode.top_k={len(NAMES)}"]
    lm = toy_lm(build_schedule(compose_config().mask, 4))
    lm.trie_temperature = 1e12
    table = predict(lm, catalogue_with_prior(), toy_frame(), compose_config(*wide), "test")
    for row in table.to_dicts():
        got = {
            TITLES[item]: p for item, p in zip(row["top_items"], row["top_log_probs"], strict=True)
        }
        assert got == pytest.approx({n: math.log(s) for n, s in SHARES.items()}, abs=1e-5)


def recommender_with_prior(compose_config: Compose, *words: str) -> Recommender:
    config = compose_config("loss.tau=3", "data.train_targets=every", *words)
    lm = toy_lm(build_schedule(config.mask, 4))
    return Recommender(lm, catalogue_with_prior(), config, 1, toy_frame())


def in_place_batch(recommender: Recommender) -> Batch:
    histories = [np.asarray(history) for history in HISTORIES]
    is_item = recommender.lm.schedule.target_is_item
    book = recommender.catalogue.book
    return build_batch(book, [0, 1, 2], histories, TARGETS, is_item, True, "equal")


@pytest.mark.thin()
@torch.no_grad()
def test_the_loss_of_every_item_is_that_of_a_model_written_out_by_hand(
    unlike_preset: Words, compose_config: Compose
) -> None:
    recommender = recommender_with_prior(compose_config, *unlike_preset)
    schedule, expected = recommender.lm.schedule, 0.0
    for history, target in zip(HISTORIES, TARGETS, strict=True):
        losses = []
        for place in range(1, len(history)):
            model = Reference(tiny_llama(), schedule.letters, schedule.intra_scope, False, True)
            pieces = prompt_pieces(PROMPT, [TITLES[item] for item in history[:place]])[:-1]
            text = byte_ids(PROMPT.history_item.replace("{title}", TITLES[history[place]]))
            ids = IDS[TITLES[history[place]]]
            # Behind the opening quote, and without the end token, which no history item has.
            logits = model.logits(pieces, text)[1 : len(ids)]
            losses.append(-3.0 * log_prob_by_hand(logits, ids, 3.0))
        model = Reference(
            tiny_llama(), schedule.letters, schedule.intra_scope, False, schedule.target_is_item
        )
        ids = IDS[TITLES[target]]
        pieces = prompt_pieces(PROMPT, [TITLES[item] for item in history])
        losses.append(-3.0 * log_prob_by_hand(model.logits(pieces, ids[:-1]), ids, 3.0))
        expected += float(np.mean(losses)) / len(HISTORIES)
    found = recommender.title_loss(in_place_batch(recommender))
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-5, atol=3 * CLOSE)


@pytest.mark.parametrize("loss", ["msl", "bear"])
def test_fast_and_plain_give_one_loss_and_one_gradient(loss: str, compose_config: Compose) -> None:
    losses, gradients = [], []
    for fast in (True, False):
        recommender = recommender_with_prior(compose_config, f"loss={loss}", f"fast={fast}")
        found = recommender.title_loss(in_place_batch(recommender))
        found.backward()
        losses.append(found)
        gradients.append([p.grad for p in recommender.lm.parameters() if p.grad is not None])
    torch.testing.assert_close(*losses, rtol=1e-5, atol=CLOSE)
    for one, other in zip(*gradients, strict=True):
        scale = float(other.abs().max())
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * scale)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["loss=msl", "loss.prior=titles"], "titles"),
        (["loss=bear", "loss.prior=popularity"], "popularity"),
        (["loss=lml", "loss.prior=popularity"], None),
        (["loss=msl_ats", "loss.prior=popularity"], None),
        (["loss=msl", "loss.prior=null"], None),
    ],
)
def test_only_losses_over_legal_tokens_at_a_fixed_temperature_have_one(
    words: Words, expected: str | None, compose_config: Compose
) -> None:
    assert compose_config(*words).prior == expected


def test_a_prior_that_there_is_not_is_refused(compose_config: Compose) -> None:
    with pytest.raises(ValueError, match=r"loss.prior='popular' must be one of titles, popularity"):
        compose_config("loss.prior=popular")
