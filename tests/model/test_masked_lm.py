import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from reference import Piece, Reference, prompt_pieces, title_ids
from rows import layer_outputs, padded
from torch import Tensor
from toys import HISTORIES, PROMPT, TARGETS, TITLES, Compose, schedule_of, toy_batch, toy_book

from hatllm.data.prompt import Batch, IntArray
from hatllm.masks.schedule import Schedule, build_schedule
from hatllm.model.backbone import tiny_llama
from hatllm.model.fast.packed_prompts import hidden_at
from hatllm.model.masked_lm import FEW_TOKENS, MaskedLM

# The reference adds in float64, the model in float32: 1e-6 relative, on logits up to about 20.
CLOSE = {"rtol": 1e-4, "atol": 1e-4}
# The same float32 numbers in a sum of another order.
SAME = {"rtol": 1e-5, "atol": 1e-5}

Words = list[str]


def build(schedule: Schedule, backend: str = "sdpa", lora: bool = False) -> MaskedLM:
    lm = MaskedLM(tiny_llama(), schedule, backend).eval()
    if lora:
        with_lora(lm)
    return lm


def with_lora(lm: MaskedLM, random_start: bool = True) -> None:
    """Adapters without dropout; both factors random, so that neither's gradient is 0."""
    for parameter in lm.parameters():
        parameter.requires_grad_(False)
    config = LoraConfig(
        r=4, lora_alpha=8, lora_dropout=0.0, target_modules=["q_proj", "v_proj"],
        task_type="CAUSAL_LM",
    )  # fmt: skip
    lm.model = get_peft_model(lm.backbone[0], config)
    if random_start:
        torch.manual_seed(3)
        for name, parameter in lm.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)


def target_logits(lm: MaskedLM, batch: Batch, prefix: IntArray | None = None) -> Tensor:
    """Logits of the titles' tokens: padded prompts, or packed ones after a shared prefix."""
    if prefix is not None:
        return lm.logits(
            hidden_at(
                lm, batch, torch.from_numpy(prefix), batch.target_row_T, batch.target_column_T
            )
        )
    hidden_BLD = lm.hidden_of_prompts(batch.input_ids_BL, batch.tokens, batch.valid_BL)
    return lm.logits(hidden_BLD[batch.target_row_T, batch.target_column_T])


def reference_logits(schedule: Schedule, histories: list[list[int]]) -> list[Tensor]:
    reference = Reference(
        tiny_llama(), schedule.letters, schedule.intra_scope, schedule.cross_sees_self,
        schedule.target_is_item,
    )  # fmt: skip
    return [
        reference.logits(
            prompt_pieces(PROMPT, [TITLES[item] for item in history]),
            title_ids(PROMPT, TITLES[target])[:-1],
        )
        for history, target in zip(histories, TARGETS, strict=True)
    ]


@torch.no_grad()
@pytest.mark.parametrize("sees_self", [False, True])
@pytest.mark.parametrize("target_is_item", [False, True])
def test_logits_are_those_of_a_model_written_out_by_hand(
    preset: Words, target_is_item: bool, sees_self: bool, compose_config: Compose
) -> None:
    schedule = build_schedule(compose_config(*preset).mask, 4)
    schedule = replace(schedule, target_is_item=target_is_item, cross_sees_self=sees_self)
    batch = toy_batch(toy_book(), target_is_item, with_target=True)
    logits = target_logits(build(schedule), batch)
    expected = torch.cat(reference_logits(schedule, HISTORIES))
    torch.testing.assert_close(logits, expected.float(), **CLOSE)


SCHEDULES: dict[str, Schedule] = {
    "items": schedule_of("IFFC"),
    "segments": schedule_of("IFFC", scope="segments"),
    "title in the template": schedule_of("ICFI", target_is_item=False),
}


@pytest.fixture(params=SCHEDULES)
def schedule(request: pytest.FixtureRequest) -> Schedule:
    return SCHEDULES[request.param]


def gradients(lm: MaskedLM, compute: Callable[[], Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    lm.zero_grad()
    logits = compute()
    torch.manual_seed(5)
    (logits * torch.randn_like(logits)).sum().backward()
    tuned = {name: p.grad for name, p in lm.named_parameters() if p.requires_grad}
    assert tuned and all(grad is not None and grad.abs().max() > 0 for grad in tuned.values())
    return logits.detach(), {name: grad.clone() for name, grad in tuned.items() if grad is not None}


def assert_same_gradients(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name, grad in expected.items():
        # Sums over all tokens in another order: relative to the tensor's largest entry.
        scale = float(grad.abs().max())
        torch.testing.assert_close(got[name], grad, rtol=1e-3, atol=2e-5 * scale, msg=name)


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_packed_prompts_change_neither_logits_nor_lora_gradients(
    schedule: Schedule, backend: str
) -> None:
    lm = build(schedule, backend, lora=True)
    book = toy_book()
    batch = toy_batch(book, schedule.target_is_item, with_target=True)
    plain, expected = gradients(lm, lambda: target_logits(lm, batch))
    shared, got = gradients(lm, lambda: target_logits(lm, batch, book.prefix))
    torch.testing.assert_close(shared, plain, **CLOSE)
    assert_same_gradients(got, expected)


@pytest.mark.parametrize("packed", [False, True])
def test_gradient_checkpointing_changes_neither_logits_nor_lora_gradients(
    schedule: Schedule, packed: bool
) -> None:
    lm, book = build(schedule, lora=True), toy_book()
    batch = toy_batch(book, schedule.target_is_item, with_target=True)
    prefix = book.prefix if packed else None
    plain, expected = gradients(lm, lambda: target_logits(lm, batch))
    lm.train()
    lm.backbone[0].gradient_checkpointing_enable({"use_reentrant": False})
    lm.backbone[0].enable_input_require_grads()
    assert lm.decoder.layers[0].gradient_checkpointing
    calls = []
    lm.decoder.layers[0].self_attn.register_forward_pre_hook(lambda *_: calls.append(1))
    checkpointed, got = gradients(lm, lambda: target_logits(lm, batch, prefix))
    assert len(calls) == 2  # once forward, once again on the way back
    torch.testing.assert_close(checkpointed, plain, **SAME)
    assert_same_gradients(got, expected)


@torch.no_grad()
def test_fresh_adapters_leave_the_model_as_it_was(schedule: Schedule) -> None:
    batch = toy_batch(toy_book(), schedule.target_is_item, with_target=True)
    lm = build(schedule)
    bare = target_logits(lm, batch)
    with_lora(lm, random_start=False)
    assert torch.equal(target_logits(lm, batch), bare)


@torch.no_grad()
def test_adapters_that_learned_change_the_model() -> None:
    batch = toy_batch(toy_book(), True, with_target=True)
    bare = target_logits(build(SCHEDULES["items"]), batch)
    tuned = target_logits(build(SCHEDULES["items"], lora=True), batch)
    assert (tuned - bare).abs().max() > 0.1


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("backend", ["sdpa", "eager", "flex"])
def test_inference_mode_gives_the_same_logits(
    schedule: Schedule, backend: str, packed: bool
) -> None:
    lm, book = build(schedule, backend), toy_book()
    batch = toy_batch(book, schedule.target_is_item, with_target=True)
    with torch.no_grad():
        expected = target_logits(lm, batch)
    with torch.inference_mode():
        got = target_logits(lm, batch, book.prefix if packed else None)
    torch.testing.assert_close(got, expected, **CLOSE)


@torch.no_grad()
def test_a_row_does_not_depend_on_the_rows_beside_it(schedule: Schedule) -> None:
    book, lm = toy_book(), build(schedule)
    together = target_logits(lm, toy_batch(book, schedule.target_is_item, True))
    alone = [
        target_logits(lm, toy_batch(book, schedule.target_is_item, True, [history], [target]))
        for history, target in zip(HISTORIES, TARGETS, strict=True)
    ]
    torch.testing.assert_close(together, torch.cat(alone), **CLOSE)


@torch.no_grad()
def test_logits_of_chosen_pairs_are_entries_of_all_logits() -> None:
    lm, hidden_TD = build(SCHEDULES["items"]), torch.randn(3, 32)
    row_C, token_C = torch.tensor([0, 2, 2, 1]), torch.tensor([5, 257, 0, 9])
    expected = lm.logits(hidden_TD)[row_C, token_C]
    torch.testing.assert_close(lm.logits_at(hidden_TD, row_C, token_C), expected, **SAME)


def test_a_schedule_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="the schedule has 3 layers, the model 4"):
        MaskedLM(tiny_llama(4), schedule_of("IFC"), "sdpa")


def test_the_backbone_counts_once_among_the_parameters() -> None:
    lm = build(SCHEDULES["items"])
    assert sum(p.numel() for p in lm.parameters()) == sum(
        p.numel() for p in tiny_llama().parameters()
    )


# --- Leakage, on outputs -------------------------------------------------------------------------

HISTORY = [3, 25, 44]  # "Toy Story", "Alien", "Up"
ALL = (*range(3), "response", 3)  # the pieces after the prefix; 3 is the title


def states_by_piece(lm: MaskedLM, items: list[list[int]], title: list[int]) -> list[dict]:
    """For every layer, the states of each piece of prefix, items, response and title."""
    template = prompt_pieces(PROMPT, [])
    pieces = [template[0], *(Piece(ids, i) for i, ids in enumerate(items)), template[1]]
    labels = {"prefix": -1, "response": -2}
    title_label = len(items) if lm.schedule.target_is_item else -2
    ids = [token for piece in pieces for token in piece.tokens] + title
    segment = [labels.get(p.label, p.label) for p in pieces for _ in p.tokens]
    with layer_outputs(lm) as outputs, torch.no_grad():
        batch = padded([[*segment, *[title_label] * len(title)]], [torch.tensor(ids)])
        lm.hidden_of_prompts(*batch)
    lengths = [len(piece.tokens) for piece in pieces] + [len(title)]
    names = [*(piece.label for piece in pieces), len(items)]
    return [dict(zip(names, out[0].split(lengths), strict=True)) for out in outputs]


def reach(schedule: Schedule) -> list[dict]:
    """By hand: which pieces each piece has heard of after every layer, piece by piece."""
    heard = {piece: {piece} for piece in ALL}
    after = []
    for letter in schedule.letters:
        heard = {
            piece: set.union(
                *(heard[other] for other in ALL if hears(schedule, letter, piece, other))
            )
            for piece in ALL
        }
        after.append(heard)
    return after


def hears(schedule: Schedule, letter: str, piece: object, other: object) -> bool:
    if ALL.index(other) > ALL.index(piece):
        return False
    if piece == other:
        return True  # the residual stream at least
    title = 3 if schedule.target_is_item else "response"
    piece, other = (title if x == 3 else x for x in (piece, other))
    if letter == "I" and schedule.intra_scope == "segments":
        return piece == other
    if letter == "I":
        return piece == "response" or other == "response"
    return True


@pytest.mark.parametrize("changed", [0, 1, "response"])
@pytest.mark.parametrize("target_is_item", [False, True])
def test_a_changed_piece_moves_the_states_it_may_reach_and_no_other(
    preset: Words, target_is_item: bool, changed: object, compose_config: Compose
) -> None:
    schedule = build_schedule(compose_config(*preset).mask, 4)
    schedule = replace(schedule, target_is_item=target_is_item)
    lm = build(schedule)
    items = [[40 + i, 50 + i, 60 + i] for i in range(3)]
    title = [70, 71]
    other_items = copy.deepcopy(items)
    if changed == "response":
        before = states_by_piece(lm, items, title)
        with response_text("Then: '"):
            after = states_by_piece(lm, items, title)
    else:
        other_items[changed][1] += 100
        before, after = (states_by_piece(lm, i, title) for i in (items, other_items))
    for layer, heard in enumerate(reach(schedule)):
        for piece in ALL:
            moved = float((before[layer][piece] - after[layer][piece]).abs().max())
            if changed in heard[piece]:
                assert moved > 1e-4, (layer, piece)
            else:
                assert moved == 0.0, (layer, piece)  # blocked weights are exactly 0


class response_text:  # noqa: N801  (used as a `with` statement)
    """Another response template of the same length."""

    def __init__(self, text: str) -> None:
        assert len(text) == len(PROMPT.response)
        self.text = text

    def __enter__(self) -> None:
        self.old, PROMPT.response = PROMPT.response, self.text

    def __exit__(self, *_: object) -> None:
        PROMPT.response = self.old


@pytest.mark.parametrize("target_is_item", [False, True])
def test_shallow_states_of_segments_are_the_same_in_every_prompt(
    target_is_item: bool, compose_config: Compose
) -> None:
    words = [f"mask.target_is_item={target_is_item}", "mask.split_layer=2"]
    schedule = build_schedule(compose_config("mask=hatllm_segments", *words).mask, 4)
    assert schedule.letters == "IIFC"
    lm = build(schedule)
    item, title = [40, 41, 42, 43], [70, 71]
    one = states_by_piece(lm, [item, [90, 91]], title)
    # Another order, other items, a longer history.
    two = states_by_piece(lm, [[80, 81, 82], [90], [84, 85, 86, 87], item], title)
    for layer in range(4):
        pairs = [
            (one[layer][0], two[layer][3]),
            (one[layer]["response"], two[layer]["response"]),
            (one[layer][2], two[layer][4]),
        ]
        for a, b in pairs:
            if layer < 2:
                # Blocked keys add exact zeros; only the blocks a sum is added up in may differ.
                torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
            else:
                assert (a - b).abs().max() > 1e-3


def test_logits_of_chosen_tokens_equal_those_picked_from_the_whole_vocabulary() -> None:
    lm = MaskedLM(tiny_llama(), Schedule(("full",) * 4, "items", False, True), "sdpa")
    head = lm.backbone[0].lm_head
    head.bias = torch.nn.Parameter(torch.linspace(-1, 1, 258))  # some families have one
    lm.final_softcap = 5.0
    torch.manual_seed(0)
    hidden_TD = torch.randn(4, 32, requires_grad=True)
    counts = torch.tensor([FEW_TOKENS + 1, 3, 200, 0])  # both ways, and a row nobody asks about
    row_C = torch.arange(4).repeat_interleave(counts)
    token_C = torch.cat([torch.randperm(258)[:count] for count in counts])
    chosen_C = lm.logits_at(hidden_TD, row_C, token_C)
    whole_C = lm.logits(hidden_TD)[row_C, token_C]
    torch.testing.assert_close(chosen_C, whole_C)
    weight_C = torch.randn(len(row_C))
    gradients = [
        torch.autograd.grad((logit_C * weight_C).sum(), hidden_TD, retain_graph=True)[0]
        for logit_C in (chosen_C, whole_C)
    ]
    torch.testing.assert_close(*gradients)
