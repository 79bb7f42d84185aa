"""Read the attention weights of every layer while a prompt goes through.

Dimension key: B batch, H heads, Q query position, K key position.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from hatllm.model.masked_lm import MaskedLM

Reader = Callable[[int, Tensor], None]  # layer, weight_BHQK


@contextmanager
def reading_weights(lm: MaskedLM, reader: Reader) -> Iterator[None]:
    """Hand every layer's weights to a reader, one layer at a time, none kept.

    Args:
        lm: A model with the `eager` backend, the one that writes its weights out.
        reader: Called with the layer's index and weight_BHQK, shape (B, H, Q, K).

    Raises:
        ValueError: If the attention of a layer gives no weights.
    """
    layers: Any = lm.decoder.layers
    hooks = [
        layer.self_attn.register_forward_hook(_hook(index, reader))
        for index, layer in enumerate(layers)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def on_eager(lm: MaskedLM, backend: str) -> Iterator[None]:
    """Compute attention by the `eager` backend for a while.

    Args:
        lm: A model on any backend.
        backend: Its own, to go back to.
    """
    model = lm.backbone[0]
    model.set_attn_implementation("hatllm_eager")
    try:
        yield
    finally:
        model.set_attn_implementation(f"hatllm_{backend}")


def _hook(layer: int, reader: Reader) -> Callable[[Any, Any, Any], None]:
    def read(_: Any, __: Any, output: Any) -> None:
        weight_BHQK = output[1]
        if weight_BHQK is None:
            raise ValueError(
                f"the attention of layer {layer} gives no weights; use model.backend=eager"
            )
        reader(layer, weight_BHQK)

    return read
