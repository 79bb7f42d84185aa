"""BERT4Rec: two-sided self-attention that learns to fill in hidden items.

Sun et al., "BERT4Rec: Sequential Recommendation with Bidirectional Encoder Representations from
Transformer", CIKM 2019, arXiv:1904.06690. The next item is asked for by a hidden item after the
history. The output layer shares its weights with the item embedding.

Dimension key: B batch, L positions of the history, P = L + 1 positions with the target's, N items,
D hidden size, M training states.
"""

import torch
from torch import Tensor, nn

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
        for embedding in (self.items, self.positions):
            nn.init.normal_(embedding.weight, std=config.init_std)
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

    def forward(self, item_BP: Tensor) -> Tensor:
        """The state of each place, shape (B, P, D)."""
        x_BPD = self.items(item_BP) + self.positions.weight[: item_BP.shape[1]]
        x_BPD = self.encoder(
            self.dropout(self.norm(x_BPD)), src_key_padding_mask=item_BP == self.num_items
        )
        state_BPD: Tensor = self.head(x_BPD)
        return state_BPD

    def training_states(
        self, history_BL: Tensor, length_B: Tensor, target_B: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The states of hidden places and the items that stand there."""
        item_BP = self._with_target(history_BL, length_B, target_B)
        hidden_BP = self._places_to_hide(length_B, item_BP)
        states_BPD = self(item_BP.masked_fill(hidden_BP, self.num_items + 1))
        return states_BPD[hidden_BP], item_BP[hidden_BP]

    def next_states(self, history_BL: Tensor, length_B: Tensor) -> Tensor:
        """The state that the next item is predicted from, shape (B, D)."""
        hidden_B = torch.full_like(length_B, self.num_items + 1)
        state_BPD = self(self._with_target(history_BL, length_B, hidden_B))
        row_B = torch.arange(len(length_B), device=length_B.device)
        state_BD: Tensor = state_BPD[row_B, length_B]
        return state_BD

    def output(self) -> tuple[Tensor, Tensor]:
        """weight_ND and bias_N: the logits of a state are weight state + bias."""
        return self.items.weight[: self.num_items], self.bias

    def _with_target(self, history_BL: Tensor, length_B: Tensor, target_B: Tensor) -> Tensor:
        padding_B1 = history_BL.new_full((len(history_BL), 1), self.num_items)
        item_BP = torch.cat([history_BL, padding_B1], dim=1)
        return item_BP.scatter(1, length_B[:, None], target_B[:, None])

    def _places_to_hide(self, length_B: Tensor, item_BP: Tensor) -> Tensor:
        """True at the places to hide; every row has at least one."""
        places, device = item_BP.shape[1], item_BP.device
        place_P = torch.arange(places, device=device)
        drawn_BP = torch.rand(item_BP.shape, device=device) < self.cloze.mask_prob
        drawn_BP &= item_BP != self.num_items
        last_BP = place_P == length_B[:, None]
        last_only_B = torch.rand(len(item_BP), device=device) < self.cloze.last_only_prob
        last_only_B |= ~drawn_BP.any(dim=1)
        return torch.where(last_only_B[:, None], last_BP, drawn_BP)
