"""Examples as rows of item numbers, the form in which the id-based baselines see them.

An item's number is its place among the catalogue's ascending item ids; rows are padded on the
right with the number after the last item.

Dimension key: G rows of a split, B rows of a batch, L positions, I items, D hidden size, M
training states.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class Sequences:
    """Histories and targets.

    Attributes:
        history_GL: Item numbers, oldest first, padded with ``num_items``. Shape (G, L), int64.
        length_G: Items of each history, at least 1. Shape (G,), int64.
        target_G: Item number of the target. Shape (G,), int64.
        num_items: Items of the catalogue.
    """

    history_GL: Tensor
    length_G: Tensor
    target_G: Tensor
    num_items: int

    def __len__(self) -> int:
        return len(self.length_G)

    def rows(self, row_B: Tensor, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """History, length and target of the chosen rows, on the device."""
        return (
            self.history_GL[row_B].to(device),
            self.length_G[row_B].to(device),
            self.target_G[row_B].to(device),
        )

    def cut(self, rows: slice) -> "Sequences":
        """Some of the rows."""
        return Sequences(
            self.history_GL[rows], self.length_G[rows], self.target_G[rows], self.num_items
        )

    def newest(self, num_items_read: int) -> "Sequences":
        """The same rows with at most so many items of each history, the newest."""
        length_G = self.length_G.clamp(max=num_items_read)
        step_L = torch.arange(num_items_read)
        place_GL = (self.length_G - length_G)[:, None] + step_L
        place_GL = place_GL.clamp(max=self.history_GL.shape[1] - 1)
        history_GL = self.history_GL.gather(1, place_GL)
        history_GL = history_GL.masked_fill(step_L >= length_G[:, None], self.num_items)
        return Sequences(history_GL, length_G, self.target_G, self.num_items)


def sequences_of(examples: pl.DataFrame, item_id_I: IntArray, max_history_items: int) -> Sequences:
    """Read examples; keeps the newest items of each history.

    Args:
        examples: history (item ids, oldest first, at least one), target.
        item_id_I: The catalogue's item ids, ascending.
        max_history_items: Positions L.

    Returns:
        One row an example, in their order.

    Raises:
        ValueError: If an item is not in the catalogue or a history is empty.
    """
    history = examples["history"].list.tail(max_history_items)
    length_G = history.list.len().to_numpy().astype(np.int64)
    if len(length_G) and length_G.min() == 0:
        raise ValueError("examples.history=[] must hold at least one item")
    history_GL = np.full((len(examples), max_history_items), len(item_id_I), np.int64)
    filled_GL = np.arange(max_history_items) < length_G[:, None]
    history_GL[filled_GL] = _numbers(history.explode().drop_nulls(), item_id_I, "history")
    target_G = _numbers(examples["target"], item_id_I, "target")
    return Sequences(
        torch.from_numpy(history_GL),
        torch.from_numpy(length_G),
        torch.from_numpy(target_G),
        len(item_id_I),
    )


def draw_embeddings(init_std: float | None, *embeddings: nn.Embedding) -> None:
    """Draw vectors from a normal distribution; None leaves them to :func:`draw_by_xavier`."""
    for embedding in embeddings:
        if init_std is not None:
            nn.init.normal_(embedding.weight, std=init_std)


def draw_by_xavier(model: nn.Module) -> None:
    """Draw every matrix from Xavier's normal distribution, as RecTools does (Glorot, Bengio 2010).

    A matrix of rows x columns gets the standard deviation sqrt(2 / (rows + columns)), vectors of
    items and positions too: those of few positions come out longer than those of many items.
    """
    for weight in model.parameters():
        if weight.dim() > 1:
            nn.init.xavier_normal_(weight)


def training_states(
    hidden_BLD: Tensor, history_BL: Tensor, length_B: Tensor, target_B: Tensor, every: bool
) -> tuple[Tensor, Tensor]:
    """What a causal model learns from: states and the items that come next.

    Args:
        hidden_BLD: State after each item. Shape (B, L, D).
        history_BL: Item numbers, padded with anything above the last. Shape (B, L).
        length_B: Items of each history. Shape (B,).
        target_B: Targets. Shape (B,).
        every: After every item of the history; False = after the last one only.

    Returns:
        state_MD and the next item of each, target_M.
    """
    if not every:
        return last_states(hidden_BLD, length_B), target_B
    next_BL = torch.cat([history_BL[:, 1:], history_BL[:, :1]], dim=1)
    next_BL = next_BL.scatter(1, length_B[:, None] - 1, target_B[:, None])
    place_L = torch.arange(history_BL.shape[1], device=history_BL.device)
    real_BL = place_L < length_B[:, None]
    return hidden_BLD[real_BL], next_BL[real_BL]


def learned_items(train: Sequences, every: bool) -> Tensor:
    """Item numbers that a causal model is asked for in an epoch, as often as it is; 1-D, int64.

    Args:
        train: Training rows.
        every: As for :func:`training_states`.
    """
    if not every:
        return train.target_G
    later_GL = train.history_GL[:, 1:]
    return torch.cat([later_GL[later_GL < train.num_items], train.target_G])


def last_states(hidden_BLD: Tensor, length_B: Tensor) -> Tensor:
    """The state after each history's last item, shape (B, D)."""
    return hidden_BLD[torch.arange(len(length_B), device=length_B.device), length_B - 1]


def output_weights(items: nn.Embedding, answers: nn.Linear | None) -> tuple[Tensor, Tensor]:
    """The output layer of a model of its own (`answers`) or, without bias, the item embedding.

    Args:
        items: Item embedding; its last row is the padding's.
        answers: Output layer; None = shared with the embedding.

    Returns:
        weight_ID and bias_I: the logits of a state are weight state + bias.
    """
    if answers is not None:
        return answers.weight, answers.bias
    weight_ID = items.weight[:-1]
    return weight_ID, weight_ID.new_zeros(len(weight_ID))


def _numbers(item_ids: pl.Series, item_id_I: IntArray, column: str) -> IntArray:
    ids = item_ids.cast(pl.Int64).to_numpy()
    places = np.searchsorted(item_id_I, ids)
    known = item_id_I[np.minimum(places, len(item_id_I) - 1)] == ids
    if not known.all():
        raise ValueError(f"examples.{column}={ids[~known][0]} is not an item_id of the catalogue")
    return places.astype(np.int64)
