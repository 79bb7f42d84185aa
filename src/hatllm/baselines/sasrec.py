"""SASRec: causal self-attention over the ids of the history.

Kang and McAuley, "Self-Attentive Sequential Recommendation", ICDM 2018, arXiv:1808.09781. The
output layer is the item embedding, as in the paper, or with ``shared_embedding: false`` a layer of
its own, as in the code that the MSL line of work starts from (github.com/YangZhengyi98/DROS).
Attention comes from torch, which adds an output projection. eSASRec (RecSys 2025, RecTools) is the
same model of other layers (``block: ligr``) with places counted back from the newest item. The
SASRec of RecTools lets attention see the zeros before a short history (``reads_padding: true``).

Dimension key: B batch, L positions, I items, D hidden size, M training states.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hatllm.baselines.sequences import (
    draw_embeddings,
    last_states,
    output_weights,
    training_states,
)
from hatllm.config import SequenceConfig


class SASRec(nn.Module):
    """Items padded on the right need no padding mask: a causal position never sees them.

    With ``reads_padding`` each history is moved to the end of its L positions, and attention sees
    the zeros in front of it: the shorter the history, the less of it reaches the state.
    """

    def __init__(self, num_items: int, max_history_items: int, config: SequenceConfig) -> None:
        super().__init__()
        self.every_position = config.every_position
        self.counts_back = config.positions_from == "newest"
        self.reads_padding = bool(config.reads_padding)
        size = config.hidden_size
        self.items = nn.Embedding(num_items + 1, size, padding_idx=num_items)
        self.positions = nn.Embedding(max_history_items, size)
        draw_embeddings(config.init_std, self.items, self.positions)
        self.dropout = nn.Dropout(config.dropout)
        is_ligr = config.block == "ligr"
        block = LigrBlock if is_ligr else Block
        self.blocks = nn.ModuleList(block(config) for _ in range(config.num_layers))
        self.norm = nn.Identity() if is_ligr else nn.LayerNorm(size)  # as in RecTools
        self.answers = None if config.shared_embedding else nn.Linear(size, num_items)

    def forward(self, history_BL: Tensor) -> Tensor:
        """The state after each item, shape (B, L, D)."""
        x_BLD = self.dropout(self.items(history_BL) + self.positions(self._places(history_BL)))
        if self.reads_padding:
            length_B = history_BL.ne(self.items.num_embeddings - 1).sum(dim=1)
            return self._behind_zeros(x_BLD, length_B)
        blocked_LL = _later(x_BLD.shape[1], x_BLD.device)
        for block in self.blocks:
            x_BLD = block(x_BLD, blocked_LL)
        state_BLD: Tensor = self.norm(x_BLD)
        return state_BLD

    def _behind_zeros(self, x_BLD: Tensor, length_B: Tensor) -> Tensor:
        """The same with a zero in front of each history for every position that it leaves free."""
        num_places, num_read = self.positions.num_embeddings, x_BLD.shape[1]
        free_B1 = num_places - length_B[:, None]
        x_BLD = _turned(F.pad(x_BLD, (0, 0, 0, num_places - num_read)), free_B1)
        is_item_BL1 = (torch.arange(num_places, device=x_BLD.device) >= free_B1)[..., None]
        blocked_LL = _later(num_places, x_BLD.device)
        for block in self.blocks:
            x_BLD = block(x_BLD * is_item_BL1, blocked_LL)
        return _turned(self.norm(x_BLD), -free_B1)[:, :num_read]

    def _places(self, history_BL: Tensor) -> Tensor:
        """Which position each item has; (L,), or (B, L) where it depends on the history's length.

        Counted back, a training row's earlier states know how many items follow, as published.
        """
        place_L = torch.arange(history_BL.shape[1], device=history_BL.device)
        if not self.counts_back:
            return place_L
        length_B1 = history_BL.ne(self.items.num_embeddings - 1).sum(dim=1, keepdim=True)
        return (length_B1 - 1 - place_L).clamp(min=0)

    def training_states(
        self, history_BL: Tensor, length_B: Tensor, target_B: Tensor
    ) -> tuple[Tensor, Tensor]:
        """States to learn from and the items that come next."""
        hidden_BLD = self(history_BL)
        return training_states(hidden_BLD, history_BL, length_B, target_B, self.every_position)

    def next_states(self, history_BL: Tensor, length_B: Tensor) -> Tensor:
        """The state that the next item is predicted from, shape (B, D)."""
        return last_states(self(history_BL), length_B)

    def output(self) -> tuple[Tensor, Tensor]:
        """weight_ID and bias_I: the logits of a state are weight state + bias."""
        return output_weights(self.items, self.answers)


def _turned(x_BLD: Tensor, by_B1: Tensor) -> Tensor:
    """Each row of positions moved to the right, what falls off coming in again on the left."""
    place_L = torch.arange(x_BLD.shape[1], device=x_BLD.device)
    from_BL1 = ((place_L - by_B1) % x_BLD.shape[1])[..., None]
    return x_BLD.gather(1, from_BL1.expand_as(x_BLD))


def _later(length: int, device: torch.device) -> Tensor:
    """Which keys come after each query, shape (L, L)."""
    return torch.ones(length, length, dtype=torch.bool, device=device).triu(1)


def attention_of(config: SequenceConfig) -> nn.MultiheadAttention:
    """The attention of a block of either kind, over (B, L, D)."""
    assert config.num_heads is not None and config.attention_dropout is not None
    return nn.MultiheadAttention(
        config.hidden_size, config.num_heads, config.attention_dropout, batch_first=True
    )


class Block(nn.Module):
    """Attention with normalised queries, then a feed-forward layer on each position."""

    def __init__(self, config: SequenceConfig) -> None:
        super().__init__()
        assert config.feedforward_size is not None
        size = config.hidden_size
        self.query_norm, self.norm = nn.LayerNorm(size), nn.LayerNorm(size)
        self.attention = attention_of(config)
        self.feedforward = nn.Sequential(
            nn.Linear(size, config.feedforward_size),
            nn.ReLU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.feedforward_size, size),
            nn.Dropout(config.dropout),
        )

    def forward(self, x_BLD: Tensor, blocked_LL: Tensor) -> Tensor:
        """One layer; the residual path starts at the normalised queries, as published."""
        query_BLD = self.query_norm(x_BLD)
        seen_BLD, _ = self.attention(
            query_BLD, x_BLD, x_BLD, attn_mask=blocked_LL, need_weights=False
        )
        x_BLD = self.norm(query_BLD + seen_BLD)
        out_BLD: Tensor = x_BLD + self.feedforward(x_BLD)
        return out_BLD


class LigrBlock(nn.Module):
    """Attention and feed-forward behind learned gates.

    Borisyuk et al., "From Features to Transformers: Redefining Ranking for Scalable Impact",
    arXiv:2502.03417, as eSASRec has it (RecSys 2025; ``transformers/ligr.py`` of RecTools):

        x <- x + sigmoid(G1 x) * attention(norm1 x), then x <- x + sigmoid(G2 x) * swiglu(norm2 x).

    The gates read x itself, not its norm. Pre-norm, so that a path without any norm runs from the
    first layer to the last.
    """

    def __init__(self, config: SequenceConfig) -> None:
        super().__init__()
        assert config.feedforward_size is not None
        size = config.hidden_size
        self.norm, self.feedforward_norm = nn.LayerNorm(size), nn.LayerNorm(size)
        self.attention = attention_of(config)
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
