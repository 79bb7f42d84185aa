"""The floor: the floating-point operations that are needed over what the machine can multiply.

Counted are the tokens that go through each layer, without padding, the rows of the output layer,
and attention over the keys that causal attention would see. Single legal logits, norms, softmax and
LoRA's own matrices are left out; they are below a hundredth of the rest.

Dimension key: M rows, K inner, N columns of a matrix product.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

SHAPES_MKN = ((1024, 576, 1536), (1024, 1536, 576), (1024, 576, 576), (2048, 2048, 2048))
GPU_SHAPES_MKN = ((8192, 576, 1536), (8192, 1536, 576), (8192, 8192, 8192))


def wait_for(device: str) -> None:
    """Let the device finish, so that a clock read after it is true."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def seconds_of(work: Any, device: str) -> float:
    """Wall-clock seconds of one call."""
    wait_for(device)
    start = time.perf_counter()
    work()
    wait_for(device)
    return time.perf_counter() - start


def matrix_rates(dtype: str, device: str, repeats: int) -> dict[str, float]:
    """GFLOP/s of matrix products, the best of some repeats for each shape; and the best of all."""
    is_cuda = torch.device(device).type == "cuda"
    rates = {}
    for M, K, N in GPU_SHAPES_MKN if is_cuda else SHAPES_MKN:
        left_MK, right_KN = (
            torch.randn(shape, device=device).to(getattr(torch, dtype))
            for shape in ((M, K), (K, N))
        )

        def product(left_MK: Tensor = left_MK, right_KN: Tensor = right_KN) -> None:
            left_MK @ right_KN

        product()
        fastest = min(seconds_of(product, device) for _ in range(repeats))
        rates[f"({M},{K})x({K},{N})"] = round(2 * M * K * N / fastest / 1e9, 1)
    return rates | {"best": max(rates.values())}


@dataclass
class Work:
    """What went through a model."""

    layer_calls: int = 0  # of all layers
    layer_tokens: int = 0  # tokens of all layers
    output_rows: int = 0  # rows of the whole output layer


@contextmanager
def counted(backbone: Any) -> Iterator[Work]:
    """Count what goes through a causal LM's layers while the block runs."""
    work = Work()

    def through_layer(_: Any, __: Any, out: Any) -> None:
        hidden = out[0] if isinstance(out, tuple) else out
        work.layer_calls += 1
        work.layer_tokens += hidden.shape[:-1].numel()

    def through_output(_: Any, args: Any, __: Any) -> None:
        work.output_rows += args[0].shape[:-1].numel()

    hooks = [layer.register_forward_hook(through_layer) for layer in backbone.get_decoder().layers]
    hooks.append(backbone.get_output_embeddings().register_forward_hook(through_output))
    try:
        yield work
    finally:
        for hook in hooks:
            hook.remove()


@dataclass(frozen=True)
class Sizes:
    """What a token costs in one layer, from the backbone."""

    linear: int  # weights of a layer's matrices
    attention: int  # heads times head width
    output: int  # weights of the output layer

    @classmethod
    def of(cls, backbone: Any) -> "Sizes":
        """Read a causal LM; adapters are left out."""
        config = backbone.config.get_text_config(decoder=True)
        heads = config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // heads
        layer = backbone.get_decoder().layers[0]
        linear = sum(
            weight.numel()
            for name, weight in layer.named_parameters()
            if weight.ndim == 2 and "lora_" not in name
        )
        return cls(linear, heads * width, backbone.get_output_embeddings().weight.numel())

    def forward_flops(self, work: Work, keys: float) -> float:
        """Operations of a forward pass in which a token sees so many keys on average."""
        a_token = 2 * self.linear + 4 * self.attention * keys
        return a_token * work.layer_tokens + 2 * self.output * work.output_rows

    def training_flops(self, work: Work, keys: float) -> float:
        """Forward and backward where the weights are frozen: input gradients only.

        Attention has two products forward and four backward, a frozen matrix one and one.
        """
        a_token = 4 * self.linear + 12 * self.attention * keys
        return a_token * work.layer_tokens + 4 * self.output * work.output_rows
