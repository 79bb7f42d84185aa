"""Every search against brute force, against itself without shortcuts, and against transformers."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from families import build
from peft import LoraConfig, get_peft_model
from reference import (
    END,
    Reference,
    byte_ids,
    dict_trie,
    prompt_pieces,
    title_ids,
    title_log_prob,
)
from toys import (
    HISTORIES,
    PROMPT,
    TARGETS,
    TITLES,
    Compose,
    schedule_of,
    toy_batch,
    toy_book,
    toy_catalogue,
    toy_frame,
    toy_lm,
)
from transformers import LlamaConfig, LlamaForCausalLM

from hatllm.config import Config, PromptConfig
from hatllm.decode.beam import beam_search
from hatllm.decode.catalogue import Catalogue
from hatllm.decode.exact import exact_search
from hatllm.decode.fast.catalogue_states import catalogue_states, states_file, tokens_to_build
from hatllm.decode.fast.tree_scorer import TreeScorers
from hatllm.decode.predict import predict, title_log_probs
from hatllm.decode.scorer import PlainScorers
from hatllm.masks.schedule import Schedule, build_schedule
from hatllm.model.backbone import tiny_llama
from hatllm.model.masked_lm import MaskedLM

Words = list[str]
Ranked = list[tuple[float, str]]

NUM_TITLES = len(set(TITLES.values()))
ALL_TITLES = [f"decode.beam_width={NUM_TITLES}", f"decode.top_k={NUM_TITLES}"]
# Float32 against float64 (or another order of sums), summed over a title of ten tokens.
CLOSE = 1e-4


def ranked_by_reference(
    schedule: Schedule, normalize: str, prompt: PromptConfig = PROMPT
) -> list[Ranked]:
    """Every title's log-probability for every user, by teacher forcing, best first."""
    key = (prompt.prefix, prompt.history_item, prompt.response, prompt.target)
    return _ranked(schedule, normalize, key)


@cache
def _ranked(schedule: Schedule, normalize: str, texts: tuple[str, ...]) -> list[Ranked]:
    prompt = PromptConfig(*texts)
    titles = sorted(set(TITLES.values()))
    trie = dict_trie([title_ids(prompt, title) for title in titles])
    ranked = []
    for history in HISTORIES:
        scored = []
        for title in titles:
            ids = title_ids(prompt, title)
            logits = _logits(schedule, texts, tuple(history), title)
            log_prob = title_log_prob(logits, ids, trie if normalize == "trie" else None)
            scored.append((float(log_prob), title))
        ranked.append(sorted(scored, reverse=True))
    return ranked


@cache
def _logits(
    schedule: Schedule, texts: tuple[str, ...], history: tuple[int, ...], title: str
) -> torch.Tensor:
    prompt = PromptConfig(*texts)
    pieces = prompt_pieces(prompt, [TITLES[item] for item in history])
    with torch.no_grad():
        return _reference(schedule).logits(pieces, title_ids(prompt, title)[:-1])


@cache
def _reference(schedule: Schedule) -> Reference:
    return Reference(
        tiny_llama(), schedule.letters, schedule.intra_scope, schedule.cross_sees_self,
        schedule.target_is_item,
    )  # fmt: skip


def found(table: pl.DataFrame, titles: dict[int, str] = TITLES) -> list[Ranked]:
    """The answers of a predictions table as (log_prob, title)."""
    return [
        [(p, titles[item]) for p, item in zip(log_probs, items, strict=True)]
        for log_probs, items in zip(table["top_log_probs"], table["top_items"], strict=True)
    ]


def assert_same_answers(got: list[Ranked], expected: list[Ranked]) -> None:
    assert [[title for _, title in user] for user in got] == [
        [title for _, title in user] for user in expected
    ]
    for user, expected_user in zip(got, expected, strict=True):
        assert [p for p, _ in user] == pytest.approx([p for p, _ in expected_user], abs=CLOSE)


def predict_toys(lm: MaskedLM, config: Config, **changes: Any) -> pl.DataFrame:
    frame = changes.pop("frame", toy_frame())
    catalogue = changes.pop("catalogue", toy_catalogue())
    return predict(lm, catalogue, frame, config, "test")


@pytest.mark.long
class TestEveryMask:
    """Fast, plain, beam and exact agree with brute force under every preset."""

    @pytest.fixture(params=["trie", "vocab"])
    def normalize(self, request: pytest.FixtureRequest) -> str:
        return request.param

    @pytest.fixture(params=[True, False], ids=["title is an item", "title is template"])
    def schedule(
        self, request: pytest.FixtureRequest, preset: Words, compose_config: Compose
    ) -> Schedule:
        schedule = build_schedule(compose_config(*preset).mask, 4)
        return replace(schedule, target_is_item=request.param)

    @pytest.mark.thin("schedule normalize")
    def test_a_beam_as_wide_as_the_catalogue_is_brute_force(
        self, schedule: Schedule, normalize: str, compose_config: Compose
    ) -> None:
        config = compose_config(f"decode.normalize={normalize}", *ALL_TITLES)
        table = predict_toys(toy_lm(schedule), config)
        assert_same_answers(found(table), ranked_by_reference(schedule, normalize))

    @pytest.mark.thin("schedule normalize")
    def test_exact_search_is_brute_force_and_proves_it(
        self, schedule: Schedule, normalize: str, compose_config: Compose
    ) -> None:
        words = ["decode=exact", f"decode.normalize={normalize}", "decode.top_k=3"]
        table = predict_toys(toy_lm(schedule), compose_config(*words))
        brute = ranked_by_reference(schedule, normalize)
        assert_same_answers(found(table), [user[:3] for user in brute])
        assert table["certified"].all() and (table["gap"] >= 0).all()

    @pytest.mark.thin("schedule normalize")
    def test_the_cached_tree_is_a_full_forward_pass_for_every_step(
        self, schedule: Schedule, normalize: str, compose_config: Compose
    ) -> None:
        words = [f"decode.normalize={normalize}", "decode.beam_width=3", "decode.top_k=3"]
        fast, plain = (
            predict_toys(toy_lm(schedule), compose_config(*words, f"fast={fast}"))
            for fast in (True, False)
        )
        assert_same_answers(found(fast), found(plain))
        for column in ("target_trie_log_prob", "target_vocab_log_prob"):
            assert fast[column].to_list() == pytest.approx(plain[column].to_list(), abs=CLOSE)

    @pytest.mark.thin()
    def test_a_targets_log_probability_is_brute_force(
        self, schedule: Schedule, compose_config: Compose
    ) -> None:
        table = predict_toys(toy_lm(schedule), compose_config())
        for normalize in ("trie", "vocab"):
            brute = [dict((t, p) for p, t in u) for u in ranked_by_reference(schedule, normalize)]
            expected = [user[TITLES[target]] for user, target in zip(brute, TARGETS, strict=True)]
            got = table[f"target_{normalize}_log_prob"].to_list()
            assert got == pytest.approx(expected, abs=CLOSE)


TEMPLATES = {
    "no prefix": PromptConfig("", '"{title}"\n', 'Next: "', '{title}"'),
    "no response": PromptConfig("Seen:\n", '"{title}"\n', "", '{title}"'),
    "no quotes": PromptConfig("Seen:\n", "{title}\n", "Next:", " {title}"),
}


@pytest.mark.thin("template fast", "fast scope", "scope target_is_item")
@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("scope", ["items", "segments"])
@pytest.mark.parametrize("target_is_item", [True, False])
@pytest.mark.parametrize("template", TEMPLATES)
def test_odd_templates_are_decoded_as_they_are_trained(
    template: str, target_is_item: bool, scope: str, fast: bool, compose_config: Compose
) -> None:
    prompt = TEMPLATES[template]
    schedule = schedule_of("IFIC", scope, target_is_item=target_is_item)
    lm, catalogue = toy_lm(schedule), toy_catalogue(prompt=prompt)
    config = compose_config(*ALL_TITLES, f"fast={fast}")
    table = predict_toys(lm, config, catalogue=catalogue)
    assert_same_answers(found(table), ranked_by_reference(schedule, "trie", prompt))
    batch = toy_batch(catalogue.book, target_is_item, with_target=True)
    with torch.no_grad():
        hidden_BLD = lm.hidden_of_prompts(batch.input_ids_BL, batch.tokens, batch.valid_BL)
        logits_TV = lm.logits(hidden_BLD[batch.target_row_T, batch.target_column_T])
    log_prob_T = logits_TV.log_softmax(-1).gather(1, batch.target_token_T[:, None])[:, 0]
    trained_B = torch.zeros(len(TARGETS)).index_add(0, batch.target_row_T, log_prob_T)
    assert table["target_vocab_log_prob"].to_list() == pytest.approx(trained_B.tolist(), abs=CLOSE)


@pytest.mark.parametrize("family", ["Mistral", "Gemma2", "Gemma3Text", "SmolLM3", "Phi3"])
@pytest.mark.parametrize("scope", ["items", "segments"])
def test_the_cached_tree_keeps_a_familys_own_window_caps_and_positions(
    family: str, scope: str, compose_config: Compose
) -> None:
    answers = []
    for fast in (True, False):
        lm = MaskedLM(build(family, vocab_size=258), schedule_of("IFCF", scope), "eager")
        answers.append(predict_toys(lm, compose_config(*ALL_TITLES, f"fast={fast}")))
    assert_same_answers(*map(found, answers))


class TestTransformersGenerate:
    """Under `vocab` a beam search is what transformers does with `prefix_allowed_tokens_fn`."""

    def generate(
        self, model: LlamaForCausalLM, prompt: list[int], width: int, **settings: Any
    ) -> Ranked:
        titles = {tuple(title_ids(PROMPT, title)): title for title in TITLES.values()}
        trie = dict_trie([list(ids) for ids in titles])

        def allowed(_: int, ids: torch.Tensor) -> list[int]:
            node = trie
            for token in ids[len(prompt) :].tolist():
                # Where there are fewer than W legal hypotheses, transformers carries dead ones at
                # -1e9 or below; they must be allowed something.
                node = node.get(token) or {END: {}}
            return list(node)

        out = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            num_beams=width,
            num_return_sequences=width,
            prefix_allowed_tokens_fn=allowed,
            max_new_tokens=max(map(len, titles)),
            do_sample=False,
            output_scores=True,
            return_dict_in_generate=True,
            pad_token_id=END,
            eos_token_id=END,
            **settings,
        )
        answers = []
        for row, sequence in enumerate(out.sequences[:, len(prompt) :].tolist()):
            # Rows are padded with the end token after their own.
            title = titles[tuple(sequence[: sequence.index(END) + 1])]
            if width == 1:  # greedy: transformers gives no sequences_scores
                logits = model(torch.tensor([prompt + sequence])).logits[0, len(prompt) - 1 :]
                ids = sequence[: sequence.index(END) + 1]
                answers.append((float(title_log_prob(logits, ids, None)), title))
            else:
                answers.append((float(out.sequences_scores[row]), title))
        return answers

    def model(self, seed: int) -> LlamaForCausalLM:
        config = tiny_llama(2).config.to_dict() | {"initializer_range": 0.1 + 0.1 * seed}
        torch.manual_seed(seed)
        return LlamaForCausalLM(LlamaConfig(**config)).eval()

    @pytest.mark.thin()
    @torch.no_grad()
    @pytest.mark.parametrize("seed", range(4))
    @pytest.mark.parametrize(
        ("width", "words", "settings"),
        [
            (1, "generate", {}),
            (2, "generate", {}),  # transformers' defaults: length penalty 1, early_stopping=False
            (3, "generate", {}),
            (3, "beam", {"length_penalty": 0.0}),
            (5, "beam", {"length_penalty": 0.0}),
            # The one stopping rule of transformers that is safe when longer may be better.
            (2, "beam decode.length_penalty=1.0", {"early_stopping": "never"}),
            (3, "beam decode.length_penalty=1.0", {"early_stopping": "never"}),
        ],
    )
    def test_the_same_titles_in_the_same_order_with_the_same_scores(
        self,
        width: int,
        words: str,
        settings: dict[str, Any],
        seed: int,
        compose_config: Compose,
    ) -> None:
        expected = []
        for history in HISTORIES:
            items = "".join(PROMPT.history_item.replace("{title}", TITLES[i]) for i in history)
            prompt = byte_ids(PROMPT.prefix + items + PROMPT.response)
            expected.append(self.generate(self.model(seed), prompt, width, **settings))
        search = [f"decode={words.split()[0]}", "decode.normalize=vocab", *words.split()[1:]]
        sizes = [f"decode.beam_width={width}", f"decode.top_k={width}"]
        config = compose_config(*search, *sizes)
        # Greedy search has no length penalty in its answer.
        penalty = config.decode.length_penalty if width > 1 else 0.0
        lm = MaskedLM(self.model(seed), schedule_of("FF"), "sdpa")
        got = found(predict_toys(lm, config))
        lengths = {title: len(title_ids(PROMPT, title)) for title in TITLES.values()}
        scores = [[(p / lengths[t] ** penalty, t) for p, t in user] for user in got]
        assert_same_answers(scores, expected)


# --- What must not matter ------------------------------------------------------------------------

SEARCHES = [
    "decode=beam decode.beam_width=3 decode.top_k=3",
    "decode=beam decode.normalize=vocab decode.beam_width=3 decode.top_k=3",
    "decode=generate decode.beam_width=3 decode.top_k=3",
    "decode=exact decode.top_k=3",
]
USERS = ([*HISTORIES, [70, 52], [25]], [*TARGETS, 52, 11])


@pytest.mark.parametrize("words", SEARCHES)
def test_results_do_not_depend_on_batches_padding_or_the_order_of_users(
    words: str, compose_config: Compose
) -> None:
    lm, frame = toy_lm(schedule_of("IFFC")), toy_frame(*USERS)
    tables = []
    for users_per_batch, order in [
        (1, [0, 1, 2, 3, 4]),
        (2, [3, 0, 4, 2, 1]),
        (16, [4, 3, 2, 1, 0]),
    ]:
        config = compose_config(*words.split(), f"decode.users_per_batch={users_per_batch}")
        tables.append(predict_toys(lm, config, frame=frame[order]))
    for table in tables[1:]:
        assert_same_answers(found(table), found(tables[0]))
        exactly = ["example_id", "user_id", "target_item", "target_rank", "target_item_rank"]
        assert table[exactly].equals(tables[0][exactly])


def test_each_example_is_answered_once_and_sorted(compose_config: Compose) -> None:
    frame = toy_frame(*USERS)
    doubled = pl.concat([frame[[4, 2]], frame])  # as a distributed sampler pads
    table = predict_toys(toy_lm(schedule_of("IFFC")), compose_config(), frame=doubled)
    assert table["example_id"].to_list() == frame["example_id"].to_list()
    assert table["user_id"].to_list() == frame["user_id"].to_list()
    assert table["history_length"].to_list() == [len(history) for history in USERS[0]]


def test_only_the_newest_items_enter_the_prompt(compose_config: Compose) -> None:
    lm, config = (
        toy_lm(schedule_of("IFFC")),
        compose_config("data.max_history_items=2", "data.min_history_items=1"),
    )
    long, short = toy_frame([[44, 52, 70, 3, 25]], [3]), toy_frame([[3, 25]], [3])
    answers = [predict(lm, toy_catalogue(), f, config, "test") for f in (long, short)]
    assert_same_answers(*map(found, answers))
    assert answers[0]["history_length"].to_list() == [5]


def test_decoding_leaves_the_models_mode_as_it_was(compose_config: Compose) -> None:
    lm, config = toy_lm(schedule_of("FFFF")), compose_config()
    for training in (True, False):
        lm.train(training)
        predict_toys(lm, config)
        assert lm.training == training


# --- Titles that share, nest or stand alone ------------------------------------------------------


@pytest.mark.parametrize("search", ["decode=beam", "decode=exact"])
def test_ranks_count_titles_and_items_with_a_shared_title_by_id(
    search: str, compose_config: Compose
) -> None:
    lm = toy_lm(schedule_of("IFFC"))
    targets = sorted(TITLES)
    frame = toy_frame([HISTORIES[0]] * len(targets), targets)
    config = compose_config(search, *ALL_TITLES)
    table = predict_toys(lm, config, frame=frame)
    order = [title for _, title in ranked_by_reference(lm.schedule, "trie")[0]]
    items = [item for title in order for item in targets if TITLES[item] == title]
    assert table["target_rank"].to_list() == [order.index(TITLES[t]) + 1 for t in targets]
    assert table["target_item_rank"].to_list() == [items.index(t) + 1 for t in targets]
    assert table["ambiguous"].to_list() == [t in (11, 20) for t in targets]
    heat = [items for items in table["top_items"][0].to_list() if TITLES[items] == "Heat"]
    assert heat == [11]  # the smallest id speaks for its title


def test_a_target_that_is_not_found_has_no_rank(compose_config: Compose) -> None:
    lm = toy_lm(schedule_of("IFFC"))
    last = ranked_by_reference(lm.schedule, "trie")[0][-1][1]
    target = next(item for item, title in TITLES.items() if title == last)
    config = compose_config("decode.beam_width=2", "decode.top_k=2")
    table = predict_toys(lm, config, frame=toy_frame([HISTORIES[0]], [target]))
    assert table["target_rank"].to_list() == table["target_item_rank"].to_list() == [None]
    assert table["target_trie_log_prob"][0] < 0.0  # measured all the same


@pytest.mark.parametrize("normalize", ["trie", "vocab"])
@pytest.mark.parametrize("search", ["decode=beam", "decode=exact"])
@pytest.mark.parametrize("fast", [True, False])
def test_a_catalogue_of_one_item_has_one_answer(
    search: str, normalize: str, fast: bool, compose_config: Compose
) -> None:
    lm, titles = toy_lm(schedule_of("IFFC")), {3: "Toy Story"}
    words = [search, f"decode.normalize={normalize}", f"fast={fast}"]
    table = predict_toys(
        lm, compose_config(*words),
        catalogue=toy_catalogue(titles), frame=toy_frame([[3, 3]], [3]),
    )  # fmt: skip
    assert table["top_items"].to_list() == [[3]]
    assert table["target_rank"].to_list() == [1]
    assert table["target_trie_log_prob"][0] == 0.0  # nothing to choose
    ids = title_ids(PROMPT, "Toy Story")
    reference = Reference(tiny_llama(), "IFFC", "items", False, True)
    pieces = prompt_pieces(PROMPT, ["Toy Story", "Toy Story"])
    with torch.no_grad():
        vocab = float(title_log_prob(reference.logits(pieces, ids[:-1]), ids, None))
    expected = 0.0 if normalize == "trie" else vocab
    assert table["top_log_probs"][0].to_list() == pytest.approx([expected], abs=CLOSE)
    assert table["target_vocab_log_prob"][0] == pytest.approx(vocab, abs=CLOSE)


@pytest.mark.parametrize("normalize", ["trie", "vocab"])
def test_a_title_that_begins_another_competes_through_its_end_token(
    normalize: str, compose_config: Compose
) -> None:
    prompt = PromptConfig("Seen:\n", "{title}\n", "Next: ", "{title}")  # "Toy" begins "Toy Story"
    schedule = schedule_of("IFFC")
    config = compose_config(f"decode.normalize={normalize}", *ALL_TITLES)
    table = predict_toys(toy_lm(schedule), config, catalogue=toy_catalogue(prompt=prompt))
    assert_same_answers(found(table), ranked_by_reference(schedule, normalize, prompt))


# --- Beam and exact, compared --------------------------------------------------------------------


def scorer_of(lm: MaskedLM) -> tuple[Any, Catalogue]:
    catalogue = toy_catalogue()
    batch = toy_batch(catalogue.book, lm.schedule.target_is_item, with_target=False)
    return TreeScorers(lm, catalogue).of(batch), catalogue


@torch.no_grad()
@pytest.mark.parametrize("normalize", ["trie", "vocab"])
def test_a_length_penalty_ranks_by_log_probability_over_length(
    normalize: str, compose_config: Compose
) -> None:
    words = ["decode.length_penalty=1.5", f"decode.normalize={normalize}", *ALL_TITLES]
    lm = toy_lm(schedule_of("IFFC"))
    scorer, catalogue = scorer_of(lm)
    answers = beam_search(scorer, compose_config(*words).decode)
    for user, ranked in enumerate(ranked_by_reference(lm.schedule, normalize)):
        scores = [(p / len(title_ids(PROMPT, title)) ** 1.5, title) for p, title in ranked]
        expected = sorted(scores, reverse=True)
        leaves = answers.leaf_BW[user].tolist()
        titles = [TITLES[int(catalogue.trie.items_of_leaf(leaf)[0])] for leaf in leaves]
        assert titles == [title for _, title in expected]
        got = answers.score_BW[user].tolist()
        assert got == pytest.approx([score for score, _ in expected], abs=CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("normalize", ["trie", "vocab"])
@pytest.mark.parametrize("max_expansions", [1, 2, 3, 5, 8, 100])
@pytest.mark.parametrize("top_k", [1, 3, 8])
def test_a_certificate_tells_the_truth_however_early_the_search_is_cut_off(
    top_k: int, max_expansions: int, normalize: str, compose_config: Compose
) -> None:
    words = [f"decode.max_expansions={max_expansions}", f"decode.top_k={top_k}"]
    config = compose_config("decode=exact", f"decode.normalize={normalize}", *words).decode
    lm = toy_lm(schedule_of("IFFC"))
    scorer, catalogue = scorer_of(lm)
    answers, certificate = exact_search(scorer, config)
    trie = catalogue.trie
    askable = trie.is_branching_N if normalize == "trie" else trie.num_children_N > 0
    for user, ranked in enumerate(ranked_by_reference(lm.schedule, normalize)):
        found_leaves = [leaf for leaf in answers.leaf_BW[user].tolist() if leaf >= 0]
        titles = [TITLES[int(trie.items_of_leaf(leaf)[0])] for leaf in found_leaves]
        best = [title for _, title in ranked[:top_k]]
        bound, gap = float(certificate.bound_B[user]), float(certificate.gap_B[user])
        assert int(certificate.expanded_B[user]) <= max_expansions
        if certificate.exact_B[user]:
            assert titles == best
        else:
            assert gap < 0
            assert int(certificate.expanded_B[user]) == max_expansions
        kth = float(answers.log_prob_BW[user, top_k - 1])
        unseen = [p for p, title in ranked if title not in titles]
        # What is not answered was either seen and is worse than the K-th, or is bounded.
        assert all(p <= max(bound, kth) + CLOSE for p in unseen)
        everything_was_asked = int(certificate.expanded_B[user]) == int(askable.sum())
        assert (bound == float("-inf")) == everything_was_asked
        assert gap == pytest.approx(float("inf") if everything_was_asked else kth - bound, abs=1e-5)


def test_a_search_cut_off_says_so_in_the_table(compose_config: Compose) -> None:
    words = ["decode=exact", "decode.max_expansions=1", "decode.top_k=3"]
    table = predict_toys(toy_lm(schedule_of("IFFC")), compose_config(*words))
    assert not table["certified"].any()
    assert (table["gap"] < 0).all()


def test_what_a_narrow_beam_missed_is_counted(compose_config: Compose) -> None:
    lm = toy_lm(schedule_of("IFFC"))
    missed = []
    frame = toy_frame([[item] for item in TITLES], list(TITLES))
    for seed in range(2):
        torch.manual_seed(seed)
        for parameter in lm.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        narrow = compose_config("decode.beam_width=2", "decode.top_k=2")
        exact = compose_config("decode=exact", "decode.beam_width=2", "decode.top_k=2")
        beam_items = predict_toys(lm, narrow, frame=frame)["top_items"].to_list()
        table = predict_toys(lm, exact, frame=frame)
        for user, items in enumerate(table["top_items"].to_list()):
            assert table["beam_missed"][user] == len(set(items) - set(beam_items[user]))
            missed.append(table["beam_missed"][user])
    assert sum(missed) > 0  # so that the count was tried


# --- The tree of hypotheses ----------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("scope", ["items", "segments"])
def test_hidden_states_do_not_depend_on_what_was_asked_before(scope: str) -> None:
    lm = toy_lm(schedule_of("IFIC", scope))
    catalogue = toy_catalogue()
    batch = toy_batch(catalogue.book, True, with_target=False)
    nodes = catalogue.trie.num_nodes
    user_M = torch.arange(3).repeat_interleave(nodes)
    node_M = torch.arange(nodes).repeat(3)
    plain = PlainScorers(lm, catalogue).of(batch).hidden_at
    expected_MD = plain(user_M, node_M)
    for seed in range(2):
        tree = TreeScorers(lm, catalogue).of(batch)
        generator = torch.Generator().manual_seed(seed)
        order_M = torch.randperm(len(user_M), generator=generator)
        for chosen in order_M.split(23):
            got = tree.hidden_at(user_M[chosen], node_M[chosen])
            torch.testing.assert_close(got, expected_MD[chosen], rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("target_is_item", [True, False])
@pytest.mark.parametrize("letters", ["IFFC", "IIFI", "IIII"])
def test_states_of_the_catalogue_change_no_hidden_state(
    letters: str, target_is_item: bool, tmp_path: Path
) -> None:
    lm = toy_lm(schedule_of(letters, "segments", target_is_item=target_is_item))
    catalogue = toy_catalogue()
    batch = toy_batch(catalogue.book, target_is_item, with_target=False)
    askable = (catalogue.trie.num_children_N > 0).nonzero()[:, 0]
    user_M, node_M = torch.arange(3).repeat_interleave(len(askable)), askable.repeat(3)
    expected_MD = PlainScorers(lm, catalogue).of(batch).hidden_at(user_M, node_M)
    if letters == "IIII":  # nothing is left to run
        with pytest.raises(ValueError, match="4 of 4 are"):
            catalogue_states(lm, catalogue, tmp_path)
        return
    for _ in range(2):  # built, then read
        states = catalogue_states(lm, catalogue, tmp_path)
        got = TreeScorers(lm, catalogue, states).of(batch).hidden_at(user_M, node_M)
        torch.testing.assert_close(got, expected_MD, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_states_belong_to_one_state_of_the_weights(tmp_path: Path) -> None:
    lm, catalogue = toy_lm(schedule_of("IIFC", "segments")), toy_catalogue()
    files = [states_file(lm, catalogue, tmp_path)]
    for layer in (2, 1):  # a full layer, then a segment layer
        lm.decoder.layers[layer].mlp.up_proj.weight.add_(0.1)
        files.append(states_file(lm, catalogue, tmp_path))
    assert files[0] == files[1] != files[2]
    other = toy_catalogue({**TITLES, 3: "Toy Story 2"})
    assert states_file(lm, other, tmp_path) != files[2]
    longer = replace(lm.schedule, patterns=lm.schedule.patterns[:1] + ("full",) * 3)
    assert states_file(toy_lm(longer), catalogue, tmp_path) != files[0]


@torch.no_grad()
def test_states_of_another_adapter_strength_have_another_file(tmp_path: Path) -> None:
    catalogue, files = toy_catalogue(), set()
    for alpha in (4, 64):
        lm = toy_lm(schedule_of("IIFC", "segments"))
        lora = LoraConfig(r=2, lora_alpha=alpha, target_modules=["q_proj"], task_type="CAUSAL_LM")
        torch.manual_seed(0)
        lm.model = get_peft_model(lm.backbone[0], lora)
        files.add(states_file(lm, catalogue, tmp_path))
        with lm.model.disable_adapter():
            files.add(states_file(lm, catalogue, tmp_path))
    assert len(files) == 4


def test_a_broken_build_leaves_nothing_and_a_damaged_file_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    lm, catalogue = toy_lm(schedule_of("IIFC", "segments")), toy_catalogue()
    with monkeypatch.context() as broken:
        broken.setattr("hatllm.decode.fast.catalogue_states.states_after", interrupted)
        with pytest.raises(KeyboardInterrupt):
            catalogue_states(lm, catalogue, tmp_path)
    assert not list(tmp_path.glob("*.part")) and not list(tmp_path.glob("*.safetensors"))
    whole = catalogue_states(lm, catalogue, tmp_path).node_ND.clone()
    file = states_file(lm, catalogue, tmp_path)
    file.write_bytes(file.read_bytes()[:-100])
    assert torch.equal(catalogue_states(lm, catalogue, tmp_path).node_ND, whole)


def test_a_full_disk_is_an_error_or_a_warning(
    compose_config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full, raising=False)
    lm, root = toy_lm(schedule_of("IIFC", "segments")), f"cache_root={tmp_path}"
    with pytest.raises(ValueError, match=r"state_cache=true cannot write to .*No space left"):
        predict_toys(lm, compose_config("decode.state_cache=true", root))
    many = toy_frame(HISTORIES * 20, TARGETS * 20)  # so many that the states would pay
    with pytest.warns(UserWarning, match="no catalogue states"):
        predict_toys(lm, compose_config(root), frame=many)


def test_the_tokens_of_the_states_are_counted_as_they_run(tmp_path: Path) -> None:
    catalogue, ran = toy_catalogue(), []
    for target_is_item in (True, False):
        lm = toy_lm(schedule_of("IIFC", "segments", target_is_item=target_is_item))
        lm.decoder.embed_tokens.register_forward_hook(lambda _, a, __: ran.append(a[0].numel()))
        catalogue_states(lm, catalogue, tmp_path / str(target_is_item))
        tokens = sum(ran) - len(catalogue.book.prefix)
        assert tokens == tokens_to_build(catalogue, target_is_item)
        ran.clear()


def test_states_of_a_mask_without_segment_layers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="0 of 4 are"):
        catalogue_states(toy_lm(schedule_of("IFFC")), toy_catalogue(), tmp_path)


def test_answers_are_the_same_with_and_without_states(
    compose_config: Compose, tmp_path: Path
) -> None:
    lm, tables = toy_lm(schedule_of("IIFC", "segments")), []
    for wanted in ("true", "false"):
        words = [f"decode.state_cache={wanted}", f"cache_root={tmp_path}"]
        tables.append(predict_toys(lm, compose_config(*words)))
    assert_same_answers(*map(found, tables))
    assert len(list((tmp_path / "states").glob("*.safetensors"))) == 1


@torch.no_grad()
def test_a_node_runs_through_the_model_once(compose_config: Compose) -> None:
    lm = toy_lm(schedule_of("IFFC"))
    scorer, catalogue = scorer_of(lm)
    num_tokens = []
    lm.decoder.embed_tokens.register_forward_hook(
        lambda _, args, __: num_tokens.append(args[0].shape[1])
    )
    asked = torch.tensor([0, 0, 0]), torch.tensor([0, 5, 9])
    scorer.hidden_at(*asked)
    assert len(num_tokens) == 1
    scorer.hidden_at(*asked)
    assert len(num_tokens) == 1
    with_target = compose_config(*ALL_TITLES).decode
    beam_search(scorer, with_target)
    num_tokens.clear()
    leaf_B = catalogue.trie.leaf_of_item(torch.tensor(TARGETS))
    title_log_probs(scorer, leaf_B)
    beam_search(scorer, with_target)
    assert sum(num_tokens) <= int(catalogue.trie.depth_N[leaf_B].sum())


@torch.no_grad()
def test_under_the_trie_only_branching_nodes_wait_for_the_model(compose_config: Compose) -> None:
    lm = toy_lm(schedule_of("FFFF"))
    scorer, catalogue = scorer_of(lm)
    asked = []
    inner = scorer.hidden_at

    def counted(user_M: torch.Tensor, node_M: torch.Tensor) -> torch.Tensor:
        asked.append(node_M)
        return inner(user_M, node_M)

    scorer.hidden_at = counted
    beam_search(scorer, compose_config(*ALL_TITLES).decode)
    node_M = torch.cat(asked)
    assert catalogue.trie.is_branching_N[node_M].all()


def test_toy_titles_are_what_these_tests_need() -> None:
    trie = Catalogue.of(toy_book()).trie
    assert (trie.num_items, trie.num_leaves) == (9, 8)
    assert int(trie.is_branching_N.sum()) >= 4
    assert int((trie.num_children_N == 1).sum()) > 10
