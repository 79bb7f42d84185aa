import numpy as np
import pytest
import torch
from reference import byte_ids
from toys import PROMPT, TITLES, Compose, toy_book

from hatllm.config import PromptConfig
from hatllm.data.datamodule import Examples, branches_of
from hatllm.data.prompt import build_batch, build_prompt_book
from hatllm.data.targets import Negatives, in_place_counts, shown_tokens, target_weights
from hatllm.model.backbone import byte_tokenizer

NUM_TITLES = len(set(TITLES.values()))


def test_weights_are_equal_or_rise_with_the_place_and_sum_to_one() -> None:
    assert target_weights(4, "equal").tolist() == [0.25] * 4
    assert target_weights(3, "rising").tolist() == [1 / 6, 2 / 6, 3 / 6]


def test_a_title_is_shown_as_far_as_its_tokens_stand_in_the_history() -> None:
    opening = [7]
    history = [[7, 1, 2, 3, 9], [7, 1, 5], [7, 4, 4], [6, 1, 2], [7, 1]]
    titles = [[1, 2, 3, 8, 0], [1, 5, 0], [9, 4, 0], [1, 2, 0], [1, 2, 0]]
    assert shown_tokens(history, titles, opening).tolist() == [3, 2, 0, 0, 1]
    assert shown_tokens(history, titles, []).tolist() == [0] * 5


def test_every_item_after_the_first_is_supervised_where_it_stands() -> None:
    history, target = [3, 25, 3], 20  # Toy Story, Alien, Toy Story; then Heat
    batch = build_batch(toy_book(), [5], [np.array(history)], [target], True, True, "equal")
    texts = [PROMPT.prefix, *(PROMPT.history_item.replace("{title}", TITLES[i]) for i in history)]
    expected = []
    for place in (1, 2):
        start = len(byte_ids("".join(texts[: place + 1])))
        # Bytes: the title and its closing quote stand there as in the title itself.
        shown = byte_ids(TITLES[history[place]] + '"')
        expected += [(start + i, token) for i, token in enumerate(shown)]
    start = len(byte_ids("".join(texts) + PROMPT.response)) - 1
    last = [*byte_ids(TITLES[target] + '"'), int(toy_book().target[0][-1])]
    expected += [(start + i, token) for i, token in enumerate(last)]
    found = zip(batch.target_column_T.tolist(), batch.target_token_T.tolist(), strict=True)
    assert list(found) == expected
    assert batch.title_item_J.tolist() == [25, 3, 20]
    assert batch.title_length_J.tolist() == [6, 10, 6]
    assert batch.title_T.tolist() == [0] * 6 + [1] * 10 + [2] * 6
    assert batch.title_weight_J.tolist() == pytest.approx([1 / 3] * 3)


def test_no_token_is_added_to_the_prompt() -> None:
    rows = [np.array([3, 25, 3]), np.array([44])]
    plain = build_batch(toy_book(), [0, 1], rows, [20, 3], True, True)
    every = build_batch(toy_book(), [0, 1], rows, [20, 3], True, True, "rising")
    assert torch.equal(plain.input_ids_BL, every.input_ids_BL)
    assert torch.equal(plain.tokens.segment_BL, every.tokens.segment_BL)
    # A history of one item asks one question, as before.
    assert every.title_weight_J.tolist() == pytest.approx([1 / 6, 2 / 6, 3 / 6, 1.0])


def test_without_text_before_a_title_no_token_predicts_it_in_place() -> None:
    prompt = PromptConfig("ab", "{title};", "c", "{title}")
    book = build_prompt_book(byte_tokenizer(), prompt, [1, 2], ["xy", "z"])
    assert book.shown_I.tolist() == [0, 0]
    with pytest.raises(ValueError, match=r"data.target_form='in_place' can supervise no title"):
        in_place_counts(book)


def test_what_a_history_can_supervise_is_counted() -> None:
    # Bytes: "xy>" and an end token; of "<xy;" the history shows "xy" and not the ">".
    prompt = PromptConfig("ab", "<{title};", "c", "{title}>")
    counts = in_place_counts(build_prompt_book(byte_tokenizer(), prompt, [1, 2], ["xy", "z"]))
    assert counts == (2, 0, 4 + 3, 2 + 1)
    assert counts.note() == (
        "in place 3 of 7 title tokens are supervised (43%), 0 of 2 items not at all"
    )


def test_sdpo_has_no_other_titles_in_place(compose_config: Compose) -> None:
    words = ["loss=sdpo", "data.train_targets=every"]
    with pytest.raises(ValueError, match=r"data.target_form='in_place' must be branches"):
        compose_config(*words)
    assert compose_config(*words, "data.target_form=branches").loss.name == "sdpo"


def test_branches_are_the_prefixes_of_each_history() -> None:
    examples = Examples(np.array([8, 9]), [np.array([1, 2, 3]), np.array([4])], np.array([5, 6]))
    grown, weights = branches_of(examples, np.array([1, 0]), "rising")
    assert [h.tolist() for h in grown.histories] == [[4], [1], [1, 2], [1, 2, 3]]
    assert grown.target_G.tolist() == [6, 2, 3, 5]
    assert grown.example_id_G.tolist() == [9, 8, 8, 8]
    assert weights.tolist() == pytest.approx([1.0, 1 / 6, 2 / 6, 3 / 6])


def test_a_row_has_the_same_negatives_whenever_it_is_asked_for() -> None:
    book = toy_book()
    one, other = Negatives.of(book, 3, seed=7), Negatives.of(book, 3, seed=7)
    drawn = [one.draw(example, 0).tolist() for example in range(20)]
    assert drawn == [other.draw(example, 0).tolist() for example in reversed(range(20))][::-1]
    assert drawn != [Negatives.of(book, 3, seed=8).draw(e, 0).tolist() for e in range(20)]
    assert len({tuple(row) for row in drawn}) > 10


def test_negatives_are_different_titles_and_never_the_targets() -> None:
    book = toy_book()
    negatives = Negatives.of(book, NUM_TITLES - 1, seed=1)
    for row, item in enumerate(sorted(TITLES)):
        for example in range(10):
            titles = [TITLES[i] for i in negatives.draw(example, row).tolist()]
            assert sorted(titles) == sorted(set(TITLES.values()) - {TITLES[item]})


def test_every_other_title_is_drawn_equally_often() -> None:
    negatives = Negatives.of(toy_book(), 2, seed=3)
    drawn = np.concatenate([negatives.draw(example, 0) for example in range(3500)])
    _, counts = np.unique(drawn, return_counts=True)
    assert len(counts) == NUM_TITLES - 1
    # 1000 expected of each, standard deviation 27.
    assert abs(counts - 1000).max() < 110


def test_too_few_titles_are_an_error() -> None:
    with pytest.raises(ValueError, match=rf"num_negatives={NUM_TITLES} must be below {NUM_TITLES}"):
        Negatives.of(toy_book(), NUM_TITLES, seed=1)
