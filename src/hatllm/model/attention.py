"""Injection: the attention functions that apply a layer's mask, and their registration.

transformers hands every keyword of the forward pass down to the attention function, so the masks
travel as ``layer_masks=...`` and no model class is patched. The caller's own ``attention_mask``
does not arrive here; padding is part of the masks.

Dimension key: B batch, H heads, Q query position, K key position, D head width.
"""

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from hatllm.masks.layer_masks import LayerMasks

BACKENDS = ("sdpa", "eager", "flex")
LAYER_TYPES = ("full_attention", "sliding_attention")

Attention = Any  # an attention module of some model family: has layer_idx, config, training


def install(model: PreTrainedModel, backend: str) -> None:
    """Make a causal LM read ``layer_masks`` in every layer; call once, before peft wraps it.

    Args:
        model: Any transformers causal LM whose attention goes through `AttentionInterface`.
        backend: 'sdpa', 'eager' or 'flex'.

    Raises:
        ValueError: If the model's attention is one the backend would compute wrongly.
    """
    config = model.config.get_text_config(decoder=True)
    if backend == "sdpa" and getattr(config, "attn_logit_softcapping", None):
        raise ValueError(
            f"model.backend='sdpa' cannot soft-cap attention logits, which {config.model_type!r} "
            "needs; use model.backend=eager (or flex on a GPU)"
        )
    _check_tokens_meet_in_attention_only(config)
    model.set_attn_implementation(f"hatllm_{backend}")
    decoder = model.get_decoder()
    if not hasattr(decoder, "rotary_emb"):
        raise ValueError(
            f"model {config.model_type!r} has no rotary position embedding; supported are models "
            "such as Llama, Qwen, Mistral, Gemma, Phi and SmolLM"
        )
    for layer_idx, layer in enumerate(decoder.layers):
        hook = _restart_hook(decoder.rotary_emb, layer_idx, config)
        layer.register_forward_pre_hook(hook, with_kwargs=True)


def _check_tokens_meet_in_attention_only(config: Any) -> None:
    if getattr(config, "use_bidirectional_attention", False):
        raise ValueError(f"model {config.model_type!r} attends both ways; HatLLM needs a causal LM")
    other = set(getattr(config, "layer_types", None) or ()) - set(LAYER_TYPES)
    other |= {name for name in vars(config) if name.startswith("mamba_")}  # Falcon-H1, Bamba, ...
    if other:
        raise ValueError(
            f"model {config.model_type!r} has layers that no mask governs "
            f"({', '.join(sorted(other))}); HatLLM needs {' and '.join(LAYER_TYPES)} alone"
        )


def _restart_hook(rotary: nn.Module, layer_idx: int, config: Any) -> Any:
    """Give the layers of `intra_scope: segments` positions that restart in every segment."""
    by_type = "layer_type" in inspect.signature(rotary.forward).parameters
    extra = (config.layer_types[layer_idx],) if by_type else ()

    def swap_positions(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        masks: LayerMasks | None = kwargs.get("layer_masks")
        if masks is None or not masks.schedule.restarts(layer_idx):
            return None
        if "position_embeddings" not in kwargs:
            raise RuntimeError("this model does not hand position embeddings to its layers")
        like = kwargs["position_embeddings"][0]
        kwargs["position_embeddings"] = masks.once(
            ("rotary", *extra), lambda: rotary(like, masks.query.restart_BL, *extra)
        )
        return args, kwargs

    return swap_positions


def _masks_of(module: Attention, kwargs: dict[str, Any]) -> LayerMasks:
    masks: LayerMasks | None = kwargs.pop("layer_masks", None)
    if masks is None:
        raise RuntimeError(
            "the forward pass got no layer_masks; call the model through hatllm.model.MaskedLM"
        )
    if kwargs.get("s_aux") is not None:
        raise RuntimeError("attention sinks (s_aux) are not supported")
    seen: set[int] = masks.once("layers seen", set)
    seen.add(module.layer_idx)
    return masks


def _window_of(module: Attention, kwargs: dict[str, Any]) -> int | None:
    """The layer's own sliding window; some families hide it in the mask they would have made."""
    config, layer = module.config, module.layer_idx
    kinds = getattr(config, "layer_types", None)
    slides = (
        kinds[layer] == "sliding_attention" if kinds else getattr(config, "sliding_window", None)
    )
    window: int | None = kwargs.get("sliding_window")
    if slides and window is None:
        raise RuntimeError(
            f"layer {layer} of {config.model_type!r} does not hand on its sliding window"
        )
    return window


def masked_sdpa(
    module: Attention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """`torch.nn.functional.scaled_dot_product_attention` under the layer's mask.

    Args:
        module: The attention module; its ``layer_idx`` picks the pattern.
        query: Shape (B, H, Q, D).
        key: Shape (B, H or fewer, K, D), past keys first.
        value: Shape as `key`.
        attention_mask: Ignored (transformers passes none to custom attention).
        dropout: Probability, 0 outside training.
        scaling: Factor on the logits.
        **kwargs: ``layer_masks`` and what the model family adds (``sliding_window``, ...).

    Returns:
        The output, shape (B, Q, H, D), and no weights.
    """
    masks = _masks_of(module, kwargs)
    window = _window_of(module, kwargs)
    allowed_B1QK = masks.of_layer(module.layer_idx, window)
    dtype = query.dtype
    if query.device.type == "cpu" and dtype == torch.bfloat16:
        # torch's CPU kernel is 2x (forward) to 3x (with backward) slower in bfloat16 than float32.
        query, key, value = query.float(), key.float(), value.float()
    pattern = masks.schedule.patterns[module.layer_idx]
    bias_B1QK = masks.once(
        ("bias", pattern, window, query.dtype),
        lambda: torch.zeros_like(allowed_B1QK, dtype=query.dtype).masked_fill_(
            ~allowed_B1QK, float("-inf")
        ),
    )
    out: Tensor = sdpa_attention_forward(
        module, query, key, value, bias_B1QK, dropout, scaling, is_causal=False,
        softcap=kwargs.get("softcap"),
    )[0]  # fmt: skip
    return out.to(dtype), None


def masked_eager(
    module: Attention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Attention written out: the readable oracle.

    Args: As `masked_sdpa`.

    Returns:
        The output, shape (B, Q, H, D), and the weights, shape (B, H, Q, K).
    """
    masks = _masks_of(module, kwargs)
    allowed_B1QK = masks.of_layer(module.layer_idx, _window_of(module, kwargs))
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    logit_BHQK = query @ key.transpose(2, 3) * scale
    if (softcap := kwargs.get("softcap")) is not None:
        logit_BHQK = torch.tanh(logit_BHQK / softcap) * softcap
    logit_BHQK = logit_BHQK.masked_fill(~allowed_B1QK, float("-inf"))
    weight_BHQK = logit_BHQK.softmax(-1, dtype=torch.float32).to(query.dtype)
    weight_BHQK = nn.functional.dropout(weight_BHQK, p=dropout, training=module.training)
    return (weight_BHQK @ value).transpose(1, 2).contiguous(), weight_BHQK


def masked_flex(
    module: Attention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """FlexAttention with one block mask a pattern; compiled where there is a GPU.

    Args, Returns: As `masked_sdpa`.
    """
    masks = _masks_of(module, kwargs)
    window = _window_of(module, kwargs)
    allowed_B1QK = masks.of_layer(module.layer_idx, window)
    pattern = masks.schedule.patterns[module.layer_idx]

    def block_mask() -> Any:
        def mask_mod(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return allowed_B1QK[b, 0, q, k]

        B, _, Q, K = allowed_B1QK.shape
        return create_block_mask(mask_mod, B, None, Q, K, device=allowed_B1QK.device)

    softcap: float = kwargs.get("softcap") or 0.0

    def soft_capped(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return torch.tanh(score / softcap) * softcap

    attend: Any = _compiled_flex() if query.is_cuda else flex_attention
    out = attend(
        query, key, value,
        score_mod=soft_capped if softcap else None,
        block_mask=masks.once(("block mask", pattern, window), block_mask),
        scale=scaling, enable_gqa=query.shape[1] != key.shape[1],
    )  # fmt: skip
    return out.transpose(1, 2).contiguous(), None


_COMPILED: list[Any] = []


def _compiled_flex() -> Any:
    if not _COMPILED:
        _COMPILED.append(torch.compile(flex_attention, dynamic=True))
    return _COMPILED[0]


AttentionInterface.register("hatllm_sdpa", masked_sdpa)
AttentionInterface.register("hatllm_eager", masked_eager)
AttentionInterface.register("hatllm_flex", masked_flex)
