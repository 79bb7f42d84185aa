"""Titles that became the same tokens: ranks and probabilities by title, as the baselines rank."""

import math
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from toys import HISTORIES, PROMPT, Compose, schedule_of, toy_catalogue, toy_frame, toy_lm
from transformers import PreTrainedTokenizerFast

from hatllm.baselines.ranks_of_scores import TitleIndex, predictions_of
from hatllm.data.prompt import build_prompt_book
from hatllm.decode.catalogue import Catalogue
from hatllm.decode.predict import predict
from hatllm.decode.titles_alike import TitleCounts, count_titles
from hatllm.model.backbone import byte_tokenizer

# In lower case three of them are one: "Heat" of two items, "HEAT" and "heat".
TITLES = {3: "Toy Story", 10: "Toy", 11: "Heat", 20: "HEAT", 25: "heat", 31: "Heat", 44: "Up",
          52: "Antz", 70: "It"}  # fmt: skip
HEAT = (11, 20, 25, 31)
NUM_TITLES = 8


def lower_case_tokenizer() -> Any:
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    return tokenizer


def merged_catalogue(titles: dict[int, str] = TITLES) -> Catalogue:
    tokenizer = lower_case_tokenizer()
    book = build_prompt_book(tokenizer, PROMPT, list(titles), list(titles.values()))
    return Catalogue.of(book)


def every_target(compose: Compose, *words: str, titles: dict[int, str] = TITLES) -> pl.DataFrame:
    """One history, each item its target in turn."""
    frame = toy_frame([HISTORIES[1]] * len(titles), list(titles))
    lm = toy_lm(schedule_of("IFFC"))
    return predict(lm, merged_catalogue(titles), frame, compose(*words), "test")


@pytest.fixture(scope="module")
def all_ranked(compose_config: Compose) -> pl.DataFrame:
    words = [f"decode.beam_width={NUM_TITLES}", f"decode.top_k={NUM_TITLES}"]
    return every_target(compose_config, *words)


@pytest.mark.parametrize("search", ["decode=beam", "decode=exact"])
@pytest.mark.parametrize("top_k", [2, 5, NUM_TITLES])
def test_titles_of_one_token_sequence_rank_as_the_baselines_rank_equal_scores(
    search: str, top_k: int, all_ranked: pl.DataFrame, compose_config: Compose
) -> None:
    words = [search, f"decode.beam_width={NUM_TITLES}", f"decode.top_k={top_k}"]
    table = every_target(compose_config, *words)
    own = dict(all_ranked.select("target_item", "target_trie_log_prob").iter_rows())
    score = {TITLES[item].lower(): value for item, value in own.items()}
    score["heat"] += math.log(3)  # of the tokens, which three titles have
    score_BI = torch.tensor([[score[TITLES[item].lower()] for item in sorted(TITLES)]])
    score_BI = score_BI.expand(len(TITLES), -1)
    items = pl.DataFrame({"item_id": list(TITLES), "title": list(TITLES.values())})
    frame = toy_frame([HISTORIES[1]] * len(TITLES), list(TITLES))
    expected = predictions_of(
        frame, [(score_BI, torch.arange(len(TITLES)))], TitleIndex.of(items), top_k
    )
    columns = ["example_id", "target_item", "target_rank", "top_items", "ambiguous"]
    assert table[columns].equals(expected[columns])


def test_ranks_by_item_count_the_items_of_every_title_above(all_ranked: pl.DataFrame) -> None:
    answered = all_ranked["top_items"][0].to_list()
    in_order = [
        item for first in answered for item, title in TITLES.items() if title == TITLES[first]
    ]
    ranks = dict(all_ranked.select("target_item", "target_item_rank").iter_rows())
    assert ranks == {item: in_order.index(item) + 1 for item in TITLES}


def test_titles_share_the_probability_of_their_tokens(all_ranked: pl.DataFrame) -> None:
    log_prob = dict(all_ranked.select("target_item", "target_trie_log_prob").iter_rows())
    assert len({round(log_prob[item], 5) for item in HEAT}) == 1
    of_titles = {TITLES[item]: math.exp(value) for item, value in log_prob.items()}
    assert sum(of_titles.values()) == pytest.approx(1.0, abs=1e-5)
    for items, values in all_ranked.select("top_items", "top_log_probs").iter_rows():
        assert values == pytest.approx([log_prob[item] for item in items], abs=1e-4)


def test_a_model_that_tells_no_title_apart_guesses(compose_config: Compose) -> None:
    titles = {1: "UP", 2: "Up", 3: "up", 44: "uP"}
    table = every_target(compose_config, "decode.beam_width=4", "decode.top_k=4", titles=titles)
    assert sorted(table["target_rank"]) == [1, 2, 3, 4]
    assert len({tuple(items) for items in table["top_items"]}) == 1  # whatever the target
    assert table["target_trie_log_prob"].to_list() == pytest.approx([-math.log(4)] * 4)


def test_items_of_one_title_are_one_answer_and_no_merged_titles() -> None:
    catalogue = toy_catalogue()
    assert catalogue.merged == {}
    leaf = int(catalogue.trie.leaf_of_item(torch.tensor(20)))
    assert catalogue.titles_of(leaf) == [[11, 20]]


# --- What is counted and what refused ------------------------------------------------------------


def word_catalogue(titles: dict[int, str], words: list[str]) -> tuple[Catalogue, int]:
    """Titles in a vocabulary of words, and its unknown token."""
    vocabulary = {word: i for i, word in enumerate(["<unk>", "</s>", '"', *words])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", unk_token="<unk>")
    book = build_prompt_book(tokenizer, PROMPT, list(titles), list(titles.values()))
    return Catalogue.of(book), tokenizer.unk_token_id


def test_many_titles_of_one_token_sequence_are_refused_by_name() -> None:
    titles = {n: f"Item number {n}" for n in range(10, 40)}
    catalogue, unknown = word_catalogue(titles, ["Item", "number"])
    with pytest.raises(ValueError, match="same tokens of 30 of 30 different titles") as refused:
        count_titles(catalogue, titles, unknown)
    named = [title for title in titles.values() if repr(title) in str(refused.value)]
    assert len(named) == 2


@pytest.mark.parametrize(("num_titles", "is_refused"), [(199, True), (200, False)])
def test_a_hundredth_of_the_titles_may_have_the_tokens_of_another(
    num_titles: int, is_refused: bool
) -> None:
    titles = {n: f"Film {n}" for n in range(num_titles - 1)} | {900: "FILM 7", 901: "FILM 7"}
    catalogue = merged_catalogue(titles)
    if is_refused:
        with pytest.raises(ValueError, match=r"'F\w+ 7'.* and 'F\w+ 7'.*at most 1% may be so"):
            count_titles(catalogue, titles, None)
    else:
        counts = count_titles(catalogue, titles, None)
        assert counts == TitleCounts(200, 2, 0)
        assert "2 of 200 titles have the tokens of another title" in str(counts.note())


@pytest.mark.parametrize(("num_unknown", "is_refused"), [(2, False), (3, True)])
def test_a_tenth_of_the_titles_may_hold_unknown_tokens(num_unknown: int, is_refused: bool) -> None:
    words = [f"w{n}" for n in range(20)]
    titles = {n: f"w{n} odd" if n < num_unknown else f"w{n}" for n in range(20)}
    catalogue, unknown = word_catalogue(titles, words)
    if is_refused:
        with pytest.raises(ValueError, match=r"does not know all of 3 of 20 titles.*'w0 odd'"):
            count_titles(catalogue, titles, unknown)
    else:
        assert count_titles(catalogue, titles, unknown) == TitleCounts(20, 0, 2)


def test_an_end_token_that_is_the_unknown_token_too_counts_nothing() -> None:
    titles = {n: f"Film {n}" for n in range(5)}
    catalogue = merged_catalogue(titles)
    end = int(catalogue.book.target[0][-1])
    counts = count_titles(catalogue, titles, end)
    assert counts == TitleCounts(5, 0, 0) and counts.note() is None


def test_a_title_is_known_by_its_number_whatever_the_order_of_the_items() -> None:
    titles = {52: "b", 3: "a", 10: "b"}
    book = build_prompt_book(byte_tokenizer(), PROMPT, list(titles), list(titles.values()))
    assert book.item_id_I.tolist() == [3, 10, 52]
    assert np.unique(book.title_I).size == 2 and book.title_I[1] == book.title_I[2]
