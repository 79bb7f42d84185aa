import math

import polars as pl
import pytest
import pytorch_lightning as lightning
import torch
from frames import popularity_alone, predictions_frame
from reference import Reference, byte_ids, dict_trie, prompt_pieces, title_ids, title_log_prob
from torch import Tensor
from torch.utils.data import DataLoader
from toys import HISTORIES, PROMPT, TARGETS, TITLES, Compose, toy_batch, toy_catalogue, toy_frame

from hatllm.masks.schedule import build_schedule
from hatllm.metrics.from_predictions import evaluate_predictions
from hatllm.model.backbone import tiny_llama
from hatllm.model.masked_lm import MaskedLM
from hatllm.training.lightning_module import Recommender

Words = list[str]
# Float32 against float32 in another order, or float64: nats summed over a title of ten tokens.
CLOSE = {"rtol": 1e-5, "atol": 2e-4}
FOUR = ([*HISTORIES, [52, 44]], [*TARGETS, 31])
LOSSES = ["loss=lml", "loss=msl", "loss=msl loss.tau=4.5"]
TRIE = dict_trie([title_ids(PROMPT, title) for title in TITLES.values()])


def recommender_of(compose_config: Compose, *words: str) -> Recommender:
    config = compose_config(*words)
    lm = MaskedLM(tiny_llama(), build_schedule(config.mask, 4), config.model.backend).eval()
    return Recommender(lm, toy_catalogue(), config, 1, toy_frame())


def expected_loss(logits: list[Tensor], loss: str, targets: list[int]) -> Tensor:
    tau = 4.5 if "4.5" in loss else 1.0
    trie = None if "lml" in loss else TRIE
    losses = [
        -title_log_prob(row, title_ids(PROMPT, TITLES[target]), trie, tau)
        for row, target in zip(logits, targets, strict=True)
    ]
    return torch.stack(losses).mean()


def untouched_logits(histories: list[list[int]], targets: list[int]) -> tuple[list[Tensor], object]:
    """What transformers' own Llama says of each unpadded prompt, where the title stands."""
    model, rows = tiny_llama(), []
    for history, target in zip(histories, targets, strict=True):
        items = "".join(PROMPT.history_item.replace("{title}", TITLES[i]) for i in history)
        prompt = byte_ids(PROMPT.prefix + items + PROMPT.response)
        title = title_ids(PROMPT, TITLES[target])[:-1]
        rows.append(model(input_ids=torch.tensor([prompt + title])).logits[0, len(prompt) - 1 :])
    return rows, model


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
def test_the_causal_loss_and_its_gradients_are_those_of_the_untouched_model(
    loss: str, fast: bool, compose_config: Compose
) -> None:
    words = [*loss.split(), f"fast={fast}"]
    recommender = recommender_of(compose_config, "mask=causal", *words)
    batch = toy_batch(recommender.catalogue.book, True, with_target=True)
    got = recommender.title_loss(batch)
    got.backward()
    logits, model = untouched_logits(HISTORIES, TARGETS)
    expected = expected_loss(logits, loss, TARGETS)
    expected.backward()
    torch.testing.assert_close(got, expected, **CLOSE)
    gradients = {name: p.grad for name, p in model.named_parameters()}
    for name, parameter in recommender.lm.backbone[0].named_parameters():
        scale = float(gradients[name].abs().max())
        torch.testing.assert_close(
            parameter.grad, gradients[name], rtol=1e-3, atol=1e-4 * scale, msg=name
        )


@pytest.mark.thin("loss target_is_item")
@torch.no_grad()
@pytest.mark.parametrize("target_is_item", [False, True])
@pytest.mark.parametrize("loss", ["loss=lml", "loss=msl"])
def test_the_loss_under_every_mask_is_that_of_a_model_written_out_by_hand(
    preset: Words, loss: str, target_is_item: bool, compose_config: Compose
) -> None:
    words = [*preset, loss, f"mask.target_is_item={target_is_item}"]
    recommender = recommender_of(compose_config, *words)
    schedule = recommender.lm.schedule
    reference = Reference(
        tiny_llama(), schedule.letters, schedule.intra_scope, False, target_is_item
    )
    logits = [
        reference.logits(
            prompt_pieces(PROMPT, [TITLES[item] for item in history]),
            title_ids(PROMPT, TITLES[target])[:-1],
        )
        for history, target in zip(HISTORIES, TARGETS, strict=True)
    ]
    batch = toy_batch(recommender.catalogue.book, target_is_item, with_target=True)
    expected = expected_loss(logits, loss, TARGETS).float()
    torch.testing.assert_close(recommender.title_loss(batch), expected, **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("loss", LOSSES)
def test_a_micro_batch_is_the_mean_of_its_rows(loss: str, compose_config: Compose) -> None:
    recommender = recommender_of(compose_config, *loss.split())
    book = recommender.catalogue.book
    together = recommender.title_loss(toy_batch(book, True, True, *FOUR))
    alone = [
        recommender.title_loss(toy_batch(book, True, True, [history], [target]))
        for history, target in zip(*FOUR, strict=True)
    ]
    torch.testing.assert_close(together, torch.stack(alone).mean(), **CLOSE)


def test_a_catalogue_of_one_item_has_nothing_to_learn_under_msl(compose_config: Compose) -> None:
    recommender = recommender_of(compose_config, "loss=msl")
    recommender.catalogue = toy_catalogue({3: "Toy Story"})
    batch = toy_batch(recommender.catalogue.book, True, True, [[3]], [3])
    loss = recommender.title_loss(batch)
    loss.backward()
    assert loss == 0.0
    assert all(not p.grad.any() for p in recommender.parameters() if p.grad is not None)


@torch.no_grad()
@pytest.mark.parametrize("weight", [0.0, 0.1, 1.0])
def test_igd_counts_forced_tokens_as_much_as_it_is_told(
    weight: float, compose_config: Compose
) -> None:
    words = ["mask=causal", "loss=igd", f"loss.forced_weight={weight}"]
    recommender = recommender_of(compose_config, *words)
    batch = toy_batch(recommender.catalogue.book, True, True)
    expected = []
    for row, target in zip(untouched_logits(HISTORIES, TARGETS)[0], TARGETS, strict=True):
        title = title_ids(PROMPT, TITLES[target])
        others = [title_ids(PROMPT, other) for other in TITLES.values()]
        log_prob = row.log_softmax(-1)
        expected.append(
            -sum(
                log_prob[place, token] * (weight if len(legal) == 1 else 1.0)
                for place, token in enumerate(title)
                for legal in [{o[place] for o in others if o[:place] == title[:place]}]
            )
        )
    torch.testing.assert_close(recommender.title_loss(batch), torch.stack(expected).mean(), **CLOSE)


@torch.no_grad()
def test_bear_without_weight_is_msl(compose_config: Compose) -> None:
    plain = recommender_of(compose_config, "loss=msl", "loss.tau=2")
    batch = toy_batch(plain.catalogue.book, True, True)
    expected = plain.title_loss(batch)
    losses = [
        recommender_of(
            compose_config, "loss=bear", "loss.tau=2", f"loss.margin_weight={weight}"
        ).title_loss(batch)
        for weight in (0.0, 5.0)
    ]
    torch.testing.assert_close(losses[0], expected, **CLOSE)
    assert abs(losses[1] - expected) > 1e-3


def test_the_adaptive_temperature_reads_the_first_choice_of_every_title(
    compose_config: Compose,
) -> None:
    recommender = recommender_of(compose_config, "mask=causal", "loss=msl_ats", "loss.min_tau=0.01")
    batch = toy_batch(recommender.catalogue.book, True, True, *FOUR)
    with torch.no_grad():
        logits = [row[0] for row in untouched_logits(*FOUR)[0]]
        # All titles differ in their first letter or later, so the first choice is the first token.
        legal = [row[sorted(TRIE)].double() for row in logits]
        firsts = [title_ids(PROMPT, TITLES[target])[0] for target in FOUR[1]]
        positive = sum(float(row[t]) for row, t in zip(logits, firsts, strict=True)) / 4
        mean = sum(float(row.mean()) for row in legal) / 4
        variance = sum(float(row.var(correction=0)) for row in legal) / 4
        d, c = positive - mean, math.log(len(TRIE) * 0.25)
        expected = (d + math.sqrt(max(d * d - 2 * c * variance, 0.0))) / (2 * c)
        expected = min(max(expected, 0.01), 5.0)
    without_trainer = recommender_of(
        compose_config, "mask=causal", "loss=msl_ats", "loss.min_tau=0.01"
    )
    without_trainer.title_loss(batch)
    torch.testing.assert_close(float(without_trainer.tau), expected, rtol=1e-4, atol=0.0)
    trainer = lightning.Trainer(
        max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(recommender, DataLoader([batch], batch_size=None))
    torch.testing.assert_close(float(recommender.tau), expected, rtol=1e-4, atol=0.0)
    assert float(trainer.callback_metrics["train/tau"]) == float(recommender.tau)


def test_a_validation_logs_the_numbers_of_its_table_and_forgets_those_before(
    compose_config: Compose,
) -> None:
    recommender = recommender_of(compose_config, "mask=causal")
    trainer = lightning.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    items = pl.DataFrame({"item_id": [0, 1], "title": ["A", "B"]})
    for ranks in ([7, 4, None], [2, None, 9]):
        table = predictions_frame(ranks, [-1.5, -2.25, -3.1])
        # Another process's repetition of a row counts once, whatever the order.
        recommender.decode_valid = lambda _, t=table: pl.concat([t.reverse(), t.head(1)])
        trainer.validate(recommender, DataLoader([0], batch_size=None), verbose=False)
        expected = evaluate_predictions(table, items, popularity_alone(table, items), (10,))
        found = {name: float(value) for name, value in trainer.callback_metrics.items()}
        names = ("NDCG@10", "HR@10", "trie_NLL", "vocab_NLL")
        assert found == {f"val/{name}": expected[name] for name in names}


def test_a_checkpoint_holds_what_is_tuned_and_tau(compose_config: Compose) -> None:
    recommender = recommender_of(compose_config)
    for name, parameter in recommender.named_parameters():
        parameter.requires_grad_("q_proj" in name)
    checkpoint = {"state_dict": recommender.state_dict()}
    recommender.on_save_checkpoint(checkpoint)
    names = [name for name, p in recommender.named_parameters() if p.requires_grad]
    assert sorted(checkpoint["state_dict"]) == sorted([*names, "tau"])


@pytest.mark.parametrize(
    ("step", "factor"),
    [(0, 1 / 4), (3, 1.0), (4, 1.0), (7, 0.5), (9, 1 / 6), (10, 0.0), (11, 0.0)],
)
def test_the_learning_rate_warms_up_and_falls_to_zero(
    step: int, factor: float, compose_config: Compose
) -> None:
    recommender = recommender_of(compose_config, "trainer.warmup_steps=4")
    recommender.num_steps = 10
    scheduler = recommender.configure_optimizers()["lr_scheduler"]["scheduler"]
    assert scheduler.lr_lambdas[0](step) == pytest.approx(factor)
