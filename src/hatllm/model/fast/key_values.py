"""Keys and values of everything a batch of users has run through the model, written in place.

Dimension key: B users, K keys in use, T packed new tokens, X heads times head width (values may
have another than keys).
"""

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import pad

from hatllm.model.fast.prefix import PrefixStates
from hatllm.model.fast.stages import Place, Rows


@dataclass
class _Layer:
    key_BKX: Tensor  # K: capacity
    value_BKX: Tensor


class KeyValueStore:
    """One row of keys a user, the prefix first; a `stages.Past` for decoding (no gradients)."""

    def __init__(self, prefix: PrefixStates, num_rows: int, num_prefix: int) -> None:
        self.prefix, self.num_rows, self.num_prefix = prefix, num_rows, num_prefix
        self.layers: dict[Place, _Layer] = {}
        self.capacity = 0
        self.num_keys = 0

    def aim(self, row_T: Tensor, column_T: Tensor, num_keys: int) -> None:
        """Say where the next pass's tokens go.

        Args:
            row_T: User of each packed token. Shape (T,), int64.
            column_T: Key place, distinct within a user. Shape (T,), int64.
            num_keys: Key places in use after the pass.
        """
        if num_keys > self.capacity:
            self._grow(2 * num_keys)  # room for about as many title tokens as the prompt has
        self.num_keys = num_keys
        self.place_T = row_T * self.capacity + column_T

    def _grow(self, capacity: int) -> None:
        more = capacity - self.capacity
        for layer in self.layers.values():
            layer.key_BKX = pad(layer.key_BKX, (0, 0, 0, more))
            layer.value_BKX = pad(layer.value_BKX, (0, 0, 0, more))
        self.capacity = capacity

    def join(
        self, place: Place, key_TX: Tensor, value_TX: Tensor, rows: Rows
    ) -> tuple[Tensor, Tensor]:
        """As `stages.Past.join`; the new tokens stay in the store."""
        if place not in self.layers:
            self.layers[place] = self._empty(place, key_TX, value_TX)
        store = self.layers[place]
        for held, new_TX in ((store.key_BKX, key_TX), (store.value_BKX, value_TX)):
            held.view(-1, held.shape[2]).index_copy_(0, self.place_T, new_TX)
        return store.key_BKX[:, : self.num_keys], store.value_BKX[:, : self.num_keys]

    def _empty(self, place: Place, *like: Tensor) -> _Layer:
        # Zeros, not garbage: a blocked key has weight 0, and 0 times nan is nan.
        made = [x_TX.new_zeros(self.num_rows, self.capacity, x_TX.shape[1]) for x_TX in like]
        if self.num_prefix:
            for held, before in zip(made, self.prefix.pairs[place], strict=True):
                held[:, : self.num_prefix] = before
        return _Layer(*made)
