"""One forward pass as decoder layers and attention functions see it; the plain one.

It travels as a keyword through transformers' own code: every layer asks it for the positions of its
tokens, every attention function for the layer's mask.

Dimension key: B batch, H heads, L sequence, Q query position, K key position, D width of a head.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from hatllm.masks.layer_masks import LayerMasks, Tokens
from hatllm.masks.schedule import Schedule

# What a backend does: queries, keys and values, (B, H, Q or K, D), and the masks of these rows
# become the output, (B, Q, H, D).
Attend = Callable[[LayerMasks, Tensor, Tensor, Tensor], Tensor]
Rotary = tuple[Tensor, Tensor]  # cosines and sines


@dataclass
class Positions:
    """Where the tokens of a pass stand, and the rotary tables made of that."""

    position_BL: Tensor
    rotaries: dict[str | None, Rotary] = field(default_factory=dict)  # by type of layer

    def rotary(self, make: Any, like: Tensor, layer_type: str | None) -> Rotary:
        """The table of all layers of a type, made once.

        Args:
            make: The model's rotary module.
            like: A tensor of the table's dtype and device.
            layer_type: Where the module has a table for each type; else None.
        """
        if layer_type not in self.rotaries:
            types = () if layer_type is None else (layer_type,)
            self.rotaries[layer_type] = make(like, self.position_BL, *types)
        return self.rotaries[layer_type]


class ForwardPass(Protocol):
    """What a pass answers; `PaddedPass` is the plain one, the fast ones are in `model.fast`."""

    schedule: Schedule
    layers: range  # that are to run
    read: Counter[int]  # how often each layer has read its mask since it was entered

    def enter(self, layer: int, hidden_BLD: Tensor) -> Tensor:
        """The hidden states that a layer is to work on, given what the one before it made."""
        ...

    def positions(self, layer: int) -> Positions | None:
        """Where a layer is to see its tokens; None = where the model puts them."""
        ...

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, do: Attend) -> Tensor:
        """Let a backend attend under the layer's masks, and count the layer as one that did.

        Args:
            layer: Index from 0.
            query: Of the layer's tokens. Shape (B, H, L, D).
            key: Shape as `query`, with H or fewer heads.
            value: Shape as `key`, of any width.
            do: The backend.

        Returns:
            The output, (B, L, H, D).
        """
        ...


class PaddedPass:
    """Whole prompts, padded: each row of the batch attends to itself under the layer's mask."""

    def __init__(self, masks: LayerMasks, tokens: Tokens) -> None:
        self.masks, self.schedule = masks, masks.schedule
        self.layers = range(len(masks.schedule.patterns))
        self.read: Counter[int] = Counter()
        self.restarted = Positions(tokens.restart_BL)

    def enter(self, layer: int, hidden_BLD: Tensor) -> Tensor:
        """As `ForwardPass.enter`: as they are."""
        return hidden_BLD

    def positions(self, layer: int) -> Positions | None:
        """As `ForwardPass.positions`: they restart in every segment, or are the model's own."""
        return self.restarted if self.schedule.restarts(layer) else None

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, do: Attend) -> Tensor:
        """As `ForwardPass.attend`."""
        self.read[layer] += 1
        return do(self.masks, query, key, value).contiguous()
