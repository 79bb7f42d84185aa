"""Items as soft tokens, against a model whose embedding table simply has more rows."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from reference import Piece, Reference, byte_ids, prompt_pieces, title_ids, title_log_prob
from torch import Tensor
from toys import HISTORIES, PROMPT, TARGETS, TITLES, Compose, schedule_of, toy_batch, toy_frame

from hatllm.config import Config
from hatllm.data.prompt import FIRST_ITEM_TOKEN, PromptBook, build_prompt_book
from hatllm.decode.catalogue import Catalogue
from hatllm.decode.fast.catalogue_states import states_file
from hatllm.decode.predict import predict
from hatllm.masks.schedule import Schedule, build_schedule
from hatllm.model.backbone import byte_tokenizer, tiny_llama
from hatllm.model.item_tokens import ItemTokens
from hatllm.model.masked_lm import MaskedLM
from hatllm.training.lightning_module import Recommender

Words = list[str]
ITEMS = sorted(TITLES)
VOCABULARY = 258
CLOSE = {"rtol": 1e-5, "atol": 2e-4}  # as in test_lightning_module


def book_with_items() -> PromptBook:
    titles = list(TITLES.values())
    return build_prompt_book(byte_tokenizer(), PROMPT, list(TITLES), titles, item_tokens=True)


def lm_with_items(schedule: Schedule) -> MaskedLM:
    lm = MaskedLM(tiny_llama(), schedule, "sdpa").eval()
    vector_IE = torch.randn(len(ITEMS), 5, generator=torch.Generator().manual_seed(1))
    lm.item_tokens = ItemTokens(vector_IE, 32, seed=2)
    return lm


def recommender_of(compose_config: Compose, *words: str) -> Recommender:
    config = compose_config(*words)
    lm = lm_with_items(build_schedule(config.mask, 4))
    return Recommender(lm, Catalogue.of(book_with_items()), config, 4, toy_frame())


def image_of(lm: MaskedLM, row: int) -> Tensor:
    """Two linear layers with GELU between them, written out."""
    assert lm.item_tokens is not None
    weights = dict(lm.item_tokens.named_parameters())
    x = weights["projector.0.weight"] @ lm.item_tokens.vector_IE[row] + weights["projector.0.bias"]
    x = x * 0.5 * (1 + torch.erf(x / 2**0.5))
    return weights["projector.2.weight"] @ x + weights["projector.2.bias"]


def written_out(lm: MaskedLM) -> Reference:
    """A Llama whose embedding table goes on with the items' images."""
    schedule = lm.schedule
    reference = Reference(
        tiny_llama(), schedule.letters, schedule.intra_scope, schedule.cross_sees_self,
        schedule.target_is_item,
    )  # fmt: skip
    images = torch.stack([image_of(lm, row) for row in range(len(ITEMS))]).detach().double()
    name = "model.embed_tokens.weight"
    reference.weights[name] = torch.cat([reference.weights[name], images])
    return reference


def pieces_of(history: list[int]) -> list[Piece]:
    pieces = prompt_pieces(PROMPT, [TITLES[item] for item in history])
    for piece in pieces:
        if isinstance(piece.label, int):
            piece.tokens.append(VOCABULARY + ITEMS.index(history[piece.label]))
    return pieces


@pytest.fixture(scope="session")
def titles_under(unlike_preset: Words, compose_config: Compose) -> list[dict[str, float]]:
    """Log-probability of every title for every user, over the vocabulary, by hand."""
    reference = written_out(lm_with_items(build_schedule(compose_config(*unlike_preset).mask, 4)))
    return [
        {
            title: float(title_log_prob(reference.logits(pieces_of(h), ids[:-1]), ids, None))
            for title, ids in ((t, title_ids(PROMPT, t)) for t in TITLES.values())
        }
        for h in HISTORIES
    ]


def test_an_items_token_stands_in_its_segment_after_its_text() -> None:
    book = book_with_items()
    batch = toy_batch(book, True, with_target=True)
    for row, history in enumerate(HISTORIES):
        for place, item in enumerate(history):
            ids = batch.input_ids_BL[row][batch.tokens.segment_BL[row] == place].tolist()
            text = byte_ids(PROMPT.history_item.replace("{title}", TITLES[item]))
            assert ids == [*text, FIRST_ITEM_TOKEN + ITEMS.index(item)]
    assert (batch.target_token_T < VOCABULARY).all() and (book.target.flat < VOCABULARY).all()


@pytest.mark.thin()
@torch.no_grad()
@pytest.mark.parametrize("fast", [True, False])
def test_the_loss_under_every_mask_is_that_of_a_larger_embedding_table(
    unlike_preset: Words, fast: bool, titles_under: list[dict[str, float]], compose_config: Compose
) -> None:
    recommender = recommender_of(compose_config, *unlike_preset, "loss=lml", f"fast={fast}")
    loss = recommender.title_loss(toy_batch(recommender.catalogue.book, True, with_target=True))
    wanted = [user[TITLES[t]] for user, t in zip(titles_under, TARGETS, strict=True)]
    torch.testing.assert_close(float(loss), -sum(wanted) / len(wanted), **CLOSE)


@pytest.mark.parametrize("fast", [True, False])
def test_decoding_under_every_mask_is_that_of_a_larger_embedding_table(
    unlike_preset: Words,
    fast: bool,
    titles_under: list[dict[str, float]],
    compose_config: Compose,
    tmp_path: Path,
) -> None:
    words = [*unlike_preset, f"fast={fast}", f"cache_root={tmp_path}", "decode.normalize=vocab"]
    words += ["decode.beam_width=8", "decode.top_k=8"]
    config = compose_config(*words)
    lm = lm_with_items(build_schedule(config.mask, 4))
    with_states = fast and config.mask.intra_scope == "segments"
    for cached in (None, True) if with_states else (None,):
        config.decode.state_cache = cached
        table = predict(lm, Catalogue.of(book_with_items()), toy_frame(), config, "test")
        for user, (items, log_probs) in enumerate(table["top_items", "top_log_probs"].iter_rows()):
            expected = sorted(titles_under[user].items(), key=lambda pair: -pair[1])
            assert [TITLES[item] for item in items] == [title for title, _ in expected]
            assert log_probs == pytest.approx([log_prob for _, log_prob in expected], abs=2e-4)


LOSSES = ["loss=lml", "loss=msl", "loss=sdpo loss.num_negatives=2"]


@pytest.mark.thin()
@pytest.mark.parametrize("loss", LOSSES)
def test_the_fast_way_has_the_gradients_of_the_plain_one_under_every_mask(
    unlike_preset: Words, loss: str, compose_config: Compose
) -> None:
    gradients = []
    for fast in (True, False):
        recommender = recommender_of(compose_config, *unlike_preset, *loss.split(), f"fast={fast}")
        batch = toy_batch(recommender.catalogue.book, True, True, *_rows(recommender.config))
        recommender.title_loss(batch).backward()
        gradients.append({name: p.grad for name, p in recommender.named_parameters()})
    assert sum("projector" in name for name in gradients[0]) == 4
    for name, expected in gradients[1].items():
        scale = float(expected.abs().max())
        assert scale > 0
        torch.testing.assert_close(
            gradients[0][name], expected, rtol=1e-3, atol=2e-4 * scale, msg=name
        )


def _rows(config: Config) -> tuple[list[list[int]], list[int]]:
    """Under sdpo each target comes with two others."""
    if config.loss.name != "sdpo":
        return HISTORIES, TARGETS
    return [h for h in HISTORIES for _ in range(3)], [
        item for target in TARGETS for item in (target, 52, 70)
    ]


def embedded_loss(lm: MaskedLM, model: torch.nn.Module, shown: bool) -> Tensor:
    """Loss of transformers' own Llama on each unpadded prompt, given as embeddings."""
    losses = []
    for history, target in zip(HISTORIES, TARGETS, strict=True):
        title = title_ids(PROMPT, TITLES[target])
        ids = [token for piece in pieces_of(history) for token in piece.tokens]
        rows = [
            image_of(lm, i - VOCABULARY) * shown
            if i >= VOCABULARY
            else model.get_input_embeddings().weight[i]
            for i in [*ids, *title[:-1]]
        ]
        logits = model(inputs_embeds=torch.stack(rows)[None]).logits[0, len(ids) - 1 :]
        losses.append(-title_log_prob(logits, title, None))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("shown", [True, False])
@pytest.mark.parametrize("fast", [True, False])
def test_the_causal_loss_and_gradients_are_transformers_own_on_embeddings(
    fast: bool, shown: bool, compose_config: Compose
) -> None:
    recommender = recommender_of(compose_config, "mask=causal", "loss=lml", f"fast={fast}")
    lm, model = recommender.lm, tiny_llama()
    assert lm.item_tokens is not None
    lm.item_tokens.text_only = not shown  # the curriculum: an item's token is 0
    got = recommender.title_loss(toy_batch(recommender.catalogue.book, True, with_target=True))
    got.backward()
    mine = {name: p.grad for name, p in lm.backbone[0].named_parameters()}
    projector = {name: p.grad.clone() for name, p in lm.item_tokens.named_parameters()}
    lm.item_tokens.zero_grad()
    expected = embedded_loss(lm, model, shown)
    expected.backward()
    torch.testing.assert_close(got, expected, **CLOSE)
    for name, parameter in lm.item_tokens.named_parameters():
        assert parameter.grad is not None and (float(parameter.grad.abs().max()) > 0) == shown
        torch.testing.assert_close(projector[name], parameter.grad, rtol=1e-3, atol=1e-4, msg=name)
    for name, parameter in model.named_parameters():
        scale = float(parameter.grad.abs().max())
        torch.testing.assert_close(
            mine[name], parameter.grad, rtol=1e-3, atol=1e-4 * scale, msg=name
        )


def test_adapters_and_projector_are_what_a_checkpoint_holds(compose_config: Compose) -> None:
    recommender = recommender_of(compose_config)
    for parameter in recommender.lm.backbone[0].parameters():
        parameter.requires_grad_(False)
    peft = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    recommender.lm.model = get_peft_model(recommender.lm.backbone[0], peft)
    checkpoint = {"state_dict": recommender.state_dict()}
    recommender.on_save_checkpoint(checkpoint)
    kinds = {name.split(".")[1] for name in checkpoint["state_dict"] if name != "tau"}
    assert kinds == {"model", "item_tokens"}
    assert not any("vector_IE" in name for name in checkpoint["state_dict"])


def test_states_of_a_catalogue_belong_to_one_projector(tmp_path: Path) -> None:
    lm, catalogue = lm_with_items(schedule_of("IFFC", "segments")), Catalogue.of(book_with_items())
    before = states_file(lm, catalogue, tmp_path)
    with torch.no_grad():
        assert lm.item_tokens is not None
        lm.item_tokens.projector[0].bias += 1.0
    assert states_file(lm, catalogue, tmp_path) != before


class AtStep:
    """What the curriculum asks of a trainer."""

    def __init__(self, step: int) -> None:
        self.global_step = step


def test_the_curriculum_grows_to_item_tokens_in_every_batch(compose_config: Compose) -> None:
    words = ["model.item_vectors=ids", "model.item_curriculum=true"]
    recommender = recommender_of(compose_config, *words)
    recommender.num_steps = 400
    tokens, shown = recommender.lm.item_tokens, []
    assert tokens is not None
    for step in range(400):
        recommender._trainer = AtStep(step)  # type: ignore[assignment]
        recommender._set_text_only()
        shown.append(not tokens.text_only)
    # Step t shows them with probability t / 400: 0.125 on average in the first quarter.
    quarters = [sum(shown[i : i + 100]) / 100 for i in range(0, 400, 100)]
    assert quarters == pytest.approx([0.125, 0.375, 0.625, 0.875], abs=0.15)
    assert shown[-1]
    recommender.on_train_batch_end()
    assert not tokens.text_only
