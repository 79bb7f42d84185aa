"""Injection: the attention functions that apply a layer's mask, and their registration.

transformers hands every keyword of the forward pass down to the attention function, so the masks
travel as ``forward_pass=...`` and no model class is patched. The caller's own ``attention_mask``
does not arrive here; padding is part of the masks.

Dimension key: B batch, H heads, Q query position, K key position, D head width.
"""

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import flex_attention
from transformers import AttentionInterface, PreTrainedModel

from hatllm.masks.layer_masks import LayerMasks
from hatllm.model.forward_pass import ForwardPass
from hatllm.model.suitability import slides

Attention = Any  # an attention module of some model family: has layer_idx, config, training


def install(model: PreTrainedModel, backend: str) -> None:
    """Make a causal LM read its ``forward_pass`` in every layer; call once, before peft wraps it.

    Args:
        model: A causal LM that `hatllm.model.suitability` has not refused.
        backend: 'sdpa', 'eager' or 'flex'.
    """
    config = model.config.get_text_config(decoder=True)
    model.set_attn_implementation(f"hatllm_{backend}")
    decoder = model.get_decoder()
    for layer_idx, layer in enumerate(decoder.layers):
        hook = _entry_hook(decoder.rotary_emb, layer_idx, config)
        layer.register_forward_pre_hook(hook, with_kwargs=True)


def constant_positions(config: Any) -> int | None:
    """Positions up to which rotary tables do not depend on the longest prompt; None = no limit.

    Dynamic and longrope scaling choose their frequencies by the longest position of a call, so that
    a row would depend on the rows beside it, and a part of a prompt on the rest.
    """
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    kinds = [rope, *(value for value in rope.values() if isinstance(value, dict))]
    limits = [
        kind.get("original_max_position_embeddings") or config.max_position_embeddings
        for kind in kinds
        if kind.get("rope_type", kind.get("type")) in ("dynamic", "longrope")
    ]
    return min(limits, default=None)


def _entry_hook(rotary: nn.Module, layer_idx: int, config: Any) -> Any:
    """Hand a layer the tokens that it is to work on, and the positions it is to see them at."""
    by_type = "layer_type" in inspect.signature(rotary.forward).parameters
    layer_type = config.layer_types[layer_idx] if by_type else None

    def enter(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        forward_pass: ForwardPass | None = kwargs.get("forward_pass")
        if forward_pass is None:
            return None
        forward_pass.read[layer_idx] = 0
        args = (forward_pass.enter(layer_idx, args[0]), *args[1:])
        positions = forward_pass.positions(layer_idx)
        if positions is None:
            return args, kwargs
        if "position_embeddings" not in kwargs:
            raise RuntimeError("this model does not hand position embeddings to its layers")
        if kwargs.get("position_ids") is not None:  # Ministral 3 scales its queries by them
            kwargs["position_ids"] = positions.position_BL
        if kwargs["position_embeddings"] is None:  # a layer without positions
            return args, kwargs
        like = kwargs["position_embeddings"][0]
        kwargs["position_embeddings"] = positions.rotary(rotary, like, layer_type)
        return args, kwargs

    return enter


def _pass_of(kwargs: dict[str, Any]) -> ForwardPass:
    forward_pass: ForwardPass | None = kwargs.pop("forward_pass", None)
    if forward_pass is None:
        raise RuntimeError(
            "the forward pass got no masks; call the model through hatllm.model.masked_lm.MaskedLM"
        )
    if kwargs.get("s_aux") is not None:
        raise RuntimeError("attention sinks (s_aux) are not supported")
    return forward_pass


def _window_of(module: Attention, kwargs: dict[str, Any]) -> int | None:
    """The layer's own sliding window; some families hide it in the mask they would have made."""
    config, layer = module.config, module.layer_idx
    window: int | None = kwargs.get("sliding_window")
    if window is None and slides(config, layer):
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
        query: Shape (B, H, L, D).
        key: Shape as `query`, with H or fewer heads.
        value: Shape as `key`, of any width.
        attention_mask: Ignored (transformers passes none to custom attention).
        dropout: Probability, 0 outside training.
        scaling: Factor on the logits.
        **kwargs: ``forward_pass`` and what the model family adds (``sliding_window``, ...).

    Returns:
        The output, shape (B, L, H, D), and no weights.
    """
    forward_pass, window = _pass_of(kwargs), _window_of(module, kwargs)
    layer, dtype = module.layer_idx, query.dtype
    if query.device.type == "cpu" and dtype == torch.bfloat16:
        # torch's CPU kernel is 2x (forward) to 3x (with backward) slower in bfloat16 than float32.
        query, key, value = query.float(), key.float(), value.float()

    def attend(masks: LayerMasks, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        bias_B1QK = masks.mask(layer, window).bias(query.dtype)
        out = nn.functional.scaled_dot_product_attention(
            query, key, value, bias_B1QK, dropout, scale=scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )  # fmt: skip
        return out.transpose(1, 2)

    return forward_pass.attend(layer, query, key, value, attend).to(dtype), None


def masked_eager(
    module: Attention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention written out: the readable oracle.

    Args: As `masked_sdpa`.

    Returns:
        The output, shape (B, L, H, D), and the weights, shape (B, H, Q, K), where all rows attend
        together.
    """
    forward_pass, window = _pass_of(kwargs), _window_of(module, kwargs)
    layer, softcap = module.layer_idx, kwargs.get("softcap")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    weights = []

    def attend(masks: LayerMasks, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        groups = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
        logit_BHQK = query @ key.transpose(2, 3) * scale
        if softcap is not None:
            logit_BHQK = torch.tanh(logit_BHQK / softcap) * softcap
        logit_BHQK = logit_BHQK.masked_fill(~masks.of_layer(layer, window), float("-inf"))
        weight_BHQK = logit_BHQK.softmax(-1, dtype=torch.float32).to(query.dtype)
        weights.append(nn.functional.dropout(weight_BHQK, p=dropout, training=module.training))
        return (weights[-1] @ value).transpose(1, 2)

    out = forward_pass.attend(layer, query, key, value, attend)
    return out, weights[0] if len(weights) == 1 else None


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
    forward_pass, window = _pass_of(kwargs), _window_of(module, kwargs)
    layer, softcap = module.layer_idx, kwargs.get("softcap") or 0.0
    kernel: Any = _compiled_flex() if query.is_cuda else flex_attention

    def soft_capped(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return torch.tanh(score / softcap) * softcap

    def attend(masks: LayerMasks, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out: Tensor = kernel(
            query, key, value,
            score_mod=soft_capped if softcap else None,
            block_mask=masks.mask(layer, window).blocks,
            scale=scaling, enable_gqa=query.shape[1] != key.shape[1],
        )  # fmt: skip
        return out.transpose(1, 2)

    return forward_pass.attend(layer, query, key, value, attend), None


_COMPILED: list[Any] = []


def _compiled_flex() -> Any:
    if not _COMPILED:
        _COMPILED.append(torch.compile(flex_attention, dynamic=True))
    return _COMPILED[0]


AttentionInterface.register("hatllm_sdpa", masked_sdpa)
AttentionInterface.register("hatllm_eager", masked_eager)
AttentionInterface.register("hatllm_flex", masked_flex)
