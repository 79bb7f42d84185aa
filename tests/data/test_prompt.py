import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import END, byte_ids, title_ids
from tokenizers.processors import TemplateProcessing
from toys import HISTORIES, PROMPT, TARGETS, TITLES, toy_batch, toy_book
from transformers import PreTrainedTokenizerFast

from hatllm.config import PromptConfig
from hatllm.data.prompt import PromptBook, Ragged, build_batch, build_prompt_book
from hatllm.masks.patterns import PREFIX, RESPONSE
from hatllm.model.backbone import byte_tokenizer

P, R = PREFIX, RESPONSE


def items_of(history: list[int]) -> str:
    return "".join(PROMPT.history_item.replace("{title}", TITLES[item]) for item in history)


def test_the_byte_tokenizer_is_the_one_the_reference_knows() -> None:
    text = 'Toy Story "é\n\t~'
    assert byte_tokenizer()(text)["input_ids"] == byte_ids(text)
    assert byte_tokenizer().eos_token_id == END


@pytest.mark.parametrize("with_target", [False, True])
def test_a_row_is_prefix_items_response_and_the_title_without_its_end(with_target: bool) -> None:
    batch = toy_batch(toy_book(), True, with_target)
    for b, (history, target) in enumerate(zip(HISTORIES, TARGETS, strict=True)):
        prompt = byte_ids(PROMPT.prefix + items_of(history) + PROMPT.response)
        title = title_ids(PROMPT, TITLES[target])[:-1] if with_target else []
        valid_L = batch.valid_BL[b]
        assert batch.input_ids_BL[b][valid_L].tolist() == prompt + title
        assert valid_L.tolist() == [True] * int(valid_L.sum()) + [False] * int((~valid_L).sum())
        assert int(batch.prompt_length_B[b]) == len(prompt)
        assert batch.tokens.position_BL[b][valid_L].tolist() == list(range(len(prompt + title)))


@pytest.mark.parametrize("target_is_item", [False, True])
def test_the_prompt_of_training_is_the_prompt_of_decoding(target_is_item: bool) -> None:
    book = toy_book()
    train = toy_batch(book, target_is_item, with_target=True)
    decode = toy_batch(book, target_is_item, with_target=False)
    assert torch.equal(train.prompt_length_B, decode.prompt_length_B)
    for b, length in enumerate(decode.prompt_length_B.tolist()):
        pairs = [
            (train.input_ids_BL, decode.input_ids_BL),
            (train.valid_BL, decode.valid_BL),
            (train.tokens.segment_BL, decode.tokens.segment_BL),
            (train.tokens.position_BL, decode.tokens.position_BL),
            (train.tokens.restart_BL, decode.tokens.restart_BL),
        ]
        for of_train, of_decode in pairs:
            assert torch.equal(of_train[b, :length], of_decode[b, :length])
        assert int(decode.valid_BL[b].sum()) == length


def test_segments_are_written_down_by_hand() -> None:
    prompt = PromptConfig("ab", "{title}", "c", "{title}")
    book = build_prompt_book(byte_tokenizer(), prompt, [1, 2], ["xy", "z"])
    histories, targets = [[1, 2, 1], [2]], [1, 2]
    as_item = toy_batch(book, True, True, histories, targets).tokens
    assert as_item.segment_BL.tolist() == [
        [P, P, 0, 0, 1, 2, 2, R, 3, 3],
        [P, P, 0, R, 1, R, R, R, R, R],
    ]
    assert as_item.restart_BL.tolist() == [
        [0, 1, 2, 3, 2, 2, 3, 2, 2, 3],
        [0, 1, 2, 2, 2, 0, 0, 0, 0, 0],
    ]
    as_template = toy_batch(book, False, True, histories, targets).tokens
    assert as_template.segment_BL.tolist() == [
        [P, P, 0, 0, 1, 2, 2, R, R, R],
        [P, P, 0, R, R, R, R, R, R, R],
    ]
    assert as_template.restart_BL.tolist()[0] == [0, 1, 2, 3, 2, 2, 3, 2, 3, 4]


def test_every_title_token_is_predicted_from_the_column_before_it() -> None:
    batch = toy_batch(toy_book(), True, with_target=True)
    expected = []
    for b, (history, target) in enumerate(zip(HISTORIES, TARGETS, strict=True)):
        start = len(byte_ids(PROMPT.prefix + items_of(history) + PROMPT.response))
        ids = title_ids(PROMPT, TITLES[target])
        expected += [(b, start - 1 + i, token) for i, token in enumerate(ids)]
    columns = (batch.target_row_T, batch.target_column_T, batch.target_token_T)
    assert list(zip(*(column.tolist() for column in columns), strict=True)) == expected


def test_a_batch_without_targets_predicts_nothing() -> None:
    batch = toy_batch(toy_book(), True, with_target=False)
    assert len(batch.target_row_T) == len(batch.target_column_T) == len(batch.target_token_T) == 0


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from(sorted(TITLES)), max_size=6), st.sampled_from(sorted(TITLES)))
def test_an_item_has_the_same_tokens_wherever_it_stands(history: list[int], target: int) -> None:
    book = BOOK
    batch = toy_batch(book, True, True, [history], [target])
    for place, item in enumerate(history):
        ids = batch.input_ids_BL[batch.tokens.segment_BL == place].tolist()
        assert ids == byte_ids(PROMPT.history_item.replace("{title}", TITLES[item]))
    ids = batch.input_ids_BL[batch.tokens.segment_BL == len(history)].tolist()
    assert ids == title_ids(PROMPT, TITLES[target])[:-1]
    rows = book.rows_of(np.asarray(history, np.int64))
    assert book.prompt_length(rows) == int(batch.prompt_length_B[0])


BOOK = toy_book()


def test_every_title_ends_with_the_end_token() -> None:
    for row in range(len(TITLES)):
        ids = BOOK.target[row].tolist()
        assert ids[-1] == END and END not in ids[:-1]


def test_the_order_of_the_catalogue_does_not_matter() -> None:
    backwards = dict(reversed(TITLES.items()))
    book = toy_book(backwards)
    assert book.item_id_I.tolist() == BOOK.item_id_I.tolist() == sorted(TITLES)
    for name in ("history_item", "target"):
        assert getattr(book, name).flat.tolist() == getattr(BOOK, name).flat.tolist()


@pytest.mark.parametrize("item_ids", [[4], [3, 71], [10**9], [-1]])
def test_an_unknown_item_is_an_error(item_ids: list[int]) -> None:
    unknown = next(item for item in item_ids if item not in TITLES)
    with pytest.raises(ValueError, match=f"item_id {unknown} is not in the catalogue"):
        BOOK.rows_of(np.asarray(item_ids))
    with pytest.raises(ValueError, match=f"item_id {unknown} is not in the catalogue"):
        toy_batch(BOOK, True, True, [item_ids], [3])
    with pytest.raises(ValueError, match=f"item_id {unknown} is not in the catalogue"):
        toy_batch(BOOK, True, True, [[3]], [unknown])


def test_a_template_with_its_own_start_token_keeps_it_and_drops_an_end() -> None:
    tokenizer: PreTrainedTokenizerFast = byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 256), ("</s>", 257)]
    )
    book = build_prompt_book(tokenizer, PROMPT, [3], ["Up"])
    assert book.prefix.tolist() == [256, *byte_ids(PROMPT.prefix)]
    assert book.history_item[0].tolist() == byte_ids('"Up"\n')
    assert book.response.tolist() == byte_ids(PROMPT.response)
    assert book.target[0].tolist() == [*byte_ids('Up"'), END]


def test_a_tokenizer_without_an_end_token_is_refused() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="has no end token"):
        build_prompt_book(tokenizer, PROMPT, [3], ["Up"])


def test_a_title_without_tokens_is_refused_by_item_id() -> None:
    prompt = PromptConfig("Seen:\n", "{title}\n", "Next:\n", "{title}")
    with pytest.raises(ValueError, match="item_id 9: its title '' has no tokens"):
        build_prompt_book(byte_tokenizer(), prompt, [3, 9], ["Up", ""])


def test_a_title_that_spells_the_end_token_is_refused_by_item_id() -> None:
    with pytest.raises(ValueError, match="item_id 9: its title 'Up</s>' holds the end token"):
        build_prompt_book(byte_tokenizer(), PROMPT, [3, 9], ["Up", "Up</s>"])


def test_an_empty_template_is_refused() -> None:
    prompt = PromptConfig("", "{title}\n", "", "{title}")
    with pytest.raises(ValueError, match=r"data.prompt.prefix and data.prompt.response are both"):
        build_prompt_book(byte_tokenizer(), prompt, [3], ["Up"])


@pytest.mark.parametrize("field", ["history_item", "target"])
def test_a_template_without_a_place_for_the_title_is_refused(field: str) -> None:
    texts = {"prefix": "a", "history_item": "{title}", "response": "b", "target": "{title}"}
    with pytest.raises(ValueError, match=rf"data.prompt.{field}='x' must contain {{title}}"):
        PromptConfig(**texts | {field: "x"})


def test_a_title_with_braces_is_taken_word_for_word() -> None:
    book = build_prompt_book(byte_tokenizer(), PROMPT, [3], ["{title} {0}"])
    assert book.target[0].tolist() == [*byte_ids('{title} {0}"'), END]


def test_moving_a_batch_moves_every_tensor() -> None:
    moved = toy_batch(BOOK, True, True).to("meta")
    tensors = [value for value in vars(moved).values() if torch.is_tensor(value)]
    tensors += [moved.tokens.segment_BL, moved.tokens.position_BL, moved.tokens.restart_BL]
    assert {tensor.device.type for tensor in tensors} == {"meta"}


def test_a_batch_keeps_identities_in_order() -> None:
    batch = build_batch(
        BOOK, [9, 4], [np.array([3]), np.array([10])], [20, 44], True, with_target=True
    )
    assert batch.example_id_B.tolist() == [9, 4]
    assert batch.target_item_B.tolist() == [20, 44]
    assert batch.num_rows == 2


@given(st.lists(st.lists(st.integers(0, 9), max_size=4), max_size=6))
def test_ragged_rows_come_back_as_they_went_in(rows: list[list[int]]) -> None:
    ragged = Ragged.of(rows)
    assert [ragged[i].tolist() for i in range(len(rows))] == rows
    assert ragged.length.tolist() == [len(row) for row in rows]


def test_padding_is_never_a_token_of_a_row() -> None:
    assert isinstance(BOOK, PromptBook)
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = None
    assert build_prompt_book(tokenizer, PROMPT, [3], ["Up"]).pad_id == END
