"""Soft tokens of items, beside their titles (LLaRA, Liao et al., SIGIR 2024, arXiv:2312.02445).

An item's token is the image of its vector, which a recommender without text has learned, under a
trained projector. As in the authors' code (github.com/ljy0ustc/LLaRA, model/mlp_projector.py) that
is two linear layers with GELU between them, and the vector is the row of the recommender's item
embedding, as it is. An item that the recommender never saw in training has the row it began with.
The catalogue's titles, which the model writes, have no such tokens. In prompts of text alone, with
which the curriculum begins, an item's token is 0: it says nothing but stands where it will be (the
authors' code has an untrained token there).

Dimension key: I items by ascending id, E width of their vectors, D hidden width, U different items
of a pass, T tokens of items in it.
"""

import torch
from torch import Tensor, nn

from hatllm.data.prompt import FIRST_ITEM_TOKEN


class ItemTokens(nn.Module):
    """The one place where token ids become embeddings in a model that knows items by id."""

    vector_IE: Tensor

    def __init__(self, vector_IE: Tensor, hidden_size: int, seed: int) -> None:
        """A fresh projector.

        Args:
            vector_IE: The items' vectors, frozen. Shape (I, E), float32.
            hidden_size: D of the model.
            seed: Of the projector's start.
        """
        super().__init__()
        self.register_buffer("vector_IE", vector_IE)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.projector = nn.Sequential(
                nn.Linear(vector_IE.shape[1], hidden_size),
                nn.GELU(),
                nn.Linear(hidden_size, hidden_size),
            )
        self.text_only = False  # the curriculum's early prompts: every item token is 0

    def forward(self, token_ids: Tensor, embedding: nn.Module) -> Tensor:
        """Embed text and items.

        Args:
            token_ids: Of any shape; from FIRST_ITEM_TOKEN on they are items, by row. int64.
            embedding: The model's own, for the rest.

        Returns:
            One more dimension, D, in the embedding's dtype.
        """
        is_item = token_ids >= FIRST_ITEM_TOKEN
        embedded: Tensor = embedding(token_ids.masked_fill(is_item, 0))
        row_U, place_T = torch.unique(token_ids[is_item] - FIRST_ITEM_TOKEN, return_inverse=True)
        projected_UD = self.projector(self.vector_IE[row_U])
        if self.text_only:
            projected_UD = projected_UD * 0.0  # still in the graph, which DDP waits for
        return embedded.index_put((is_item,), projected_UD[place_T].to(embedded.dtype))
