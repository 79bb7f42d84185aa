"""GRU4Rec: a recurrent network over the ids of the history.

Hidasi et al., "Session-based Recommendations with Recurrent Neural Networks", ICLR 2016,
arXiv:1511.06939, with item embeddings as input and (``shared_embedding: false``) an output layer of
its own, as in the code that the MSL line of work starts from (github.com/YangZhengyi98/DROS).

Dimension key: B batch, L positions, I items, D hidden size, M training states.
"""

from torch import Tensor, nn

from hatllm.baselines.sequences import (
    draw_embeddings,
    last_states,
    output_weights,
    training_states,
)
from hatllm.config import SequenceConfig


class GRU4Rec(nn.Module):
    """Items padded on the right come after the state that is read: they change nothing."""

    def __init__(self, num_items: int, config: SequenceConfig) -> None:
        super().__init__()
        self.every_position = config.every_position
        size = config.hidden_size
        self.items = nn.Embedding(num_items + 1, size, padding_idx=num_items)
        draw_embeddings(config.init_std, self.items)
        self.dropout = nn.Dropout(config.dropout)
        self.gru = nn.GRU(size, size, config.num_layers, batch_first=True)
        self.answers = None if config.shared_embedding else nn.Linear(size, num_items)

    def forward(self, history_BL: Tensor) -> Tensor:
        """The state after each item, shape (B, L, D)."""
        state_BLD: Tensor = self.gru(self.dropout(self.items(history_BL)))[0]
        return state_BLD

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
