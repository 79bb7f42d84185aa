"""A masked forward pass written straight on transformers: nothing of `hatllm` is in it.

One row at a time, without padding, eager attention. Each layer is handed the mask that transformers
made for it (causal, with its own sliding window) less what the pattern blocks, pair by pair.
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

PREFIX, RESPONSE = -1, -2


def straight_log_probs(
    model: Any, ids: Tensor, segment: Sequence[int], patterns: Sequence[str], restarts: bool
) -> Tensor:
    """Log-probabilities of every next token, nats.

    Args:
        model: A causal LM of transformers with eager attention.
        ids: Token ids of one row. Shape (L,), int64.
        segment: Segment of each token, below 0 = template.
        patterns: One of 'intra', 'full', 'cross' for each layer.
        restarts: Whether positions of intra layers restart in every segment.

    Returns:
        Shape (L, V), float32.
    """
    with _masked(model, segment, patterns, restarts):
        logits: Tensor = model(input_ids=ids[None], use_cache=False).logits[0]
    return logits.float().log_softmax(-1)


@contextmanager
def _masked(
    model: Any, segment: Sequence[int], patterns: Sequence[str], restarts: bool
) -> Iterator[None]:
    decoder = model.get_decoder()
    kinds = getattr(decoder.config, "layer_types", None)
    hooks = []
    for layer, pattern in enumerate(patterns):
        kind = kinds[layer] if kinds else None
        hook = _hook(decoder, pattern, segment, restarts and pattern == "intra", kind)
        hooks.append(decoder.layers[layer].register_forward_pre_hook(hook, with_kwargs=True))
    try:
        yield
    finally:
        for registered in hooks:
            registered.remove()


def _hook(decoder: Any, pattern: str, segment: Sequence[int], restarts: bool, kind: Any) -> Any:
    def enter(_: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if pattern == "full":
            return None
        own = kwargs["attention_mask"]
        if restarts:
            own = in_restarted_window(own, restarted(segment))
        kwargs["attention_mask"] = less(own, blocked(pattern, segment, restarts))
        if restarts:
            position = torch.tensor([restarted(segment)])
            like = args[0]
            if kwargs.get("position_ids") is not None:
                kwargs["position_ids"] = position
            if kwargs["position_embeddings"] is None:  # a layer without positions
                return args, kwargs
            by_kind = "layer_type" in inspect.signature(decoder.rotary_emb.forward).parameters
            extra = (kind,) if by_kind else ()
            kwargs["position_embeddings"] = decoder.rotary_emb(like, position, *extra)
        return args, kwargs

    return enter


def less(own: Tensor, is_blocked: Tensor) -> Tensor:
    """An additive mask without the blocked pairs; a token that sees nothing sees itself."""
    lowest = torch.finfo(own.dtype).min
    mask = own.masked_fill(is_blocked, lowest)
    alone = (mask <= lowest / 2).all(-1, keepdim=True) & torch.eye(
        len(is_blocked), dtype=torch.bool
    )
    return mask.masked_fill(alone, 0.0)


def in_restarted_window(own: Tensor, position: Sequence[int]) -> Tensor:
    """The causal mask with the layer's window, if it has one, over restarted positions."""
    lowest = torch.finfo(own.dtype).min
    window = int((own[0, 0, -1] > lowest / 2).sum())
    size, at = len(position), torch.tensor(position)
    allowed = torch.ones(size, size, dtype=torch.bool).tril()
    if window < size:
        allowed &= at[:, None] - at < window
    return torch.zeros(1, 1, size, size, dtype=own.dtype).masked_fill(~allowed, lowest)


def blocked(pattern: str, segment: Sequence[int], restarts: bool) -> Tensor:
    """Pairs of query and key that the pattern blocks, one by one. Shape (L, L), bool."""
    size = len(segment)
    found = torch.zeros(size, size, dtype=torch.bool)
    for q in range(size):
        for k in range(q + 1):
            items = segment[q] >= 0 and segment[k] >= 0
            same = segment[q] == segment[k]
            if pattern == "cross":
                found[q, k] = items and same
            elif restarts:  # segments see the prefix and themselves
                found[q, k] = not same and segment[k] != PREFIX
            else:
                found[q, k] = items and not same
    return found


def restarted(segment: Sequence[int]) -> list[int]:
    """Positions that begin after the prefix again with every segment."""
    prefix = sum(label == PREFIX for label in segment)
    positions: list[int] = []
    for place, label in enumerate(segment):
        goes_on = place > 0 and segment[place - 1] == label
        positions.append(positions[-1] + 1 if goes_on else 0 if label == PREFIX else prefix)
    return positions
