"""IGD's decoding against scores written out title by title."""

import math

import pytest
import torch
from reference import Reference, dict_trie, prompt_pieces, title_ids, title_log_prob
from toys import HISTORIES, PROMPT, TITLES, Compose, toy_catalogue, toy_frame, toy_lm

from hatllm.decode.catalogue import Catalogue
from hatllm.decode.information_gain import gain_factors
from hatllm.decode.predict import predict
from hatllm.masks.schedule import build_schedule
from hatllm.model.backbone import tiny_llama
from hatllm.runs.name import config_hash, settings_by_name

Words = list[str]
CLOSE = 1e-4  # as in test_searches
ITEMS = sorted(TITLES)
NUM_TITLES = len(set(TITLES.values()))
COUNTS = {item: (place * 5) % 7 for place, item in enumerate(ITEMS)}
IDS = {item: tuple(title_ids(PROMPT, title)) for item, title in TITLES.items()}


def catalogue_with_counts() -> Catalogue:
    catalogue = toy_catalogue()
    catalogue.train_count_I = torch.tensor([COUNTS[item] for item in ITEMS])
    return catalogue


def uncertainty(prefix: tuple[int, ...]) -> float:
    """Sum of -p log p over the items whose titles begin so."""
    total = sum(COUNTS.values())
    shares = [COUNTS[i] / total for i, ids in IDS.items() if ids[: len(prefix)] == prefix]
    return -sum(share * math.log(share) for share in shares if share > 0)


def factor(prefix: tuple[int, ...], token: int, alpha: float) -> float:
    """The authors' mask: 1 - alpha (diff - least) / (most - least), diff = minus the gain."""
    size = len(prefix)
    tokens = {ids[size] for ids in IDS.values() if ids[:size] == prefix and len(ids) > size}
    diff = {t: -(uncertainty(prefix) - uncertainty((*prefix, t))) for t in tokens}
    least, most = min(diff.values()), max(diff.values())
    if most - least < 1e-12:
        return 1.0
    return 1 - alpha * (diff[token] - least) / (most - least)


def scores(
    words: Words, history: list[int], normalize: str, alpha: float, compose_config: Compose
) -> dict[str, float]:
    schedule = build_schedule(compose_config(*words).mask, 4)
    model = Reference(tiny_llama(), schedule.letters, schedule.intra_scope, False, True)
    trie = dict_trie([list(ids) for ids in IDS.values()]) if normalize == "trie" else None
    found = {}
    for item, ids in IDS.items():
        pieces = prompt_pieces(PROMPT, [TITLES[past] for past in history])
        logits = model.logits(pieces, list(ids[:-1]))
        upto = [float(title_log_prob(logits, list(ids[:n]), trie)) for n in range(len(ids) + 1)]
        found[TITLES[item]] = sum(
            factor(ids[:n], token, alpha) * (upto[n + 1] - upto[n]) for n, token in enumerate(ids)
        )
    return found


def test_the_token_that_gains_least_counts_least_and_forced_ones_in_full() -> None:
    trie = catalogue_with_counts().trie
    count_I = torch.tensor([COUNTS[item] for item in ITEMS])
    factor_N = gain_factors(trie, count_I, 0.3).tolist()
    paths: dict[int, tuple[int, ...]] = {0: ()}
    for node in range(1, trie.num_nodes):
        before = paths[int(trie.parent_N[node])]
        paths[node] = (*before, int(trie.token_N[node]))
        assert factor_N[node] == pytest.approx(factor(before, paths[node][-1], 0.3), abs=1e-9)
    assert factor_N[0] == 1 and min(factor_N) == pytest.approx(0.7)
    branching = {node for node in range(trie.num_nodes) if trie.is_branching_N[node]}
    forced = [n for n in range(1, trie.num_nodes) if int(trie.parent_N[n]) not in branching]
    assert forced and all(factor_N[node] == 1 for node in forced)


@pytest.mark.thin("normalize fast")
@torch.no_grad()
@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("normalize", ["trie", "vocab"])
def test_a_beam_as_wide_as_the_catalogue_ranks_by_the_weighed_sum_under_every_mask(
    unlike_preset: Words, normalize: str, fast: bool, compose_config: Compose
) -> None:
    config = compose_config(
        *unlike_preset, "decode=beam", "decode.information_gain=0.4",
        f"decode.normalize={normalize}",
        f"decode.beam_width={NUM_TITLES}", f"decode.top_k={NUM_TITLES}", f"fast={fast}",
    )  # fmt: skip
    lm = toy_lm(build_schedule(config.mask, 4))
    table = predict(lm, catalogue_with_counts(), toy_frame(), config, "test")
    assert table["target_trie_log_prob"].null_count() == len(HISTORIES)
    for row, history in zip(table.to_dicts(), HISTORIES, strict=True):
        expected = scores(unlike_preset, history, normalize, 0.4, compose_config)
        order = sorted(expected, key=expected.__getitem__, reverse=True)
        assert [TITLES[item] for item in row["top_items"]] == order
        assert row["top_log_probs"] == pytest.approx(sorted(expected.values())[::-1], abs=CLOSE)


def test_with_alpha_zero_it_is_the_plain_beam(compose_config: Compose) -> None:
    words = ["decode.beam_width=3", "decode.top_k=3"]
    tables = []
    for extra in (["decode.information_gain=0"], []):
        config = compose_config(*words, *extra)
        lm = toy_lm(build_schedule(config.mask, 4))
        tables.append(predict(lm, catalogue_with_counts(), toy_frame(), config, "test"))
    own = ["target_trie_log_prob", "target_vocab_log_prob"]
    assert tables[0].drop(own).equals(tables[1].drop(own))


def test_what_does_not_fit_is_named(compose_config: Compose) -> None:
    for words, said in (
        (["decode=exact", "decode.information_gain=0.1"], "information_gain=0.1 must be null"),
        (["decode.information_gain=2"], "decode.information_gain=2.0 must be between 0.0 and 1.0"),
    ):
        with pytest.raises(ValueError, match=said):
            compose_config(*words)
    config = compose_config("decode.information_gain=0.1")
    lm = toy_lm(build_schedule(config.mask, 4))
    with pytest.raises(ValueError, match="needs the train rows, which task=train"):
        predict(lm, toy_catalogue(), toy_frame(), config, "test")
    catalogue = toy_catalogue()
    catalogue.train_count_I = torch.zeros(len(ITEMS), dtype=torch.int64)
    with pytest.raises(ValueError, match="no item is a train target"):
        predict(lm, catalogue, toy_frame(), config, "test")


def test_runs_without_it_keep_the_names_that_they_had(compose_config: Compose) -> None:
    plain, weighed = compose_config(), compose_config("decode.information_gain=0.1")
    assert "decode.information_gain" not in settings_by_name(plain)
    assert config_hash(plain) != config_hash(weighed)
