"""Free text against transformers' `generate`, distances against whole forward passes."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from reference import END, byte_ids, title_ids
from toys import (
    HISTORIES,
    PROMPT,
    TITLES,
    Compose,
    schedule_of,
    toy_batch,
    toy_catalogue,
    toy_frame,
    toy_lm,
)
from transformers import LlamaForCausalLM

from hatllm.config import Config
from hatllm.decode.fast.tree_scorer import TreeScorers
from hatllm.decode.grounding import (
    embed_texts,
    embed_titles,
    nearest_titles,
    with_room,
    write_texts,
)
from hatllm.decode.predict import predict
from hatllm.decode.scorer import PlainScorers
from hatllm.masks.schedule import build_schedule
from hatllm.model.backbone import tiny_llama
from hatllm.model.masked_lm import MaskedLM

Words = list[str]
NUM_TITLES = len(set(TITLES.values()))


def grounding(compose_config: Compose, *words: str) -> Config:
    return compose_config("decode=grounding", "decode.top_k=4", *words)


@torch.no_grad()
def written(lm: MaskedLM, config: Config) -> list[list[int]]:
    catalogue = toy_catalogue()
    scorers = (TreeScorers if config.fast else PlainScorers)(lm, catalogue)
    num_titles = scorers.trie.num_nodes
    scorers.trie = with_room(scorers.trie, config.decode)
    batch = toy_batch(catalogue.book, lm.schedule.target_is_item, with_target=False)
    token_BS = write_texts(scorers.of(batch), config.decode, num_titles, END)
    return [[token for token in row if token >= 0] for row in token_BS.tolist()]


def state_of(model: LlamaForCausalLM, ids: list[int]) -> torch.Tensor:
    """The last token's final hidden state of a text read alone by transformers."""
    return model.model(input_ids=torch.tensor([ids])).last_hidden_state[0, -1]


@torch.no_grad()
@pytest.mark.parametrize("width", [1, 4])
def test_under_the_causal_mask_the_text_is_that_of_transformers(
    width: int, compose_config: Compose
) -> None:
    model = tiny_llama()
    config = grounding(
        compose_config, "mask=causal", f"decode.beam_width={width}", "decode.max_title_tokens=7"
    )
    expected = []
    for history in HISTORIES:
        items = "".join(PROMPT.history_item.replace("{title}", TITLES[i]) for i in history)
        prompt = byte_ids(PROMPT.prefix + items + PROMPT.response)
        # The one stopping rule of transformers that is safe when longer may be better.
        beams: dict[str, Any] = {"length_penalty": 1.0, "early_stopping": False}
        out = model.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            num_beams=width, max_new_tokens=7, do_sample=False, pad_token_id=END, eos_token_id=END,
            **(beams if width > 1 else {}),
        )  # fmt: skip
        text = out[0, len(prompt) :].tolist()
        expected.append(text[: text.index(END)] if END in text else text)
    assert written(toy_lm(schedule_of("FFFF")), config) == expected


@torch.no_grad()
def test_fast_and_plain_write_the_same_under_every_mask(
    unlike_preset: Words, compose_config: Compose
) -> None:
    tables = []
    for fast in (True, False):
        config = grounding(
            compose_config, *unlike_preset, f"fast={fast}", "decode.max_title_tokens=6"
        )
        lm = toy_lm(build_schedule(config.mask, 4))
        texts = written(lm, config)
        tables.append((texts, predict(lm, toy_catalogue(), toy_frame(), config, "test")))
    assert tables[0][0] == tables[1][0]
    fast, plain = (table for _, table in tables)
    assert fast["top_items"].to_list() == plain["top_items"].to_list()
    for column in ("target_trie_log_prob", "target_vocab_log_prob"):
        assert fast[column].to_list() == pytest.approx(plain[column].to_list(), abs=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("letters", ["FFFF", "IFFC", "CCCC"])
@pytest.mark.parametrize("scope", ["items", "segments"])
def test_an_embedding_is_the_last_state_of_the_text_read_alone_by_the_untuned_model(
    letters: str, scope: str
) -> None:
    lm = toy_lm(schedule_of(letters, scope))
    lm.model = get_peft_model(
        lm.backbone[0], LoraConfig(r=4, init_lora_weights=False, target_modules=["q_proj"])
    )
    lm.eval()
    texts = [byte_ids("Heat"), byte_ids("Toy Story 2"), byte_ids("U"), []]
    token_BS = torch.full((4, 11), -1)
    for row, text in enumerate(texts):
        token_BS[row, : len(text)] = torch.tensor(text, dtype=torch.int64)
    expected = torch.stack([state_of(tiny_llama(), text or [END]) for text in texts])
    torch.testing.assert_close(embed_texts(lm, token_BS, END), expected, rtol=1e-4, atol=1e-5)
    assert (token_BS[3] == -1).all()  # the caller's texts stay as they were


@torch.no_grad()
def test_the_titles_are_ranked_by_their_distance_to_the_text(compose_config: Compose) -> None:
    config = grounding(compose_config, f"decode.top_k={NUM_TITLES}", "decode.max_title_tokens=5")
    lm = toy_lm(build_schedule(config.mask, 4))
    table = predict(lm, toy_catalogue(), toy_frame(), config, "test")
    model, titles = tiny_llama(), sorted(set(TITLES.values()))
    title_TD = torch.stack([state_of(model, title_ids(PROMPT, t)[:-1]) for t in titles])
    for text, row in zip(written(lm, config), table.to_dicts(), strict=True):
        distance_T = torch.cdist(state_of(model, text or [END])[None], title_TD)[0]
        order = distance_T.argsort().tolist()
        assert [TITLES[item] for item in row["top_items"]] == [titles[t] for t in order]
        log_prob_T = (-distance_T).log_softmax(0)[order]
        assert row["top_log_probs"] == pytest.approx(log_prob_T.tolist(), abs=1e-4)
        assert titles[order[row["target_rank"] - 1]] == TITLES[row["target_item"]]


@torch.no_grad()
def test_a_text_that_is_a_title_lies_at_distance_zero() -> None:
    lm, trie = toy_lm(schedule_of("IFFC")), toy_catalogue().trie
    title_TD = embed_titles(lm, trie, END)
    ids = torch.tensor([title_ids(PROMPT, "Toy Story")[:-1]])
    answers = nearest_titles(trie, embed_texts(lm, ids, END), title_TD, 3)
    assert trie.items_of_leaf(int(answers.leaf_BW[0, 0])).tolist() == [3]
    # Batches of other shapes add up in another order.
    assert float(answers.score_BW[0, 0]) == pytest.approx(0.0, abs=1e-4)


def test_results_do_not_depend_on_batches(compose_config: Compose) -> None:
    tables = []
    for size in (1, 2, 16):
        config = grounding(
            compose_config, f"decode.users_per_batch={size}", "decode.max_title_tokens=5"
        )
        lm = toy_lm(build_schedule(config.mask, 4))
        tables.append(predict(lm, toy_catalogue(), toy_frame(), config, "test"))
    for table in tables[1:]:
        assert table["top_items"].to_list() == tables[0]["top_items"].to_list()
        assert table["target_rank"].to_list() == tables[0]["target_rank"].to_list()
