"""D3 against scores written out title by title."""

import math

import numpy as np
import pytest
import torch
from reference import END, Reference, dict_trie, prompt_pieces, title_ids, title_log_prob
from torch import Tensor
from toys import HISTORIES, PROMPT, TITLES, Compose, toy_catalogue, toy_frame, toy_lm

from hatllm.data.prompt import IntArray
from hatllm.decode.d3 import node_log_mass
from hatllm.decode.predict import predict
from hatllm.masks.schedule import build_schedule
from hatllm.model.backbone import tiny_llama

Words = list[str]
CLOSE = 1e-4  # as in test_searches
ITEMS = sorted(TITLES)
NUM_TITLES = len(set(TITLES.values()))


class Toy:
    """An assistant that likes items by a rule of its own."""

    def prob(self, history: IntArray) -> dict[int, float]:
        liking = {item: 1 + (item * 7 + int(history.sum())) % 11 for item in ITEMS}
        return {item: value / sum(liking.values()) for item, value in liking.items()}

    def __call__(self, histories: list[IntArray]) -> Tensor:
        return torch.tensor([list(self.prob(history).values()) for history in histories]).log()


def test_a_nodes_mass_is_that_of_the_items_below_it() -> None:
    trie = toy_catalogue().trie
    prob = Toy().prob(np.array(HISTORIES[0]))
    log_mass_N = node_log_mass(trie, torch.tensor([list(prob.values())]).log())[0]
    below = {node: 0.0 for node in range(trie.num_nodes)}
    for item in ITEMS:
        node = int(trie.leaf_of_item(torch.tensor(item)))
        while node >= 0:
            below[node] += prob[item]
            node = int(trie.parent_N[node]) if node else -1
    assert log_mass_N.exp().tolist() == pytest.approx(list(below.values()), abs=1e-6)


def test_an_item_the_assistant_all_but_rules_out_keeps_a_finite_score() -> None:
    trie = toy_catalogue().trie
    log_prob_BI = torch.full((1, len(ITEMS)), -2000.0)
    log_prob_BI[0, 0] = 0.0
    assert node_log_mass(trie, log_prob_BI).isfinite().all()


def mixed_scores(
    words: Words, history: list[int], normalize: str, weight: float, compose_config: Compose
) -> dict[str, float]:
    """Paper: at every step alpha log p_llm + (1 - alpha) log of the assistant's share."""
    schedule = build_schedule(compose_config(*words).mask, 4)
    model = Reference(tiny_llama(), schedule.letters, schedule.intra_scope, False, True)
    prob = Toy().prob(np.array(history))
    titles = {title: title_ids(PROMPT, title) for title in TITLES.values()}
    trie = dict_trie(list(titles.values()))
    scores = {}
    for title, ids in titles.items():
        pieces = prompt_pieces(PROMPT, [TITLES[item] for item in history])
        logits = model.logits(pieces, ids[:-1])
        llm = float(title_log_prob(logits, ids, trie if normalize == "trie" else None))
        assistant = 0.0
        for depth in range(len(ids)):
            with_prefix = [
                sum(p for item, p in prob.items() if titles[TITLES[item]][:size] == ids[:size])
                for size in (depth, depth + 1)
            ]
            assistant += math.log(with_prefix[1] / with_prefix[0])
        scores[title] = weight * llm + (1 - weight) * assistant
    assert END == ids[-1]
    return scores


@pytest.mark.thin("normalize fast")
@torch.no_grad()
@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("normalize", ["trie", "vocab"])
def test_a_beam_as_wide_as_the_catalogue_ranks_by_the_papers_score_under_every_mask(
    unlike_preset: Words, normalize: str, fast: bool, compose_config: Compose
) -> None:
    config = compose_config(
        *unlike_preset, "decode=d3", "decode.assistant_run=unused", "decode.llm_weight=0.4",
        f"decode.normalize={normalize}", f"decode.beam_width={NUM_TITLES}",
        f"decode.top_k={NUM_TITLES}", f"fast={fast}",
    )  # fmt: skip
    catalogue = toy_catalogue()
    catalogue.assistant = Toy()
    lm = toy_lm(build_schedule(config.mask, 4))
    table = predict(lm, catalogue, toy_frame(), config, "test")
    for row, history in zip(table.to_dicts(), HISTORIES, strict=True):
        expected = mixed_scores(unlike_preset, history, normalize, 0.4, compose_config)
        order = sorted(expected, key=expected.__getitem__, reverse=True)
        assert [TITLES[item] for item in row["top_items"]] == order
        assert row["top_log_probs"] == pytest.approx(sorted(expected.values())[::-1], abs=CLOSE)


@pytest.mark.parametrize("normalize", ["trie", "vocab"])
def test_with_all_the_weight_on_the_llm_it_is_the_plain_beam(
    normalize: str, compose_config: Compose
) -> None:
    words = [f"decode.normalize={normalize}", "decode.beam_width=3", "decode.top_k=3"]
    d3 = ["decode=d3", "decode.assistant_run=unused", "decode.llm_weight=1.0"]
    catalogue = toy_catalogue()
    catalogue.assistant = Toy()
    tables = []
    for extra in (d3, ["decode=beam"]):
        config = compose_config(*extra, *words)
        lm = toy_lm(build_schedule(config.mask, 4))
        tables.append(predict(lm, catalogue, toy_frame(), config, "test"))
    # The log-probabilities of the LLM alone are not d3's own, whatever the weight.
    own = ["target_trie_log_prob", "target_vocab_log_prob"]
    assert tables[0].schema == tables[1].schema
    assert tables[0].drop(own).equals(tables[1].drop(own))
    assert tables[0].select(own).null_count().row(0) == (len(HISTORIES), len(HISTORIES))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["decode=d3"], "decode.assistant_run=null must be given with decode=d3"),
        (["decode=beam", "decode.llm_weight=0.5"], "decode.llm_weight=0.5 must be null"),
        (["decode=d3", "decode.assistant_run=a", "decode.length_penalty=1"], "must be 0"),
        (["decode=grounding", "decode.normalize=trie"], "must be vocab and false"),
        (["loss=sdpo", "loss.beta=0"], "loss.beta=0.0 must be above 0"),
        (["loss=msl", "loss.num_negatives=3"], "loss.num_negatives=3 must be null"),
    ],
)
def test_settings_that_do_not_fit_are_named(
    words: Words, message: str, compose_config: Compose
) -> None:
    with pytest.raises(ValueError, match=message):
        compose_config(*words)
