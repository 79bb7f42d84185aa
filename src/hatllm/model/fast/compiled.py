"""Compiled decoder layers: norms, rotary positions, SwiGLU and residuals fused by torch.compile.

Attention is left as it is, for its masks and rows are no tensors; everything between two attentions
becomes one graph. What is cheap to compute is computed again on the way back instead of being
kept, so training needs about half the memory.
"""

import os
import shutil

import torch
from transformers import AttentionInterface

from hatllm.model import masked_attention as attention
from hatllm.model.masked_lm import MaskedLM

FUNCTIONS = {
    "sdpa": attention.masked_sdpa,
    "eager": attention.masked_eager,
    "flex": attention.masked_flex,
}
RECOMPILES = 64  # graphs a layer may need: with and without gradients, adapters, packing


def compile_layers(masked: MaskedLM) -> None:
    """Compile every decoder layer, for any number of tokens; one graph serves all layers.

    The first passes are slow (about a minute on 2 CPU cores); what was compiled once is found again
    in torch's cache on disk.

    Args:
        masked: The model, with its adapters.

    Raises:
        ValueError: If the machine has no C++ compiler.
    """
    compiler = os.environ.get("CXX") or "g++"
    if shutil.which(compiler) is None and shutil.which("clang++") is None:
        raise ValueError(
            f"model.compile=true needs a C++ compiler and {compiler} is not installed; "
            "install it or use model.compile=false"
        )
    for backend, function in FUNCTIONS.items():
        left_out = torch.compiler.disable(function)  # type: ignore[no-untyped-call]
        AttentionInterface.register(f"hatllm_{backend}", left_out)
    torch._dynamo.config.recompile_limit = RECOMPILES
    for layer in masked.decoder.layers:  # type: ignore[union-attr]
        layer.forward = torch.compile(layer.forward, dynamic=True)
