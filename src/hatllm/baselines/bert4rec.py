"""BERT4Rec: two-sided self-attention that learns to fill in hidden items.

Sun et al., "BERT4Rec: Sequential Recommendation with Bidirectional Encoder Representations from
Transformer", CIKM 2019, arXiv:1904.06690. The next item is asked for by a hidden item after the
history. The output layer shares its weights with the item embedding.

Dimension key: B batch, L positions of the history, X = L + 1 positions with the target's, I items,
D hidden size, M training states.
"""

import torch
from torch import Tensor, nn

from hatllm.baselines.sequences import draw_embeddings
from hatllm.config import SequenceConfig


class BERT4Rec(nn.Module):
    """A post-norm transformer encoder from torch."""

    def __init__(self, num_items: int, max_history_items: int, config: SequenceConfig) -> None:
        super().__init__()
        assert config.cloze is not None and config.attention_dropout is not None
        assert config.num_heads is not None and config.feedforward_size is not None
        self.cloze, self.num_items = config.cloze, num_items
        size = config.hidden_size
        self.items = nn.Embedding(num_items + 2, size, padding_idx=num_items)  # padding, hidden
        self.positions = nn.Embedding(max_history_items + 1, size)
        draw_embeddings(config.init_std, self.items, self.positions)
        self.norm, self.dropout = nn.LayerNorm(size), nn.Dropout(config.dropout)
        layer = nn.TransformerEncoderLayer(
            size, config.num_heads, config.feedforward_size, config.dropout, "gelu",
            batch_first=True,
        )  # fmt: skip
        self.encoder = nn.TransformerEncoder(layer, config.num_layers, enable_nested_tensor=False)
        for built in self.encoder.layers:
            built.self_attn.dropout = config.attention_dropout
        self.head = nn.Sequential(nn.Linear(size, size), nn.GELU(), nn.LayerNorm(size))
        self.bias = nn.Parameter(torch.zeros(num_items))

    def forward(self, item_BX: Tensor) -> Tensor:
        """The state of each place, shape (B, P, D)."""
        x_BXD = self.items(item_BX) + self.positions.weight[: item_BX.shape[1]]
        x_BXD = self.encoder(
            self.dropout(self.norm(x_BXD)), src_key_padding_mask=item_BX == self.num_items
        )
        state_BXD: Tensor = self.head(x_BXD)
        return state_BXD

    def training_states(
        self, history_BL: Tensor, length_B: Tensor, target_B: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The states of hidden places and the items that stand there."""
        item_BX = self._with_target(history_BL, length_B, target_B)
        hidden_BX = self._places_to_hide(length_B, item_BX)
        states_BXD = self(item_BX.masked_fill(hidden_BX, self.num_items + 1))
        return states_BXD[hidden_BX], item_BX[hidden_BX]

    def next_states(self, history_BL: Tensor, length_B: Tensor) -> Tensor:
        """The state that the next item is predicted from, shape (B, D)."""
        hidden_B = torch.full_like(length_B, self.num_items + 1)
        state_BXD = self(self._with_target(history_BL, length_B, hidden_B))
        row_B = torch.arange(len(length_B), device=length_B.device)
        state_BD: Tensor = state_BXD[row_B, length_B]
        return state_BD

    def output(self) -> tuple[Tensor, Tensor]:
        """weight_ID and bias_I: the logits of a state are weight state + bias."""
        return self.items.weight[: self.num_items], self.bias

    def _with_target(self, history_BL: Tensor, length_B: Tensor, target_B: Tensor) -> Tensor:
        padding_B1 = history_BL.new_full((len(history_BL), 1), self.num_items)
        item_BX = torch.cat([history_BL, padding_B1], dim=1)
        return item_BX.scatter(1, length_B[:, None], target_B[:, None])

    def _places_to_hide(self, length_B: Tensor, item_BX: Tensor) -> Tensor:
        """True at the places to hide; every row has at least one."""
        places, device = item_BX.shape[1], item_BX.device
        place_X = torch.arange(places, device=device)
        drawn_BX = torch.rand(item_BX.shape, device=device) < self.cloze.mask_prob
        drawn_BX &= item_BX != self.num_items
        last_BX = place_X == length_B[:, None]
        last_only_B = torch.rand(len(item_BX), device=device) < self.cloze.last_only_prob
        last_only_B |= ~drawn_BX.any(dim=1)
        return torch.where(last_only_B[:, None], last_BX, drawn_BX)
