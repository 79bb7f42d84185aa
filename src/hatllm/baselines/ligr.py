"""The LiGR block, a layer of SASRec: attention and feed-forward behind learned gates.

Borisyuk et al., "From Features to Transformers: Redefining Ranking for Scalable Impact",
arXiv:2502.03417, as eSASRec has it (RecSys 2025; ``transformers/ligr.py`` of RecTools):

    x <- x + sigmoid(G1 x) * attention(norm1 x), then x <- x + sigmoid(G2 x) * swiglu(norm2 x).

The gates read x itself, not its norm.

Dimension key: B batch, L positions, D hidden size.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hatllm.config import SequenceConfig


class LigrBlock(nn.Module):
    """Pre-norm, so that a path without any norm runs from the first layer to the last."""

    def __init__(self, config: SequenceConfig) -> None:
        super().__init__()
        assert config.num_heads is not None and config.feedforward_size is not None
        assert config.attention_dropout is not None
        size = config.hidden_size
        self.norm, self.feedforward_norm = nn.LayerNorm(size), nn.LayerNorm(size)
        self.attention = nn.MultiheadAttention(
            size, config.num_heads, config.attention_dropout, batch_first=True
        )
        self.feedforward = SwiGLU(size, config.feedforward_size, config.dropout)
        self.gate, self.feedforward_gate = nn.Linear(size, size), nn.Linear(size, size)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BLD: Tensor, blocked_LL: Tensor) -> Tensor:
        """One layer."""
        read_BLD = self.norm(x_BLD)
        seen_BLD, _ = self.attention(
            read_BLD, read_BLD, read_BLD, attn_mask=blocked_LL, need_weights=False
        )
        x_BLD = x_BLD + torch.sigmoid(self.gate(x_BLD)) * self.dropout(seen_BLD)
        made_BLD = self.dropout(self.feedforward(self.feedforward_norm(x_BLD)))
        out_BLD: Tensor = x_BLD + torch.sigmoid(self.feedforward_gate(x_BLD)) * made_BLD
        return out_BLD


class SwiGLU(nn.Module):
    """down(silu(gate x) * up x), without biases (arXiv:2002.05202)."""

    def __init__(self, size: int, feedforward_size: int, dropout: float) -> None:
        super().__init__()
        self.gate = nn.Linear(size, feedforward_size, bias=False)
        self.up = nn.Linear(size, feedforward_size, bias=False)
        self.down = nn.Linear(feedforward_size, size, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BLD: Tensor) -> Tensor:
        """The same on each position."""
        out_BLD: Tensor = self.down(self.dropout(F.silu(self.gate(x_BLD)) * self.up(x_BLD)))
        return out_BLD
