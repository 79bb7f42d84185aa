import pytest
import torch
from families import FAMILIES, SOFT_CAPPED, WINDOW, backends_of, build
from rows import layer_outputs, packed_hidden, padded
from torch import Tensor, nn
from toys import schedule_of
from transformers import PreTrainedModel

from hatllm.masks.layer_masks import build_layer_masks, causal_visible
from hatllm.masks.patterns import PREFIX, RESPONSE
from hatllm.masks.schedule import Schedule
from hatllm.model.forward_pass import PaddedPass
from hatllm.model.masked_lm import MaskedLM

# prefix, items, response, title; rows of different lengths, all longer than a sliding window
ROWS = [
    [PREFIX, PREFIX, 0, 0, 0, 1, 1, RESPONSE, 2, 2],
    [PREFIX, PREFIX, 0, 1, 1, RESPONSE, 2],
    [PREFIX, PREFIX, 0, 0, 1, 2, 2, 2, RESPONSE, RESPONSE, 3, 3, 3],
]
CASES = [(family, backend) for family in FAMILIES for backend in backends_of(family)]
# Float32 sums in another order: relative errors of 1e-6 in four layers, on logits up to about 20.
CLOSE = {"rtol": 2e-4, "atol": 2e-4}


def random_ids(rows: list[list[int]] = ROWS, vocab: int = 64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, vocab, (len(row),), generator=generator) for row in rows]


def masked_logits(
    model: PreTrainedModel, schedule: Schedule, backend: str, side: str = "right"
) -> list[Tensor]:
    lm = MaskedLM(model, schedule, backend)
    ids_BL, tokens, valid_BL = padded(ROWS, random_ids(), side, extra=2)
    hidden_BLD = lm.hidden_of_prompts(ids_BL, tokens, valid_BL)
    return [lm.logits(row[valid]) for row, valid in zip(hidden_BLD, valid_BL, strict=True)]


@pytest.mark.thin("family backend", "backend side")
@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("family", "backend"), CASES)
def test_an_all_full_schedule_is_the_untouched_model(family: str, backend: str, side: str) -> None:
    # Soft capping: transformers' own sdpa would leave it out.
    untouched = build(family, attn_implementation="eager")
    got = masked_logits(build(family), schedule_of("FFFF"), backend, side)
    for ids, logits in zip(random_ids(), got, strict=True):
        torch.testing.assert_close(logits, untouched(ids[None]).logits[0], **CLOSE)


def hand_mask(letter: str, segment: list[int], window: int | None) -> Tensor:
    """The mask of one layer as transformers' eager attention takes it: 0 or -inf, pair by pair."""
    size = len(segment)
    allowed = torch.zeros(size, size, dtype=torch.bool)
    for q in range(size):
        for k in range(q + 1):
            items = segment[q] >= 0 and segment[k] >= 0
            same = segment[q] == segment[k]
            blocked = items and (same if letter == "C" else not same if letter == "I" else False)
            allowed[q, k] = not blocked and (window is None or q - k < window)
        allowed[q, q] |= not allowed[q].any()
    return torch.zeros(size, size).masked_fill(~allowed, float("-inf"))[None, None]


def windows_of(model: PreTrainedModel) -> list[int | None]:
    kinds = getattr(model.config, "layer_types", None)
    if kinds is not None:
        return [WINDOW if kind == "sliding_attention" else None for kind in kinds]
    return [getattr(model.config, "sliding_window", None)] * 4


@torch.no_grad()
@pytest.mark.parametrize("letters", ["IFCC", "CIFI"])
@pytest.mark.parametrize(("family", "backend"), CASES)
def test_each_layer_gets_its_own_mask_as_if_handed_in_one_by_one(
    family: str, backend: str, letters: str
) -> None:
    reference = build(family, attn_implementation="eager")
    windows, masks = windows_of(reference), {}

    def swap_mask(layer: nn.Module, args: object, kwargs: dict[str, object]) -> object:
        kwargs["attention_mask"] = masks[layer]
        return args, kwargs

    layers = list(reference.get_decoder().layers)
    for layer in layers:
        layer.register_forward_pre_hook(swap_mask, with_kwargs=True)
    got = masked_logits(build(family), schedule_of(letters), backend)
    for segment, ids, logits in zip(ROWS, random_ids(), got, strict=True):
        for layer, letter, window in zip(layers, letters, windows, strict=True):
            masks[layer] = hand_mask(letter, segment, window)
        torch.testing.assert_close(logits, reference(ids[None]).logits[0], **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_segments_make_an_item_the_same_wherever_it_stands(family: str) -> None:
    lm = MaskedLM(build(family), schedule_of("IIFC", scope="segments"), "eager")
    item, response, prefix = torch.tensor([9, 8, 7]), torch.tensor([5, 6]), torch.tensor([3, 4])
    first = [prefix, item, torch.tensor([20]), response]
    second = [prefix, torch.tensor([30, 31, 32, 33, 34]), torch.tensor([40, 41]), item, response]
    states = []
    for parts, place in ((first, 1), (second, 3)):
        labels = [PREFIX, *range(len(parts) - 2), RESPONSE]
        row = [label for label, part in zip(labels, parts, strict=True) for _ in part]
        ids_BL, tokens, valid_BL = padded([row], [torch.cat(parts)])
        with layer_outputs(lm) as outputs:
            lm.hidden_of_prompts(ids_BL, tokens, valid_BL)
        start = sum(map(len, parts[:place]))
        items = [out[0, start : start + 3] for out in outputs]
        states.append((items, [out[0, -2:] for out in outputs]))
    for layer in range(2):
        for part in range(2):
            # Equal but for the order of float32 sums over rows of different length.
            torch.testing.assert_close(states[0][part][layer], states[1][part][layer], **CLOSE)
    assert (states[0][0][2] - states[1][0][2]).abs().max() > 0.01  # a full layer tells them apart


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("scope", ["items", "segments"])
def test_a_prefix_run_once_gives_what_running_it_in_every_row_gives(
    family: str, scope: str
) -> None:
    lm = MaskedLM(build(family), schedule_of("IFCF", scope=scope), "eager")
    ids = random_ids()
    for row in ids[1:]:
        row[:2] = ids[0][:2]
    batch = padded(ROWS, ids)
    whole = lm.hidden_of_prompts(*batch)
    rest_TD = packed_hidden(lm, *batch, num_prefix=2)
    valid = batch[2][:, 2:]
    torch.testing.assert_close(rest_TD, whole[:, 2:][valid], **CLOSE)


@pytest.mark.thin("layer letter", "backend letter")
@torch.no_grad()
@pytest.mark.parametrize("backend", ["sdpa", "eager", "flex"])
@pytest.mark.parametrize("layer", range(4))
@pytest.mark.parametrize("letter", "IC")
def test_only_layer_i_sees_pattern_i(layer: int, letter: str, backend: str) -> None:
    letters = "F" * layer + letter + "F" * (3 - layer)
    outputs = []
    for schedule in (schedule_of("FFFF"), schedule_of(letters)):
        lm = MaskedLM(build("Llama"), schedule, backend)
        with layer_outputs(lm) as kept:
            lm.hidden_of_prompts(*padded(ROWS, random_ids()))
        outputs.append(kept)
    for below in range(layer):
        assert torch.equal(outputs[0][below], outputs[1][below])
    assert (outputs[0][layer] - outputs[1][layer]).abs().max() > 0.01


@pytest.mark.parametrize("family", SOFT_CAPPED)
def test_soft_capped_attention_is_refused_under_sdpa(family: str) -> None:
    with pytest.raises(ValueError, match=r"model.backend='sdpa' cannot soft-cap .*'gemma2'"):
        MaskedLM(build(family), schedule_of("FFFF"), "sdpa")


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("Granite", {"logits_scaling": 4.0}),
        ("Cohere", {"logit_scale": 0.25}),
        ("Cohere2", {"logit_scale": 0.25}),
    ],
)
def test_scaled_logits_are_refused(family: str, changes: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"'{family.lower()}' scales its logits"):
        MaskedLM(build(family, **changes), schedule_of("FFFF"), "sdpa")


@torch.no_grad()
def test_a_granite_with_unscaled_logits_is_computed_right() -> None:
    settings = {
        "attention_multiplier": 0.3,
        "residual_multiplier": 0.7,
        "embedding_multiplier": 3.0,
    }
    got = masked_logits(build("Granite", **settings), schedule_of("FFFF"), "sdpa")
    untouched = build("Granite", **settings)
    for ids, logits in zip(random_ids(), got, strict=True):
        torch.testing.assert_close(logits, untouched(ids[None]).logits[0], **CLOSE)


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("Gemma3Text", {"use_bidirectional_attention": True}, "attends both ways"),
        ("GPT2", {"n_layer": 4, "n_head": 4, "n_embd": 32}, "'gpt2' has no rotary position"),
        ("OPT", {"ffn_dim": 32, "word_embed_proj_dim": 32}, "'opt' has no rotary position"),
        ("Lfm2", {"layer_types": ["conv", "full_attention"] * 2}, r"no mask governs \(conv\)"),
        ("Llama4Text", {"num_local_experts": 1}, "chunked_attention"),
        ("FalconH1", {"mamba_d_ssm": 64, "mamba_n_heads": 2, "mamba_d_head": 32}, "mamba_d_ssm"),
    ],
)
def test_a_model_that_cannot_be_masked_is_refused_by_name(
    family: str, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        MaskedLM(build(family, **changes), schedule_of("FFFF"), "eager")


@torch.no_grad()
def test_a_model_that_keeps_its_sliding_window_to_itself_is_an_error() -> None:
    # Qwen2-MoE puts its window into the mask that custom attention functions do not get.
    window = {"use_sliding_window": True, "sliding_window": WINDOW}
    small = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8}
    with pytest.raises(ValueError, match=r"'qwen2_moe' does not hand on .* window of layer 0"):
        MaskedLM(build("Qwen2Moe", **window, **small), schedule_of("FFFF"), "eager")
    lm = MaskedLM(build("Qwen2Moe", **small), schedule_of("FFFF"), "eager")
    lm.backbone[0].config.sliding_window = WINDOW  # as of a type that is on no list
    lm.backbone[0].config.layer_types = ["sliding_attention"] * 4
    with pytest.raises(RuntimeError, match=r"layer 0 of 'qwen2_moe' .* sliding window"):
        lm.hidden_of_prompts(*padded(ROWS, random_ids()))


@torch.no_grad()
def test_the_masked_model_does_not_run_without_masks() -> None:
    model = build("Llama")
    MaskedLM(model, schedule_of("FFFF"), "sdpa")
    with pytest.raises(RuntimeError, match="got no masks; call the model through"):
        model(input_ids=torch.tensor([[5, 6, 7]]))


@torch.no_grad()
@pytest.mark.parametrize("layer", [0, 3])
def test_a_layer_that_ignores_its_mask_is_an_error(layer: int) -> None:
    model = build("Llama")
    lm = MaskedLM(model, schedule_of("IFFC"), "sdpa")

    class Unmasked(nn.Module):
        def forward(self, hidden_states: Tensor, **_: object) -> tuple[Tensor, None]:
            return hidden_states, None

    model.model.layers[layer].self_attn = Unmasked()
    with pytest.raises(RuntimeError, match=rf"layers \[{layer}\] did not read their mask"):
        lm.hidden_of_prompts(*padded(ROWS, random_ids()))


@torch.no_grad()
def test_a_model_without_shared_position_embeddings_refuses_to_restart_positions() -> None:
    model = build("Llama")
    lm = MaskedLM(model, schedule_of("IFFC", scope="segments"), "sdpa")
    ids_BL, tokens, valid_BL = padded(ROWS, random_ids())
    visible_BQK = causal_visible(valid_BL, valid_BL.shape[1])
    masks = build_layer_masks(lm.schedule, tokens, tokens, visible_BQK)
    with pytest.raises(RuntimeError, match="does not hand position embeddings"):
        model.model.layers[0](
            torch.zeros(*ids_BL.shape, 32), forward_pass=PaddedPass(masks, tokens)
        )
