"""Every item a target: the loss by hand, fast as plain, and nothing sees what it is asked for."""

import numpy as np
import pytest
import torch
from reference import Reference, byte_ids, dict_trie, prompt_pieces, title_ids, title_log_prob
from test_lightning_module import CLOSE, recommender_of
from toys import HISTORIES, PROMPT, TARGETS, TITLES, Compose, toy_batch, toy_frame

from hatllm.data.datamodule import Examples, TrainingBatches
from hatllm.data.prompt import Batch, build_batch
from hatllm.data.targets import target_weights
from hatllm.model.backbone import tiny_llama
from hatllm.training.lightning_module import Recommender

Words = list[str]
TRIE = dict_trie([title_ids(PROMPT, title) for title in TITLES.values()])
EVERY = ["data.train_targets=every", "data.target_weights=rising"]


def in_place_batch(recommender: Recommender, how: str = "rising") -> Batch:
    histories = [np.asarray(history) for history in HISTORIES]
    is_item = recommender.lm.schedule.target_is_item
    book = recommender.catalogue.book
    return build_batch(book, [0, 1, 2], histories, TARGETS, is_item, True, how)


def training_batch(recommender: Recommender) -> Batch:
    examples = Examples.of(toy_frame(), 10)
    batches = TrainingBatches(examples, recommender.catalogue.book, recommender.config)
    return batches.batch(np.arange(3))


def losses_by_hand(recommender: Recommender, history: list[int], target: int) -> list[float]:
    """The loss of each title of a row in place, from a model written out by hand."""
    schedule = recommender.lm.schedule
    loss = recommender.config.loss
    trie = None if loss.name == "lml" else TRIE
    shown = []
    for place in range(1, len(history)):
        # Item k is written after the items before it, as a segment of its own.
        reference = Reference(
            tiny_llama(), schedule.letters, schedule.intra_scope, False, target_is_item=True
        )
        pieces = prompt_pieces(PROMPT, [TITLES[item] for item in history[:place]])[:-1]
        text = PROMPT.history_item.replace("{title}", TITLES[history[place]])
        logits = reference.logits(pieces, byte_ids(text))
        title = byte_ids(TITLES[history[place]] + '"')
        shown.append(-title_log_prob(logits[1:], title, trie, loss.tau))
    reference = Reference(
        tiny_llama(), schedule.letters, schedule.intra_scope, False, schedule.target_is_item
    )
    title = title_ids(PROMPT, TITLES[target])
    logits = reference.logits(prompt_pieces(PROMPT, [TITLES[i] for i in history]), title[:-1])
    return [*map(float, shown), float(-title_log_prob(logits, title, trie, loss.tau))]


@pytest.mark.thin()
@torch.no_grad()
@pytest.mark.parametrize("loss", ["loss=lml", "loss=msl"])
def test_the_loss_in_place_is_that_of_a_model_written_out_by_hand(
    unlike_preset: Words, loss: str, compose_config: Compose
) -> None:
    recommender = recommender_of(compose_config, *unlike_preset, loss, *EVERY)
    expected = 0.0
    for history, target in zip(HISTORIES, TARGETS, strict=True):
        losses = losses_by_hand(recommender, history, target)
        weights = target_weights(len(losses), "rising")
        expected += float(weights @ np.array(losses)) / 3
    found = recommender.title_loss(in_place_batch(recommender))
    torch.testing.assert_close(found, torch.tensor(expected), **CLOSE)


@pytest.mark.thin("loss form")
@pytest.mark.parametrize("form", ["in_place", "branches"])
@pytest.mark.parametrize("loss", ["loss=lml", "loss=msl", "loss=msl_ats", "loss=bear", "loss=igd"])
def test_fast_and_plain_give_one_loss_and_one_gradient(
    unlike_preset: Words,
    loss: str,
    form: str,
    compose_config: Compose,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Recommender, "log", lambda *_, **__: None)
    results = []
    for fast in ("true", "false"):
        words = [*unlike_preset, loss, *EVERY, f"data.target_form={form}", f"fast={fast}"]
        recommender = recommender_of(compose_config, *words)
        value = recommender.title_loss(training_batch(recommender))
        value.backward()
        gradients = [p.grad for p in recommender.lm.parameters() if p.grad is not None]
        results.append((value, gradients))
    (fast_loss, fast_gradients), (plain_loss, plain_gradients) = results
    torch.testing.assert_close(fast_loss, plain_loss, **CLOSE)
    for ours, theirs in zip(fast_gradients, plain_gradients, strict=True):
        scale = float(theirs.abs().max())
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4 * scale)


@torch.no_grad()
@pytest.mark.parametrize("loss", ["loss=lml", "loss=msl"])
def test_branches_cost_what_their_prompts_cost_at_test_time(
    loss: str, compose_config: Compose
) -> None:
    words = [loss, *EVERY, "data.target_form=branches"]
    recommender = recommender_of(compose_config, *words)
    book, expected = recommender.catalogue.book, 0.0
    for history, target in zip(HISTORIES, TARGETS, strict=True):
        items = [*history, target]
        weights = target_weights(len(history), "rising")
        for end, weight in enumerate(weights, start=1):
            alone = toy_batch(book, True, True, [items[:end]], [items[end]])
            expected += float(weight * recommender.title_loss(alone)) / 3
    found = recommender.title_loss(training_batch(recommender))
    torch.testing.assert_close(found, torch.tensor(expected), **CLOSE)


@torch.no_grad()
def test_no_title_sees_itself_or_anything_after_it(
    unlike_preset: Words, compose_config: Compose
) -> None:
    """Change every token from a supervised one on: the state that predicts it must not move."""
    recommender = recommender_of(compose_config, *unlike_preset)
    batch = in_place_batch(recommender)
    row_T, column_T = batch.target_row_T, batch.target_column_T
    before_TD = recommender.loss.hidden_at(batch, row_T, column_T)
    for place in range(0, len(row_T), 3):
        row, column = int(row_T[place]), int(column_T[place])
        changed = in_place_batch(recommender)
        changed.input_ids_BL[row, column + 1 :] = (
            65 + torch.arange(changed.input_ids_BL.shape[1] - column - 1) % 26
        )
        hidden_TD = recommender.loss.hidden_at(changed, row_T, column_T)
        torch.testing.assert_close(hidden_TD[place], before_TD[place], rtol=1e-5, atol=1e-5)
        after = place + 3
        if after < len(row_T) and int(row_T[after]) == row:
            assert not torch.allclose(hidden_TD[after], before_TD[after], atol=1e-4)
