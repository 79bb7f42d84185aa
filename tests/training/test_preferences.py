"""S-DPO against the paper's formula on whole unpadded prompts of transformers' own model."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from reference import Reference as WrittenOut
from reference import byte_ids, prompt_pieces, title_ids, title_log_prob
from toys import HISTORIES, PROMPT, TARGETS, TITLES, Compose, toy_catalogue, toy_frame

from hatllm.data.datamodule import Examples, TrainingBatches
from hatllm.data.prompt import Batch
from hatllm.masks.schedule import build_schedule
from hatllm.model.backbone import tiny_llama
from hatllm.model.masked_lm import MaskedLM
from hatllm.training.lightning_module import Recommender

Words = list[str]
CLOSE = {"rtol": 1e-5, "atol": 2e-4}  # as in test_lightning_module


def recommender_of(compose_config: Compose, *words: str) -> Recommender:
    config = compose_config("loss=sdpo", "loss.num_negatives=2", "loss.beta=0.3", *words)
    lm = MaskedLM(tiny_llama(), build_schedule(config.mask, 4), config.model.backend).eval()
    return Recommender(lm, toy_catalogue(), config, 1, toy_frame())


def batch_of(recommender: Recommender) -> Batch:
    examples = Examples.of(toy_frame(), 10)
    batches = TrainingBatches(examples, recommender.catalogue.book, recommender.config)
    return batches.batch(np.arange(len(examples)))


def nudge(model: torch.nn.Module) -> None:
    """Move the model away from its start, the same way every time."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.02 * torch.randn(parameter.shape, generator=generator)


def written_loss(
    log_probs: list[torch.Tensor], reference: list[float], beta: float
) -> torch.Tensor:
    """The paper's formula, a target and its two negatives at a time."""
    losses = []
    for start in range(0, len(log_probs), 3):
        ratio = [log_probs[start + j] - reference[start + j] for j in range(3)]
        total = sum(torch.exp(beta * (ratio[j] - ratio[0])) for j in (1, 2))
        losses.append(-torch.log(torch.sigmoid(-torch.log(total))))
    return torch.stack(losses).mean()


def test_a_target_comes_with_its_own_history_and_its_negatives_after_it(
    compose_config: Compose,
) -> None:
    batch = batch_of(recommender_of(compose_config))
    assert batch.example_id_B.tolist() == [i for i in toy_frame()["example_id"] for _ in range(3)]
    titles = [[TITLES[item] for item in row] for row in batch.target_item_B.view(-1, 3).tolist()]
    assert [row[0] for row in titles] == [TITLES[target] for target in TARGETS]
    assert all(len(set(row)) == 3 for row in titles)
    assert batch.prompt_length_B.view(-1, 3).diff(dim=1).abs().sum() == 0


@pytest.mark.parametrize("fast", [True, False])
def test_loss_and_gradients_are_the_papers(fast: bool, compose_config: Compose) -> None:
    recommender = recommender_of(compose_config, "mask=causal", f"fast={fast}")
    batch = batch_of(recommender)
    policy, start = tiny_llama(), tiny_llama()
    for model in (recommender.lm.backbone[0], policy):
        nudge(model)
    got = recommender.title_loss(batch)
    got.backward()

    def log_prob(model: torch.nn.Module, history: list[int], item: int) -> torch.Tensor:
        items = "".join(PROMPT.history_item.replace("{title}", TITLES[i]) for i in history)
        prompt, title = (
            byte_ids(PROMPT.prefix + items + PROMPT.response),
            title_ids(PROMPT, TITLES[item]),
        )
        ids = torch.tensor([prompt + title[:-1]])
        return title_log_prob(model(input_ids=ids).logits[0, len(prompt) - 1 :], title, None)

    rows = [(HISTORIES[i // 3], item) for i, item in enumerate(batch.target_item_B.tolist())]
    with torch.no_grad():
        reference = [float(log_prob(start, *row)) for row in rows]
    expected = written_loss([log_prob(policy, *row) for row in rows], reference, 0.3)
    expected.backward()
    torch.testing.assert_close(got, expected, **CLOSE)
    gradients = {name: p.grad for name, p in policy.named_parameters()}
    for name, parameter in recommender.lm.backbone[0].named_parameters():
        scale = float(gradients[name].abs().max())
        torch.testing.assert_close(
            parameter.grad, gradients[name], rtol=1e-3, atol=2e-4 * scale, msg=name
        )


@pytest.mark.thin()
@torch.no_grad()
@pytest.mark.parametrize("fast", [True, False])
def test_under_every_mask_the_loss_is_that_of_models_written_out_by_hand(
    unlike_preset: Words, fast: bool, compose_config: Compose
) -> None:
    recommender = recommender_of(compose_config, *unlike_preset, f"fast={fast}")
    schedule, batch = recommender.lm.schedule, batch_of(recommender)
    start = deepcopy(recommender.lm.backbone[0])
    nudge(recommender.lm.backbone[0])
    sums = []
    for model in (recommender.lm.backbone[0], start):
        written = WrittenOut(model, schedule.letters, schedule.intra_scope, False, True)
        sums.append([])
        for i, item in enumerate(batch.target_item_B.tolist()):
            pieces = prompt_pieces(PROMPT, [TITLES[seen] for seen in HISTORIES[i // 3]])
            ids = title_ids(PROMPT, TITLES[item])
            sums[-1].append(title_log_prob(written.logits(pieces, ids[:-1]), ids, None))
    expected = written_loss(sums[0], [float(s) for s in sums[1]], 0.3).float()
    torch.testing.assert_close(recommender.title_loss(batch), expected, **CLOSE)


@torch.no_grad()
def test_with_fresh_adapters_the_reference_is_the_model_with_adapters_off(
    compose_config: Compose,
) -> None:
    config = compose_config("loss=sdpo")
    lm = MaskedLM(tiny_llama(), build_schedule(config.mask, 4), "sdpa")
    lm.model = get_peft_model(
        lm.backbone[0], LoraConfig(r=4, lora_dropout=0.5, target_modules=["q_proj", "v_proj"])
    )
    recommender = recommender_of(compose_config)
    recommender = Recommender(lm, recommender.catalogue, config, 1, toy_frame())
    batch = batch_of(recommender)
    nudge(lm)
    before = {name: p.clone() for name, p in lm.named_parameters()}
    lm.train()
    assert recommender.reference is not None
    with recommender.reference.instead():
        got = recommender.loss.title_log_probs(batch)
    assert lm.training
    assert all(torch.equal(p, before[name]) for name, p in lm.named_parameters())
    with lm.model.disable_adapter():
        torch.testing.assert_close(got, recommender.loss.title_log_probs(batch), **CLOSE)
    assert (recommender.loss.title_log_probs(batch) - got).abs().max() > 0.01
