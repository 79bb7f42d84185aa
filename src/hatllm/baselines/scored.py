"""A model that scores all items of a catalogue, whatever it is, and the answers that this makes."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import polars as pl
from scipy.sparse import csr_matrix
from torch import Tensor

from hatllm.baselines.ranks_of_scores import TitleIndex, predictions_of
from hatllm.baselines.ranks_of_sparse import sparse_predictions_of
from hatllm.baselines.sequences import Sequences, sequences_of


@dataclass(frozen=True)
class Scored:
    """What scores all items for each history.

    Attributes:
        batches: From rows to score_BI (higher is better; items by ascending id) and target_B, batch
            by batch in the rows' order.
        num_read: Newest items of a history that it reads.
        sparse: The same scores, (B, I), where none is below zero and most are zero; None = no
            faster form.
    """

    batches: Callable[[Sequences], Iterator[tuple[Tensor, Tensor]]]
    num_read: int
    sparse: Callable[[Sequences], Iterator[csr_matrix]] | None = None

    def predictions(
        self,
        examples: pl.DataFrame,
        items: pl.DataFrame,
        top_k: int,
        exclude_history: bool = False,
    ) -> pl.DataFrame:
        """The predictions table.

        Args:
            examples: Examples to answer: example_id, user_id, history, target.
            items: The catalogue: item_id, title.
            top_k: Titles answered for each example.
            exclude_history: As `predictions_of`.

        Raises:
            ValueError: If an item is not in the catalogue, or a score not finite.
        """
        index = TitleIndex.of(items)
        rows = sequences_of(examples, index.item_id_I, self.num_read)
        if self.sparse is None:
            return predictions_of(examples, self.batches(rows), index, top_k, exclude_history)
        return sparse_predictions_of(
            examples, self.sparse(rows), rows.target_G, index, top_k, exclude_history
        )
