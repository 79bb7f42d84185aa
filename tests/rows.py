"""Rows of tokens by hand: padded on either side, and what every layer makes of them."""

import torch
from torch import Tensor, nn

from hatllm.masks.layer_masks import Tokens, causal_visible
from hatllm.masks.patterns import RESPONSE, restart_positions
from hatllm.model.fast.packed_prompts import Packed, hidden_of_packed
from hatllm.model.masked_lm import MaskedLM


def padded(
    rows: list[list[int]], ids: list[Tensor], side: str = "right", extra: int = 0
) -> tuple[Tensor, Tokens, Tensor]:
    length = max(map(len, rows)) + extra
    ids_BL = torch.zeros(len(rows), length, dtype=torch.int64)
    segment_BL = torch.full((len(rows), length), RESPONSE)
    valid_BL = torch.zeros(len(rows), length, dtype=torch.bool)
    for b, row in enumerate(rows):
        columns = slice(0, len(row)) if side == "right" else slice(length - len(row), length)
        ids_BL[b, columns] = ids[b]
        segment_BL[b, columns] = torch.tensor(row)
        valid_BL[b, columns] = True
    position_BL = (valid_BL.cumsum(1) - 1).clamp(min=0)
    tokens = Tokens(segment_BL, position_BL, restart_positions(segment_BL, valid_BL))
    return ids_BL, tokens, valid_BL


def packed_hidden(
    lm: MaskedLM, ids_BL: Tensor, tokens: Tokens, valid_BL: Tensor, num_prefix: int
) -> Tensor:
    """Hidden states of all tokens after a shared prefix, run packed. Shape (T, D)."""
    valid_BQ, own = valid_BL[:, num_prefix:], tokens.select(slice(num_prefix, None))
    visible_BQQ = causal_visible(valid_BQ, valid_BQ.shape[1])
    ids_T = ids_BL[:, num_prefix:][valid_BQ]
    packed = Packed(ids_T, own, valid_BQ, visible_BQQ, torch.zeros(0))
    return hidden_of_packed(lm, packed, ids_BL[0, :num_prefix])


class layer_outputs:  # noqa: N801  (used as a `with` statement)
    """Collects what every decoder layer returns."""

    def __init__(self, lm: MaskedLM) -> None:
        self.layers, self.outputs = list(lm.decoder.layers), []

    def __enter__(self) -> list[Tensor]:
        self.hooks = [layer.register_forward_hook(self._keep) for layer in self.layers]
        return self.outputs

    def _keep(self, _: nn.Module, __: object, output: object) -> None:
        self.outputs.append(output[0] if isinstance(output, tuple) else output)

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()
