"""One forward pass as the layers see it: packed tokens, their rows, the keys before them.

The fast paths run one long row of tokens without padding through the model; padded rows exist
inside attention only, in bands of near lengths. Layers that work on the same tokens form a stage;
`hatllm_segments` has two, because its shallow layers need each segment once, however many prompts
it stands in.

Dimension key: T packed tokens, B rows, Q place in a row, K key, X heads times head width (values
may have another than keys).
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from hatllm.masks.layer_masks import LayerMasks
from hatllm.masks.schedule import Schedule
from hatllm.model.forward_pass import Attend, Positions
from hatllm.model.masked_lm import MaskedLM

A_BAND = 10_000  # what one more band costs, in pairs of query and key; measured on 2 CPU cores

# A layer, and which of its attentions: one for almost all, two for DiffLlama, whose keys serve two
# sets of values.
Place = tuple[int, int]


@dataclass(frozen=True)
class Rows:
    """Where packed tokens stand in padded rows."""

    place_T: Tensor  # index into the flattened (num_rows, num_places); ascending
    num_rows: int
    num_places: int

    @classmethod
    def of(cls, valid_BQ: Tensor) -> "Rows":
        """The rows of a padded batch.

        Args:
            valid_BQ: False on padding. Shape (B, Q), bool.
        """
        return cls(valid_BQ.flatten().nonzero()[:, 0], *valid_BQ.shape)

    @property
    def is_full(self) -> bool:
        """Whether there is no padding at all."""
        return len(self.place_T) == self.num_rows * self.num_places

    def pad(self, packed_TX: Tensor) -> Tensor:
        """Lay packed tokens out in rows, zeros on padding. Shape (B, Q, X)."""
        flat = packed_TX if self.is_full else _scatter(packed_TX, self)
        return flat.reshape(self.num_rows, self.num_places, -1)

    def pack(self, padded_BQX: Tensor) -> Tensor:
        """Leave the padding out. Shape (T, X)."""
        flat = padded_BQX.reshape(self.num_rows * self.num_places, -1)
        return flat if self.is_full else _Pack.apply(flat, self)  # type: ignore[no-untyped-call]


def _scatter(packed_TX: Tensor, rows: Rows) -> Tensor:
    flat = packed_TX.new_zeros(rows.num_rows * rows.num_places, packed_TX.shape[1])
    return flat.index_copy(0, rows.place_T, packed_TX)


class _Pack(torch.autograd.Function):
    """A gather of distinct rows: its gradient is a copy, where autograd's own would add."""

    @staticmethod
    def forward(ctx: Any, flat: Tensor, rows: Rows) -> Tensor:
        ctx.rows = rows
        return flat.index_select(0, rows.place_T)

    @staticmethod
    def backward(ctx: Any, grad_TX: Tensor) -> tuple[Tensor, None]:
        return _scatter(grad_TX, ctx.rows), None


class Past(Protocol):
    """Keys and values of the tokens before a stage's own, layer by layer."""

    def join(
        self, place: Place, key_TX: Tensor, value_TX: Tensor, rows: Rows
    ) -> tuple[Tensor, Tensor]:
        """Keys and values of earlier tokens followed by the new ones.

        Args:
            place: Layer, and which of its attentions; both from 0.
            key_TX: Keys of the stage's packed tokens. Shape (T, X).
            value_TX: Values. Shape (T, X).
            rows: Where the packed tokens stand.

        Returns:
            Keys and values, each (B, K, X).
        """
        ...


@dataclass
class Band:
    """Packed rows of near lengths, which attention pads to the longest of them."""

    masks: LayerMasks  # of the padded rows
    rows: Rows
    past: Past

    def join(self, place: Place, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values of a layer, (B, H, K, D), from the band's own, (1, H, T, D)."""
        num_heads = key.shape[1], value.shape[1]
        key_TX, value_TX = (x[0].transpose(0, 1).flatten(1) for x in (key, value))
        joined = self.past.join(place, key_TX, value_TX, self.rows)
        key, value = (
            _heads(x, heads).transpose(1, 2) for x, heads in zip(joined, num_heads, strict=True)
        )
        return key, value

    def pad_query(self, query: Tensor) -> Tensor:
        """Queries in rows, (B, H, Q, D), from packed ones, (1, H, T, D)."""
        padded_BQX = self.rows.pad(query[0].transpose(0, 1).flatten(1))
        return _heads(padded_BQX, query.shape[1]).transpose(1, 2)

    def pack_output(self, out_BQHD: Tensor) -> Tensor:
        """Attention's output of the packed tokens, (1, T, H, D)."""
        return _heads(self.rows.pack(out_BQHD.flatten(2))[None], out_BQHD.shape[2])


def bands_of(length_B: Sequence[int], num_before: int) -> list[slice]:
    """Cut rows into bands so that attention does the least work.

    Args:
        length_B: Queries of each row; rows of near lengths should be neighbours.
        num_before: Keys that every row sees before its own.

    Returns:
        Neighbouring rows, one slice a band.
    """
    # Rows of one length are never parted, so that many rows are few places to cut.
    cuts = [0, *(i for i in range(1, len(length_B)) if length_B[i] != length_B[i - 1])]
    best = {0: (0, 0)}  # for the first n rows: least work, and where their last band begins
    for end in (*cuts[1:], len(length_B)):
        longest, choices = 0, []
        for start in reversed([cut for cut in cuts if cut < end]):
            longest = max(longest, length_B[start])
            padded = (end - start) * longest * (num_before + longest)
            choices.append((best[start][0] + A_BAND + padded, start))
        best[end] = min(choices)
    bands, end = [], len(length_B)
    while end:
        bands.append(slice(best[end][1], end))
        end = best[end][1]
    return bands[::-1]


@dataclass
class Stage:
    """Tokens that a run of layers works on."""

    bands: list[Band]  # their tokens one after another
    position_T: Tensor
    restart_T: Tensor  # `patterns.restart_positions`
    first_layer: int = 0
    entering: Tensor | None = None  # hidden states of its tokens where no layer before made them
    from_T: Tensor | None = None  # its tokens among those of the stage before

    @property
    def schedule(self) -> Schedule:
        """The schedule its masks follow."""
        return self.bands[0].masks.schedule

    @cached_property
    def own(self) -> Positions:
        """Where its tokens stand in their prompts."""
        return Positions(self.position_T[None])

    @cached_property
    def restarted(self) -> Positions:
        """Where they stand for layers whose positions restart."""
        return Positions(self.restart_T[None])

    def enter(self, hidden: Tensor) -> Tensor:
        """Hidden states of this stage's tokens, given those of the stage before, (1, T, D)."""
        if self.entering is not None:
            return self.entering[None].to(hidden.dtype)
        return hidden if self.from_T is None else hidden[:, self.from_T]

    def split(
        self, query: Tensor, key: Tensor, value: Tensor
    ) -> Iterator[tuple[Band, Tensor, Tensor, Tensor]]:
        """Each band with its own tokens' queries, keys and values, (1, H, T, D)."""
        if len(self.bands) == 1:
            yield self.bands[0], query, key, value
            return
        sizes = [len(band.rows.place_T) for band in self.bands]
        parts = (torch.split(x, sizes, dim=2) for x in (query, key, value))
        yield from zip(self.bands, *parts, strict=True)


def _heads(packed: Tensor, num_heads: int) -> Tensor:
    """Split the last axis into heads and head width."""
    return packed.reshape(*packed.shape[:-1], num_heads, -1)


class Stages:
    """The `ForwardPass` of packed tokens."""

    def __init__(self, stages: list[Stage], layers: range) -> None:
        self.stages, self.layers = stages, layers  # stages by first layer
        self.schedule = stages[0].schedule
        self.read: Counter[int] = Counter()

    def of_layer(self, layer: int) -> Stage:
        """The stage a layer belongs to."""
        return [stage for stage in self.stages if stage.first_layer <= layer][-1]

    def enter(self, layer: int, hidden_1TD: Tensor) -> Tensor:
        """As `ForwardPass.enter`."""
        stage = self.of_layer(layer)
        return stage.enter(hidden_1TD) if layer == stage.first_layer else hidden_1TD

    def positions(self, layer: int) -> Positions | None:
        """As `ForwardPass.positions`."""
        stage = self.of_layer(layer)
        if self.schedule.restarts(layer):
            return stage.restarted
        # What the model was told are the positions of the first stage's tokens.
        is_told = stage is self.stages[0] and stage.entering is None
        return None if is_told else stage.own

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, do: Attend) -> Tensor:
        """As `ForwardPass.attend`: each band's padded rows on their own. Shape (1, T, H, D)."""
        place = layer, self.read[layer]
        self.read[layer] += 1
        outs = [
            band.pack_output(do(band.masks, band.pad_query(own), *band.join(place, *own_keys)))
            for band, own, *own_keys in self.of_layer(layer).split(query, key, value)
        ]
        return outs[0] if len(outs) == 1 else torch.cat(outs, 1)


def hidden_of_stages(
    lm: MaskedLM, input_ids_T: Tensor, stages: list[Stage], layers: range | None = None
) -> Tensor:
    """Final hidden states of packed tokens.

    Args:
        lm: The model under its schedule.
        input_ids_T: Token ids of the first stage. Shape (T,), int64; any ids where that stage is
            given its hidden states.
        stages: By first layer.
        layers: The layers to run; None = all.

    Returns:
        hidden_TD: Of the last stage's tokens, normalised. Shape (T, D).

    Raises:
        RuntimeError: If a layer did not read its mask.
    """
    layers = layers or range(lm.num_layers)
    for stage in stages[1:]:
        lm.check_positions(stage.position_T)
    with _only(lm.decoder, layers):
        return lm.run(input_ids_T[None], stages[0].position_T[None], Stages(stages, layers))[0]


def states_after(lm: MaskedLM, input_ids_T: Tensor, stage: Stage, num_layers: int) -> Tensor:
    """Hidden states of packed tokens after the first layers, not normalised.

    Args:
        lm: The model under its schedule.
        input_ids_T: Token ids. Shape (T,), int64.
        stage: Their masks and rows.
        num_layers: Layers to run, at least 1.

    Returns:
        hidden_TD: Shape (T, D).
    """
    layers: Any = lm.decoder.layers
    found: list[Any] = []
    hook = layers[num_layers - 1].register_forward_hook(lambda _, __, out: found.append(out))
    try:
        hidden_of_stages(lm, input_ids_T, [stage], range(num_layers))
    finally:
        hook.remove()
    hidden_1TD: Tensor = found[0][0] if isinstance(found[0], tuple) else found[0]
    return hidden_1TD[0]


@contextmanager
def _only(decoder: Any, layers: range) -> Iterator[None]:
    """Run some of the layers only; those before and after are skipped."""
    every = decoder.layers
    if len(layers) == len(every):
        yield
        return
    decoder.layers = every[layers.start : layers.stop]
    try:
        yield
    finally:
        decoder.layers = every
