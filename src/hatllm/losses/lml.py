"""Language modelling loss: cross-entropy over the whole vocabulary (BIGRec, arXiv:2308.08434).

Dimension key: T target tokens of all titles in one flat tensor, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def lml_loss(logits_TV: Tensor, token_T: Tensor) -> Tensor:
    """Score each target token against the whole vocabulary.

    Args:
        logits_TV: Logits at the position before each target token. Shape (T, V), any float.
        token_T: Target tokens. Shape (T,), int64, in [0, V).

    Returns:
        nll_T: ``-log softmax(logits)[token]`` in nats, unreduced: the caller sums over a title's
            tokens and averages over rows. Shape (T,), float32 (float64 stays float64).

    Raises:
        ValueError: If the shapes do not fit.
    """
    if logits_TV.ndim != 2 or token_T.shape != logits_TV.shape[:1]:
        raise ValueError(
            f"logits_TV must have shape (T, V) and token_T (T,), got {tuple(logits_TV.shape)} and "
            f"{tuple(token_T.shape)}"
        )
    dtype = torch.promote_types(logits_TV.dtype, torch.float32)
    return F.cross_entropy(logits_TV.to(dtype), token_T, reduction="none")
