"""Random titles that a training row's target is compared with."""

from dataclasses import dataclass

import numpy as np

from hatllm.data.prompt import IntArray, PromptBook


@dataclass(frozen=True)
class Negatives:
    """Draws titles by example, so that a row has the same ones whenever and wherever it is seen."""

    item_id_T: IntArray  # an item of each different title
    title_I: IntArray  # title of each catalogue row
    num_negatives: int
    seed: int

    @classmethod
    def of(cls, book: PromptBook, num_negatives: int, seed: int) -> "Negatives":
        """Number the different titles.

        Args:
            book: The tokenised catalogue.
            num_negatives: Titles drawn for a row.
            seed: Of the draws.

        Raises:
            ValueError: If there are too few different titles.
        """
        numbers: dict[bytes, int] = {}
        rows = range(len(book.item_id_I))
        titles = [numbers.setdefault(book.target[i].tobytes(), len(numbers)) for i in rows]
        title_I = np.array(titles, np.int64)
        if num_negatives >= len(numbers):
            raise ValueError(
                f"loss.num_negatives={num_negatives} must be below {len(numbers)}, the different "
                "titles of the catalogue"
            )
        _, first_T = np.unique(title_I, return_index=True)
        return cls(book.item_id_I[first_T], title_I, num_negatives, seed)

    def draw(self, example_id: int, target_row: int) -> IntArray:
        """Items of different titles, none of them the target's.

        Args:
            example_id: Of the training row.
            target_row: Catalogue row of its target.

        Returns:
            Item ids, uniform without replacement. Shape (num_negatives,), int64.
        """
        generator = np.random.default_rng([self.seed, example_id])
        drawn = generator.choice(len(self.item_id_T) - 1, self.num_negatives, replace=False)
        drawn = drawn + (drawn >= self.title_I[target_row])  # leaves the target's title out
        negatives: IntArray = self.item_id_T[drawn]
        return negatives
