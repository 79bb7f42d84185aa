"""Titles that are no answers: every search against all titles scored, removed and sorted."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from test_d3 import Toy
from test_titles_alike import TITLES as ALIKE
from test_titles_alike import merged_catalogue
from toys import (
    HISTORIES,
    TARGETS,
    TITLES,
    Compose,
    schedule_of,
    toy_batch,
    toy_catalogue,
    toy_frame,
    toy_lm,
)

from hatllm.decode.candidates import candidates_of
from hatllm.decode.catalogue import Catalogue
from hatllm.decode.predict import predict
from hatllm.decode.scorer import build_scorers
from hatllm.decode.search import Search

NUM_TITLES = len(set(TITLES.values()))
WIDE = [f"decode.beam_width={NUM_TITLES}"]
SEARCHES = {
    "beam": ["decode=beam", *WIDE],
    "beam over the vocabulary": ["decode=beam", "decode.normalize=vocab", *WIDE],
    "generate": ["decode=generate", *WIDE],
    "exact": ["decode=exact"],
    "d3": ["decode=d3", "decode.assistant_run=unused", "decode.llm_weight=0.4", *WIDE],
    "grounding": ["decode=grounding", "decode.max_title_tokens=6"],
}
Answers = list[list[tuple[int, float]]]


def answers(
    compose: Compose, catalogue: Catalogue, *words: str, histories: list[list[int]] = HISTORIES
) -> pl.DataFrame:
    config = compose(*words)
    catalogue.assistant = Toy() if config.decode.name == "d3" else None
    targets = TARGETS[: len(histories)]
    frame = toy_frame(histories, targets)
    return predict(toy_lm(schedule_of("IFFC")), catalogue, frame, config, "test")


def listed(table: pl.DataFrame) -> Answers:
    rows = zip(table["top_items"].to_list(), table["top_log_probs"].to_list(), strict=True)
    return [list(zip(*row, strict=True)) for row in rows]


def assert_same(got: Answers, expected: Answers) -> None:
    assert [[item for item, _ in row] for row in got] == [[i for i, _ in row] for row in expected]
    for row, other in zip(got, expected, strict=True):
        assert [p for _, p in row] == pytest.approx([p for _, p in other], abs=1e-4)


@pytest.mark.thin("search fast")
@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("top_k", [3, NUM_TITLES])
def test_without_the_history_it_is_all_titles_scored_and_the_historys_removed(
    search: str, top_k: int, fast: bool, compose_config: Compose
) -> None:
    words = [*SEARCHES[search], f"fast={fast}"]
    catalogue = toy_catalogue()
    whole = answers(compose_config, catalogue, *words, f"decode.top_k={NUM_TITLES}")
    left = answers(
        compose_config, catalogue, *words, f"decode.top_k={top_k}", "decode.exclude_history=true"
    )
    gone = [{TITLES[item] for item in history} for history in HISTORIES]
    expected = [
        [(item, p) for item, p in row if TITLES[item] not in titles][:top_k]
        for row, titles in zip(listed(whole), gone, strict=True)
    ]
    assert_same(listed(left), expected)
    for column in ("target_trie_log_prob", "target_vocab_log_prob"):
        assert left[column].to_list() == pytest.approx(whole[column].to_list(), abs=1e-5)
    for row, titles in zip(left.to_dicts(), gone, strict=True):
        found = [TITLES[item] for item in row["top_items"]]
        target = TITLES[row["target_item"]]
        rank = found.index(target) + 1 if target in found else None
        assert row["target_rank"] == rank and (target not in titles or rank is None)
    if search == "exact":
        assert left["certified"].all() and left["beam_missed"].sum() == 0


@pytest.mark.parametrize("search", SEARCHES)
def test_a_narrow_beam_still_fills_the_list_where_one_title_is_left_one_is_answered(
    search: str, compose_config: Compose
) -> None:
    few = {item: TITLES[item] for item in (3, 25, 31)}
    words = [*SEARCHES[search], "decode.beam_width=2", "decode.top_k=2"]
    words = [word for word in words if word not in WIDE]
    table = _of_one(compose_config, few, words)
    assert table["top_items"].to_list() == [[31], []]
    assert table["target_rank"].to_list() == [1, None]


def _of_one(compose: Compose, titles: dict[int, str], words: list[str]) -> pl.DataFrame:
    config = compose(*words, "decode.exclude_history=true")
    catalogue = toy_catalogue(titles)

    def assistant(histories: list[object]) -> torch.Tensor:
        return torch.full((len(histories), len(titles)), 1 / len(titles)).log()

    catalogue.assistant = assistant if config.decode.name == "d3" else None
    frame = toy_frame([[3, 25], [3, 25, 31]], [31, 31])
    return predict(toy_lm(schedule_of("IFFC")), catalogue, frame, config, "test")


def test_the_whole_history_is_left_out_though_the_model_reads_its_end(
    compose_config: Compose,
) -> None:
    words = [*SEARCHES["beam"], f"decode.top_k={NUM_TITLES}", "data.max_history_items=2"]
    words.append("data.min_history_items=1")
    whole, left = (
        answers(compose_config, toy_catalogue(), *words, f"decode.exclude_history={value}")
        for value in ("false", "true")
    )
    gone = [{TITLES[item] for item in history} for history in HISTORIES]
    expected = [
        [pair for pair in row if TITLES[pair[0]] not in titles]
        for row, titles in zip(listed(whole), gone, strict=True)
    ]
    assert_same(listed(left), expected)


@pytest.mark.parametrize("normalize", ["trie", "vocab"])
@pytest.mark.parametrize("search", ["beam", "exact"])
def test_of_titles_of_one_token_sequence_the_allowed_ones_are_given(
    search: str, normalize: str, compose_config: Compose
) -> None:
    words = [f"decode={search}", f"decode.normalize={normalize}", "decode.beam_width=8"]
    words.append("decode.top_k=8")
    histories = [[20], [11, 20, 25], [44, 31]]  # "HEAT"; all that read "heat"; "Up" and "Heat"
    tables = [
        answers(
            compose_config, merged_catalogue(), *words, f"decode.exclude_history={value}",
            histories=histories,
        )
        for value in ("false", "true")
    ]  # fmt: skip
    gone = [{ALIKE[item] for item in history} for history in histories]
    expected = [
        [pair for pair in row if ALIKE[pair[0]] not in titles]
        for row, titles in zip(listed(tables[0]), gone, strict=True)
    ]
    assert_same(listed(tables[1]), expected)


@torch.inference_mode()
@pytest.mark.parametrize("search", SEARCHES)
def test_lists_of_allowed_titles_and_blocked_ones_go_together(
    search: str, compose_config: Compose
) -> None:
    words = [*SEARCHES[search], f"decode.top_k={NUM_TITLES}"]
    config, catalogue = compose_config(*words), toy_catalogue()
    catalogue.assistant = Toy() if search == "d3" else None
    lm = toy_lm(schedule_of("IFFC"))
    histories, batch = HISTORIES, toy_batch(catalogue.book, True, with_target=False)
    lengths = batch.prompt_length_B.numpy()
    scorers = build_scorers(lm, catalogue, config, lengths)
    find = Search(scorers, catalogue, config.decode)
    shared = [10, 3, 25, 31, 11]
    only, block = [shared, None, shared], [[31], [10, 44], []]
    arrays = [np.array(history) for history in histories]
    whole, _ = find(scorers.of(batch), arrays)
    candidates = candidates_of(catalogue, block, only, "cpu")
    left, _ = find(scorers.of(batch), arrays, candidates)
    titled = {int(leaf): TITLES[item] for item, leaf in _leaves(catalogue)}
    for user in range(3):
        allowed = {TITLES[item] for item in only[user] or TITLES}
        allowed -= {TITLES[item] for item in block[user]}
        expected = [x for x in whole.leaf_BW[user].tolist() if titled[x] in allowed]
        found = [leaf for leaf in left.leaf_BW[user].tolist() if leaf >= 0]
        assert found == expected and len(found) == len(allowed)
        assert int(candidates.num_leaves_B[user]) == len(allowed)


def _leaves(catalogue: Catalogue) -> list[tuple[int, int]]:
    return [(item, catalogue.trie.leaf_of_item(torch.tensor([item]))) for item in TITLES]


def test_a_node_is_alive_where_an_allowed_title_lies_below_it() -> None:
    catalogue = toy_catalogue()
    trie = catalogue.trie
    only, block = [[3, 10, 11], None, None], [[10], [3, 10, 25], list(TITLES)]
    candidates = candidates_of(catalogue, block, only, "cpu")
    for user in range(3):
        allowed = {TITLES[item] for item in only[user] or TITLES}
        allowed -= {TITLES[item] for item in block[user]}
        expected = set()
        for item, title in TITLES.items():
            if title in allowed:
                node = int(trie.leaf_of_item(torch.tensor([item])))
                while node > 0:
                    expected.add(node)
                    node = int(trie.parent_N[node])
        nodes = torch.arange(1, trie.num_nodes)
        alive = candidates.alive(torch.full_like(nodes, user), nodes)
        assert set(nodes[alive].tolist()) == expected
    assert candidates.num_leaves_B.tolist() == [2, NUM_TITLES - 3, 0]


def test_an_item_outside_the_catalogue_is_refused() -> None:
    with pytest.raises(ValueError, match="item_id 4 is not in the catalogue"):
        candidates_of(toy_catalogue(), [[4]], None, "cpu")


def test_the_number_of_leaves_below_a_node_is_counted_by_hand() -> None:
    catalogue = toy_catalogue({1: "ab", 2: "ac", 3: "b"})
    assert catalogue.num_leaves_N.tolist() == catalogue_counts(catalogue)
    assert replace(catalogue).num_leaves_N[0] == 3


def catalogue_counts(catalogue: Catalogue) -> list[int]:
    trie = catalogue.trie

    def below(node: int) -> int:
        first, number = int(trie.first_child_N[node]), int(trie.num_children_N[node])
        return sum(below(child) for child in range(first, first + number)) if number else 1

    return [below(node) for node in range(trie.num_nodes)]
