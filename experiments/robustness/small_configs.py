"""A small configuration of any causal LM that transformers has, by the names of its settings."""

import re
from collections.abc import Callable
from typing import Any

from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

LAYERS, WINDOW = 4, 4  # the window is shorter than the prompts

# The first pattern that a setting's whole name matches says how it becomes small.
Small = int | float | Callable[[Any], Any]
SIZES: tuple[tuple[str, Small], ...] = (
    (r".*vocab_size.*", 64),
    (r"pad_token_id", 0),
    (r"bos_token_id", 1),
    (r"eos_token_id", 2),
    (r".*token_(id|index)", lambda value: min(value, 3)),
    (r"initializer_range|init_std|initializer_factor", 0.3),
    (r"(num_hidden_layers|n_layers?|num_layers|encoder_layers|decoder_layers|depth)", LAYERS),
    (r"(first_k_dense_replace|num_dense_layers|moe_layer_start_index|n_dense_layers)", 1),
    (r"num_kv_shared_layers", lambda value: min(value, 2)),
    (r"num_nextn_predict_layers|mtp_num_hidden_layers", 0),
    (r".*(num|n)_(global_)?(key_value|kv)_heads", lambda value: 1 if value == 1 else 2),
    (r"num_key_value_groups", 2),
    (r".*(attention_heads|n_heads?|num_heads)", 4),
    (r"n_head_kv", 2),
    (r"(global_)?head_dim|.*head_dim|d_kv|attention_head_size", 8),
    (r"(q|kv|o)_lora_rank|.*lora_rank", 16),
    (r"(num|n)_(shared|null)_experts", lambda value: min(value, 1)),
    (r".*(num_experts_per_tok|top_?k|experts_per_token|moe_topk|moe_k|num_selected_experts)", 2),
    (r"(n_groups?|topk_groups?|num_expert_groups?|num_limited_groups?)", 1),
    (r".*experts.*", lambda value: min(value, 4)),
    (r".*sliding_window.*|attention_window_size|attention_chunk_size|window_size", WINDOW),
    (r"(max|n)_position.*|n_positions|n_ctx|.*max_seq_len.*|seq_length", 128),
    (r"original_max_position_embeddings", 128),
    (r"hidden_size_per_layer_input|laurel_rank|.*per_layer.*dim", 8),
    (r"altup_num_inputs", 2),
    (r"word_embed_proj_dim|embedding_size|.*hidden_size|d_model|n_embd|.*hidden_dim|dim", 32),
    (r".*(intermediate|ffn|ff_|mlp).*(size|dim|hidden)|d_ff|n_inner|ffn_dim", 48),
)
ABSENT = {"head_dim": 8}  # instead of null
# What the names alone do not say.
EXTRAS: dict[str, dict[str, Any]] = {
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "hunyuan_v1_moe": {"num_experts": 4},
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10_000.0}}
    },
    "nemotron": {"num_key_value_heads": 2},
    "bamba": {"mamba_n_heads": 4, "mamba_d_head": 16},
    "falcon_h1": {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_ssm": 64},
    "granitemoehybrid": {"mamba_n_heads": 4, "mamba_d_head": 16},
    "mamba2": {"num_heads": 8},
    "zaya": {"num_experts_per_tok": 1},
    "reformer": {"is_decoder": True},
    "xlnet": {"d_head": 8},
    "gemma4_assistant": {"hidden_size_per_layer_input": 0},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
}
NAMES = [(re.compile(pattern), small) for pattern, small in SIZES]


def model_types() -> list[str]:
    """Every model type that `AutoModelForCausalLM` knows."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def small_config(model_type: str, window: bool = False) -> PreTrainedConfig:
    """A model of that type with four narrow layers; all else as the type has it by default.

    Args:
        model_type: One of `model_types`.
        window: Switch sliding windows on where the type has them but no default.
    """
    kind = type(AutoConfig.for_model(model_type))
    settings = shrunk(AutoConfig.for_model(model_type).to_dict()) | EXTRAS.get(model_type, {})
    if window:
        text = settings.get("text_config") or settings
        text |= {"sliding_window": WINDOW, "use_sliding_window": True}
        text.pop("layer_types", None)
    return kind(**settings)


def can_slide(model_type: str) -> bool:
    """Whether the type's text model has sliding windows that are off by default."""
    config = AutoConfig.for_model(model_type).get_text_config(decoder=True)
    if not hasattr(config, "sliding_window"):
        return False
    return config.sliding_window is None or not getattr(config, "use_sliding_window", True)


def shrunk(settings: dict[str, Any]) -> dict[str, Any]:
    """Small values instead of a configuration's own, in its parts as well."""
    layers = next((settings[name] for name in ("num_hidden_layers", "n_layer", "n_layers",
                   "num_layers") if isinstance(settings.get(name), int)), None)  # fmt: skip
    small: dict[str, Any] = {}
    for name, value in settings.items():
        if name in ("transformers_version", "architectures", "dtype", "torch_dtype"):
            continue
        if name == "model_type" or value is None:
            small[name] = ABSENT.get(name, value)
        elif name == "per_layer_config":  # of the full layers, which are now each second one
            parts = list(shrunk(value).values())
            small[name] = {"1": parts[0], "3": parts[1]}
        elif isinstance(value, dict) and ("model_type" in value or name.endswith("_config")):
            small[name] = shrunk(value)
        elif isinstance(value, dict):
            small[name] = {key: _section(key, part) for key, part in value.items()}
        elif isinstance(value, list) and layers is not None and len(value) == layers:
            small[name] = _every_kind(value)
        else:
            small[name] = _small(name, value)
    heads = settings.get("num_attention_heads")
    if heads is not None and heads == settings.get("num_key_value_heads", heads):
        small["num_key_value_heads"] = small["num_attention_heads"]
    return small


def _small(name: str, value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    for pattern, small in NAMES:
        if pattern.fullmatch(name):
            return small(value) if callable(small) else small
    return value


def _section(name: str, value: Any) -> Any:
    """A rotary setting: frequencies of a head of 8 are shared out anew."""
    if name == "mrope_section":
        return [2, 1, 1]
    if isinstance(value, dict):
        return {key: _section(key, part) for key, part in value.items()}
    return value


def _every_kind(values: list[Any]) -> list[Any]:
    """Four of the layers' values, every kind among them."""
    kinds = list(dict.fromkeys(map(repr, values)))
    first = [values[list(map(repr, values)).index(kind)] for kind in kinds]
    return (first * LAYERS)[:LAYERS]
