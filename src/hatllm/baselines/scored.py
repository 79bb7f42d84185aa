"""A model that scores all items of a catalogue, whatever it is, and the answers that this makes."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import polars as pl
from torch import Tensor

from hatllm.baselines.ranks_of_scores import TitleIndex, predictions_of
from hatllm.baselines.sequences import Sequences, sequences_of


@dataclass(frozen=True)
class Scored:
    """What scores all items for each history.

    Attributes:
        batches: From rows to score_BI (higher is better; items by ascending id) and target_B, batch
            by batch in the rows' order.
        num_read: Newest items of a history that it reads.
    """

    batches: Callable[[Sequences], Iterator[tuple[Tensor, Tensor]]]
    num_read: int

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
        batches = self.batches(sequences_of(examples, index.item_id_I, self.num_read))
        return predictions_of(examples, batches, index, top_k, exclude_history)
