"""One forward pass as the layers see it: packed tokens, their rows, the keys before them.

The fast paths run one long row of tokens without padding through the model; padded rows exist
inside attention only, in bands of near lengths. Layers that work on the same tokens form a stage;
`hatllm_segments` has two, because its shallow layers need each segment once, however many prompts
it stands in.

Dimension key: T packed tokens, B rows, Q place in a row, K key, X heads times head width (values
may have another than keys).
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from hatllm.masks.layer_masks import LayerMasks
from hatllm.masks.schedule import Schedule

A_BAND = 10_000  # what one more band costs, in pairs of query and key; measured on 2 CPU cores
V = TypeVar("V")

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


class PrefixStates:
    """Keys and values of the constant prompt prefix: written once, read by every row.

    As the past of the prefix's own pass it keeps what it is given; gradients flow back to it.
    """

    def __init__(self) -> None:
        self.pairs: dict[Place, tuple[Tensor, Tensor]] = {}  # (1, P, X) each

    @property
    def num_tokens(self) -> int:
        """Tokens of the prefix; 0 for a template without one."""
        return self.pairs[0, 0][0].shape[1] if self.pairs else 0

    def join(
        self, place: Place, key_TX: Tensor, value_TX: Tensor, rows: Rows
    ) -> tuple[Tensor, Tensor]:
        """As `Past.join`, for the prefix itself."""
        self.pairs[place] = rows.pad(key_TX), rows.pad(value_TX)
        return self.pairs[place]


class AfterPrefix:
    """Every row begins with the same prefix, whose states are known."""

    def __init__(self, prefix: PrefixStates) -> None:
        self.prefix = prefix

    def join(
        self, place: Place, key_TX: Tensor, value_TX: Tensor, rows: Rows
    ) -> tuple[Tensor, Tensor]:
        """As `Past.join`."""
        own = rows.pad(key_TX), rows.pad(value_TX)
        if not self.prefix.pairs:  # a template without a prefix
            return own
        key, value = (
            torch.cat([before.expand(rows.num_rows, -1, -1), new], 1)
            for before, new in zip(self.prefix.pairs[place], own, strict=True)
        )
        return key, value


@dataclass
class Band:
    """Packed rows of near lengths, which attention pads to the longest of them."""

    masks: LayerMasks  # of the padded rows
    rows: Rows | None = None  # None: the model runs padded rows as they are
    past: Past | None = None

    def join(self, place: Place, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values of a layer, (B, H, K, D), from the band's own, (1, H, T, D)."""
        if self.rows is None:
            return key, value
        num_heads = key.shape[1], value.shape[1]
        key_TX, value_TX = (x[0].transpose(0, 1).flatten(1) for x in (key, value))
        if self.past is None:
            joined = self.rows.pad(key_TX), self.rows.pad(value_TX)
        else:
            joined = self.past.join(place, key_TX, value_TX, self.rows)
        key, value = (
            _heads(x, heads).transpose(1, 2) for x, heads in zip(joined, num_heads, strict=True)
        )
        return key, value

    def pad_query(self, query: Tensor) -> Tensor:
        """Queries in rows, (B, H, Q, D), from packed ones, (1, H, T, D)."""
        if self.rows is None:
            return query
        padded_BQX = self.rows.pad(query[0].transpose(0, 1).flatten(1))
        return _heads(padded_BQX, query.shape[1]).transpose(1, 2)

    def pack_output(self, out_BQHD: Tensor) -> Tensor:
        """Attention's output of the packed tokens, (1, T, H, D)."""
        if self.rows is None:
            return out_BQHD.contiguous()
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
    position_T: Tensor  # (T,), or (B, Q) where nothing is packed
    restart_T: Tensor  # `patterns.restart_positions`, same shape
    first_layer: int = 0
    entering: Tensor | None = None  # hidden states of its tokens where no layer before made them
    from_T: Tensor | None = None  # its tokens among those of the stage before

    @property
    def schedule(self) -> Schedule:
        """The schedule its masks follow."""
        return self.bands[0].masks.schedule

    def once(self, name: object, make: Callable[[], V]) -> V:
        """The value of that name, made at its first use in this pass."""
        return self.bands[0].masks.once(name, make)

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
        sizes = [len(band.rows.place_T) for band in self.bands if band.rows is not None]
        parts = (torch.split(x, sizes, dim=2) for x in (query, key, value))
        yield from zip(self.bands, *parts, strict=True)


def _heads(packed: Tensor, num_heads: int) -> Tensor:
    """Split the last axis into heads and head width."""
    return packed.reshape(*packed.shape[:-1], num_heads, -1)


@dataclass
class Stages:
    """What the hooks and attention functions of all layers read; a keyword of the forward pass."""

    stages: list[Stage]  # by first layer
    # How often each layer has read its mask: once an attention, counted from the layer's entry.
    read: Counter[int] = field(default_factory=Counter)

    def of_layer(self, layer: int) -> Stage:
        """The stage a layer belongs to."""
        return [stage for stage in self.stages if stage.first_layer <= layer][-1]
