"""Tiny random models of every family that HatLLM names, and what is special about each."""

from collections.abc import Callable
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel

SIZE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WINDOW = 4  # shorter than the test's sequences
LOCAL_GLOBAL = ["sliding_attention", "full_attention"] * 2

FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Qwen2": {},
    "Qwen3": {"head_dim": 8},
    "Mistral": {"sliding_window": WINDOW},
    "Gemma": {"head_dim": 8},
    "Gemma2": {
        "head_dim": 8,
        "sliding_window": WINDOW,
        "layer_types": LOCAL_GLOBAL,
        # Small enough to bend these models' logits.
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0,
        "query_pre_attn_scalar": 8,
    },
    "Gemma3Text": {
        "head_dim": 8,
        "sliding_window": WINDOW,
        "layer_types": LOCAL_GLOBAL,
        "query_pre_attn_scalar": 8,
        # Local and global layers turn at very different speeds.
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            "full_attention": {"rope_type": "default", "rope_theta": 1_000_000.0},
        },
    },
    "Phi": {"partial_rotary_factor": 0.5},
    "Phi3": {"sliding_window": WINDOW},
    "SmolLM3": {"no_rope_layers": [1, 1, 0, 1]},
}
SOFT_CAPPED = ["Gemma2"]


def build(family: str, **changes: Any) -> PreTrainedModel:
    """A seeded random model of the family."""
    config_class: Callable[..., Any] = getattr(transformers, f"{family}Config")
    config = config_class(**SIZE | FAMILIES.get(family, {}) | changes)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


def backends_of(family: str) -> list[str]:
    """The backends that can compute the family."""
    return [b for b in ("sdpa", "eager", "flex") if family not in SOFT_CAPPED or b != "sdpa"]
