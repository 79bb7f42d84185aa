"""Which models can be masked, as their configuration and their layers say; no weights needed."""

import hashlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel

from hatllm.files import read_json
from hatllm.masks.schedule import Schedule

if TYPE_CHECKING:
    from hatllm.config import ModelConfig

# Model types that the tests hold against transformers in every path; any other proves itself when
# it is first loaded (`hatllm.decode.proof`).
PROVEN = ("llama", "qwen2", "qwen3", "mistral", "gemma", "gemma2", "gemma3_text", "phi", "phi3",
          "smollm3")  # fmt: skip
ADDED = ("dtype", "transformers_version", "architectures", "quantization_config")
# What a model raises that is built otherwise than the masks expect.
UNFIT = (RuntimeError, TypeError, AttributeError, LookupError)
LAYER_TYPES = ("full_attention", "sliding_attention")
MIXING = ("mamba_",)  # settings of layers that mix tokens elsewhere too: Falcon-H1, Bamba, ...
# What only a pass would show. These write their window into a mask of their own, ...
WINDOW_KEPT = ("qwen2_moe", "doge", "phimoe")
# ... and these do not hand the masks down to their attention.
MASKS_LOST = ("nemotron",)
# These scale queries by positions that the layers are not handed, and that cannot restart.
OWN_POSITIONS = ("beam",)


def check_config(config: Any, backend: str, schedule: Schedule) -> None:
    """Refuse what a configuration shows to be beyond the masks or the backend.

    Args:
        config: A transformers configuration, of text alone or with more parts.
        backend: 'sdpa', 'eager' or 'flex'.
        schedule: Of the run.

    Raises:
        ValueError: If the model's attention is one the backend would compute wrongly, or the
            schedule has another number of layers.
    """
    text = config.get_text_config(decoder=True)
    _check_num_layers(config, schedule)
    if backend == "sdpa" and getattr(text, "attn_logit_softcapping", None):
        raise ValueError(
            f"model.backend='sdpa' cannot soft-cap attention logits, which {text.model_type!r} "
            "needs; use model.backend=eager (or flex on a GPU)"
        )
    if wrong := _unmaskable(text) or _unmaskable_under(text, schedule):
        raise ValueError(f"model {text.model_type!r} {wrong}")


def _unmaskable(text: Any) -> str | None:
    """Why no schedule fits the model; None where nothing speaks against it."""
    if getattr(text, "use_bidirectional_attention", False):
        return "attends both ways; HatLLM needs a causal LM"
    other = set(getattr(text, "layer_types", None) or ()) - set(LAYER_TYPES)
    other |= {setting for setting in vars(text) if setting.startswith(MIXING)}
    if other:
        return (
            f"has layers that no mask governs ({', '.join(sorted(other))}); HatLLM needs "
            f"{' and '.join(LAYER_TYPES)} alone"
        )
    for setting in ("logits_scaling", "logit_scale"):
        if getattr(text, setting, None) not in (None, 1, 1.0):
            return f"scales its logits ({setting}); not supported"
    if text.model_type in MASKS_LOST:
        return "does not hand masks down to its layers"
    layer = next((i for i in range(text.num_hidden_layers) if slides(text, i)), None)
    if text.model_type in WINDOW_KEPT and layer is not None:
        return f"does not hand on the sliding window of layer {layer}"
    return None


def _unmaskable_under(text: Any, schedule: Schedule) -> str | None:
    """Why this schedule does not fit the model."""
    restarts = any(schedule.restarts(layer) for layer in range(len(schedule.patterns)))
    if restarts and text.model_type in OWN_POSITIONS:
        return "has positions that mask.intra_scope=segments cannot restart; use mask=hatllm"
    if restarts and getattr(text, "hidden_size_per_layer_input", None):
        return (
            "reads the tokens again in every layer (hidden_size_per_layer_input), which "
            "mask.intra_scope=segments cannot follow; use mask.intra_scope=items, as mask=hatllm"
        )
    return None


def slides(text: Any, layer: int) -> bool:
    """Whether a layer has a sliding window, shorter than a prompt may be, by its configuration."""
    kinds = getattr(text, "layer_types", None)
    window: int | None = getattr(text, "sliding_window", None)
    longest = getattr(text, "max_position_embeddings", None)
    if window is not None and longest is not None and window >= longest:
        return False
    return kinds[layer] == "sliding_attention" if kinds else bool(window)


def num_layers_in(config: Any) -> int:
    """Decoder layers by a transformers configuration.

    Raises:
        ValueError: If it does not say.
    """
    text = config.get_text_config(decoder=True)
    num_layers: int | None = getattr(text, "num_hidden_layers", None)
    if num_layers is None:
        raise ValueError(f"model {text.model_type!r} has no one stack of layers to mask")
    return num_layers


def _check_num_layers(config: Any, schedule: Schedule) -> None:
    num_layers = num_layers_in(config)
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
        ValueError: If it has no stack of layers or no rotary positions, or its attention has sinks
            or does not go through transformers' `AttentionInterface`.
    """
    if wrong := _wrong_with(model):
        name = model.config.get_text_config(decoder=True).model_type
        raise ValueError(
            f"model {name!r} {wrong}; supported are models such as Llama, Qwen, Mistral, Gemma, "
            "Phi and SmolLM"
        )


def _wrong_with(model: PreTrainedModel) -> str | None:
    decoder: Any = model.get_decoder()
    num_layers = num_layers_in(model.config)
    if not hasattr(decoder, "rotary_emb"):
        return "has no rotary position embedding"
    if not hasattr(decoder, "layers"):
        return "has no stack of layers"
    if len(decoder.layers) != num_layers:
        return f"has {len(decoder.layers)} layers but {num_layers} attentions"
    if not model._supports_attention_backend:
        return "does not compute attention through transformers' AttentionInterface"
    if any(name.endswith(".sinks") for name, _ in model.named_parameters()):
        return "has attention sinks (s_aux), which are not supported"
    return None


def refuse_by_verdict(path: Path) -> None:
    """Refuse what was found wrong before; what was never tried passes.

    Raises:
        ValueError: If there is such a verdict.
    """
    reason = read_json(path).get("refused") if path.exists() else None
    if reason is not None:
        raise ValueError(f"{reason} (verdict: {path})")


def verdict_file(
    found: Any, config: "ModelConfig", schedule: Schedule, backend: str, cache_root: Path
) -> Path:
    """Where the verdict on a model lies: named by its type and all that it depends on.

    Args:
        found: The transformers configuration.
        config: Settings of the model.
        schedule: Of the run.
        backend: As in `prove`.
        cache_root: As in `prove`.
    """
    rooms = Path(__file__).parents[1]
    files = sorted(file for room in ("model", "decode") for file in (rooms / room).rglob("*.py"))
    code = [file.read_bytes() for file in files]
    parts = (
        _settings(found.to_dict()), config.dtype, config.quantization_bits, backend, vars(schedule),
        version("transformers"), version("torch"), hashlib.sha256(b"".join(code)).hexdigest(),
    )  # fmt: skip
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()
    return cache_root / "proofs" / f"{found.model_type}-{digest[:16]}.json"


def _settings(found: Any) -> Any:
    """A configuration without what loading adds to it, in its parts as well."""
    if not isinstance(found, dict):
        return found
    names = [name for name in found if name not in ADDED and not str(name).startswith("_")]
    return {str(name): _settings(found[name]) for name in names}
