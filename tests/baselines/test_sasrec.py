"""Layers of SASRec and eSASRec, and places counted back, against formulas written out."""

import json
import math
from pathlib import Path

import torch
from few_items import NUM_ITEMS, settings
from torch import Tensor

from hatllm.baselines.sasrec import LigrBlock, SASRec

SIZE, LENGTH = 16, 5


def normed(x_LD: Tensor, norm: torch.nn.LayerNorm) -> Tensor:
    centred_LD = x_LD - x_LD.mean(dim=1, keepdim=True)
    variance_L1 = centred_LD.square().mean(dim=1, keepdim=True)
    return centred_LD / (variance_L1 + 1e-5).sqrt() * norm.weight + norm.bias


def two_heads(x_LD: Tensor, attention: torch.nn.MultiheadAttention) -> Tensor:
    """Causal attention, one head and one position after the other."""
    query_LD, key_LD, value_LD = (
        x_LD @ weight.T + bias
        for weight, bias in zip(
            attention.in_proj_weight.split(SIZE), attention.in_proj_bias.split(SIZE), strict=True
        )
    )
    seen_LD = torch.zeros_like(x_LD)
    for head in (slice(0, 8), slice(8, 16)):
        for place in range(len(x_LD)):
            logit_K = key_LD[: place + 1, head] @ query_LD[place, head] / math.sqrt(8)
            share_K = logit_K.exp() / logit_K.exp().sum()
            seen_LD[place, head] = share_K @ value_LD[: place + 1, head]
    out_LD: Tensor = attention.out_proj(seen_LD)
    return out_LD


def by_hand(x_LD: Tensor, block: LigrBlock) -> Tensor:
    gate_LD = 1 / (1 + (-(x_LD @ block.gate.weight.T + block.gate.bias)).exp())
    x_LD = x_LD + gate_LD * two_heads(normed(x_LD, block.norm), block.attention)
    gate_LD = (
        1 / (1 + (-(x_LD @ block.feedforward_gate.weight.T + block.feedforward_gate.bias)).exp())
    )  # fmt: skip
    read_LD, made = normed(x_LD, block.feedforward_norm), block.feedforward
    open_LF = read_LD @ made.gate.weight.T
    hidden_LF = open_LF / (1 + (-open_LF).exp()) * (read_LD @ made.up.weight.T)
    return x_LD + gate_LD * (hidden_LF @ made.down.weight.T)


def randomised(model: torch.nn.Module) -> None:
    """Biases and norms start at 0 and 1, where a forgotten one would not be seen."""
    torch.manual_seed(3)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.5)


def test_one_block_of_sasrec_equals_its_formula() -> None:
    torch.manual_seed(0)
    model = SASRec(NUM_ITEMS, LENGTH, settings(num_layers=1, num_heads=1, init_std=1.0)).eval()
    block = model.blocks[0]
    x_LD = model.items.weight[[4, 2, 9]] + model.positions.weight[:3]
    query_LD = block.query_norm(x_LD)
    weight, bias = block.attention.in_proj_weight, block.attention.in_proj_bias
    (wq, wk, wv), (bq, bk, bv) = weight.split(16), bias.split(16)
    logit_LL = (query_LD @ wq.T + bq) @ (x_LD @ wk.T + bk).T / 16**0.5
    share_LL = logit_LL.masked_fill(torch.ones(3, 3).triu(1).bool(), -torch.inf).softmax(dim=1)
    seen_LD = block.attention.out_proj(share_LL @ (x_LD @ wv.T + bv))
    y_LD = block.norm(query_LD + seen_LD)
    expected_LD = model.norm(y_LD + block.feedforward(y_LD))
    torch.testing.assert_close(model(torch.tensor([[4, 2, 9]]))[0], expected_LD)


def test_a_ligr_block_equals_its_formula() -> None:
    block = LigrBlock(settings()).eval()
    randomised(block)
    x_LD = torch.randn(4, SIZE)
    found_LD = block(x_LD[None], torch.ones(4, 4, dtype=torch.bool).triu(1))[0]
    torch.testing.assert_close(found_LD, by_hand(x_LD, block), rtol=1e-4, atol=1e-4)


def test_esasrec_is_its_blocks_on_items_and_places_counted_back() -> None:
    model = SASRec(NUM_ITEMS, LENGTH, settings(block="ligr", positions_from="newest")).eval()
    randomised(model)
    history_BL = torch.tensor([[4, 2, 9, NUM_ITEMS, NUM_ITEMS], [7, 7, 1, 0, 3]])
    found_BLD = model(history_BL)
    rows = [([4, 2, 9], [2, 1, 0]), ([7, 7, 1, 0, 3], [4, 3, 2, 1, 0])]
    for row, (items, places) in enumerate(rows):
        x_LD = model.items.weight[items] + model.positions.weight[places]
        for block in model.blocks:
            assert isinstance(block, LigrBlock)
            x_LD = by_hand(x_LD, block)
        torch.testing.assert_close(found_BLD[row, : len(items)], x_LD, rtol=1e-3, atol=1e-3)


def test_counted_from_the_oldest_a_longer_history_has_the_same_first_places() -> None:
    model = SASRec(NUM_ITEMS, LENGTH, settings(positions_from="oldest", init_std=1.0)).eval()
    back = SASRec(NUM_ITEMS, LENGTH, settings(positions_from="newest", init_std=1.0)).eval()
    short, long = torch.tensor([[4, 2, 9]]), torch.tensor([[4, 2, 9, 1]])
    torch.testing.assert_close(model(short), model(long)[:, :3])
    assert (back(short) - back(long)[:, :3]).abs().max() > 1e-2


def test_padding_that_is_read_is_zeros_in_front_of_each_history() -> None:
    model = SASRec(NUM_ITEMS, LENGTH, settings(num_heads=1, reads_padding=True)).eval()
    randomised(model)
    history_BL = torch.tensor([[4, 2, 9, NUM_ITEMS], [7, 7, 1, 0]])
    found_BLD = model(history_BL)
    for row, items in enumerate(([4, 2, 9], [7, 7, 1, 0])):
        zeros_ZD = torch.zeros(LENGTH - len(items), SIZE)
        x_LD = model.items.weight[items] + model.positions.weight[: len(items)]
        for block in model.blocks:
            x_LD = torch.cat([zeros_ZD, x_LD])
            weight, bias = block.attention.in_proj_weight, block.attention.in_proj_bias
            (wq, wk, wv), (bq, bk, bv) = weight.split(SIZE), bias.split(SIZE)
            query_LD = normed(x_LD, block.query_norm)
            logit_LL = (query_LD @ wq.T + bq) @ (x_LD @ wk.T + bk).T / SIZE**0.5
            later_LL = torch.ones(LENGTH, LENGTH).triu(1).bool()
            share_LL = logit_LL.masked_fill(later_LL, -torch.inf).softmax(dim=1)
            seen_LD = block.attention.out_proj(share_LL @ (x_LD @ wv.T + bv))
            y_LD = normed(query_LD + seen_LD, block.norm)
            x_LD = (y_LD + block.feedforward(y_LD))[len(zeros_ZD) :]
        expected_LD = normed(x_LD, model.norm)
        torch.testing.assert_close(found_BLD[row, : len(items)], expected_LD, rtol=1e-3, atol=1e-3)


def test_where_a_history_fills_every_position_reading_the_padding_changes_nothing() -> None:
    model = SASRec(NUM_ITEMS, LENGTH, settings(reads_padding=True)).eval()
    other = SASRec(NUM_ITEMS, LENGTH, settings(reads_padding=False)).eval()
    randomised(model)
    other.load_state_dict(model.state_dict())
    full, short = torch.tensor([[7, 7, 1, 0, 3]]), torch.tensor([[7, 7, 1, 0, NUM_ITEMS]])
    torch.testing.assert_close(model(full), other(full))
    assert (model(short) - other(short))[:, :4].abs().max() > 1e-2


def test_the_states_of_a_batch_are_those_of_each_row_alone() -> None:
    model = SASRec(NUM_ITEMS, LENGTH, settings(reads_padding=True, positions_from="newest")).eval()
    randomised(model)
    together_BLD = model(torch.tensor([[4, 2, NUM_ITEMS, NUM_ITEMS], [7, 7, 1, 0]]))
    torch.testing.assert_close(together_BLD[:1, :2], model(torch.tensor([[4, 2]])))


def name_in_rectools(name: str) -> str:
    match name.split("."):
        case "items", part:
            return f"item_model.item_net_blocks.0.ids_emb.{part}"
        case "positions", part:
            return f"pos_encoding_layer.pos_emb.{part}"
        case "norm", part:
            return f"transformer_layers.last_layernorm.{part}"
    inside = {
        "attention": "multi_head_attn", "query_norm": "q_layer_norm", "norm": "ff_layer_norm",
        "feedforward.0": "feed_forward.ff_linear_1", "feedforward.3": "feed_forward.ff_linear_2",
    }  # fmt: skip
    _, block, rest = name.split(".", 2)
    (ours,) = (ours for ours in inside if rest.startswith(f"{ours}."))
    rest = rest.replace(ours, inside[ours], 1)
    return f"transformer_layers.transformer_blocks.{block}.{rest}"


def test_the_states_are_those_of_rectools() -> None:
    """RecTools 0.13 computed them in eval mode, from weights drawn for this file (two blocks)."""
    stored = json.loads((Path(__file__).parent / "rectools_sasrec.json").read_text())
    config = settings(
        hidden_size=8, num_layers=2, num_heads=2, feedforward_size=8, shared_embedding=True,
        positions_from="newest", reads_padding=True,
    )  # fmt: skip
    num_items = len(stored["weights"][name_in_rectools("items.weight")]) - 1
    model = SASRec(num_items, 6, config).eval()
    weights = {
        name: torch.tensor(stored["weights"][name_in_rectools(name)]) for name in model.state_dict()
    }
    weights["items.weight"] = weights["items.weight"].roll(-1, 0)  # their padding stands first
    model.load_state_dict(weights)
    for items, states in zip(stored["x"], stored["states"], strict=True):
        history = [item - 1 for item in items if item]
        padded_BL = torch.tensor([history + [num_items] * (6 - len(history))])
        expected_LD = torch.tensor(states[6 - len(history) :])
        torch.testing.assert_close(
            model(padded_BL)[0, : len(history)], expected_LD, rtol=1e-4, atol=1e-4
        )
