"""Which models can be masked, as their configuration and their layers say; no weights needed."""

from typing import Any

from transformers import PreTrainedModel

from hatllm.masks.schedule import Schedule

# Model types that the tests hold against transformers in every path; any other proves itself when
# it is first loaded (`hatllm.model.proof`).
PROVEN = ("llama", "qwen2", "qwen3", "mistral", "gemma", "gemma2", "gemma3_text", "phi", "phi3",
          "smollm3")  # fmt: skip
LAYER_TYPES = ("full_attention", "sliding_attention")
# Models of these types compute their layers with more than the attention the masks govern.
MIXING = ("mamba_",)  # Falcon-H1, Bamba, ...: settings that begin so


def check_config(config: Any, backend: str) -> None:
    """Refuse what a configuration shows to be beyond the masks or the backend.

    Args:
        config: A transformers configuration, of text alone or with more parts.
        backend: 'sdpa', 'eager' or 'flex'.

    Raises:
        ValueError: If the model's attention is one the backend would compute wrongly.
    """
    text = config.get_text_config(decoder=True)
    name = text.model_type
    if backend == "sdpa" and getattr(text, "attn_logit_softcapping", None):
        raise ValueError(
            f"model.backend='sdpa' cannot soft-cap attention logits, which {name!r} needs; use "
            "model.backend=eager (or flex on a GPU)"
        )
    if getattr(text, "use_bidirectional_attention", False):
        raise ValueError(f"model {name!r} attends both ways; HatLLM needs a causal LM")
    other = set(getattr(text, "layer_types", None) or ()) - set(LAYER_TYPES)
    other |= {setting for setting in vars(text) if setting.startswith(MIXING)}
    if other:
        raise ValueError(
            f"model {name!r} has layers that no mask governs ({', '.join(sorted(other))}); HatLLM "
            f"needs {' and '.join(LAYER_TYPES)} alone"
        )
    for setting in ("logits_scaling", "logit_scale"):
        if getattr(text, setting, None) not in (None, 1, 1.0):
            raise ValueError(f"model {name!r} scales its logits ({setting}); not supported")


def check_num_layers(config: Any, schedule: Schedule) -> None:
    """Refuse a schedule of another model.

    Raises:
        ValueError: If its length is not the number of the model's layers.
    """
    num_layers = config.get_text_config(decoder=True).num_hidden_layers
    if len(schedule.patterns) != num_layers:
        raise ValueError(
            f"the schedule has {len(schedule.patterns)} layers, the model {num_layers}; "
            "correct model.num_layers"
        )


def check_structure(model: PreTrainedModel) -> None:
    """Refuse a model whose layers are not built as the masks need them.

    Args:
        model: The model; its weights may be on the meta device.

    Raises:
        ValueError: If it has no stack of layers or no rotary positions, or its attention does not
            go through transformers' `AttentionInterface`.
    """
    text = model.config.get_text_config(decoder=True)
    decoder: Any = model.get_decoder()
    if wrong := _wrong_with(decoder, text, model):
        raise ValueError(
            f"model {text.model_type!r} {wrong}; supported are models such as Llama, Qwen, "
            "Mistral, Gemma, Phi and SmolLM"
        )


def _wrong_with(decoder: Any, text: Any, model: PreTrainedModel) -> str | None:
    if not hasattr(decoder, "rotary_emb"):
        return "has no rotary position embedding"
    if not hasattr(decoder, "layers"):
        return "has no stack of layers"
    if len(decoder.layers) != text.num_hidden_layers:
        return f"has {len(decoder.layers)} layers but {text.num_hidden_layers} attentions"
    if not model._supports_attention_backend:
        return "does not compute attention through transformers' AttentionInterface"
    return None
