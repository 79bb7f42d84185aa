"""What a training row learns: which of its titles are supervised, and against which random ones.

A row of n history items and a target holds n next-item questions. *In place*: inside the history
the token before a title predicts its first token, each of its tokens the next; no further token
runs through the model. An item's tokens in a history may differ from those of its title (the
closing quote does, as a rule): it is supervised as far as they agree. *Branches*: every prefix of
the history is a row of its own, whose prompt is that of test time (`TrainingBatches`).

Dimension key: I items.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from hatllm.data.prompt import PromptBook

IntArray = NDArray[np.int64]


class Supervised(NamedTuple):
    """A title that a training row asks for."""

    row: int  # of the catalogue
    column: int  # of the token whose state predicts the title's first
    num_tokens: int  # supervised tokens of the title, from its first
    weight: float


def target_weights(num_titles: int, how: str) -> NDArray[np.float64]:
    """The weight of each title of a training row, oldest first; they sum to 1.

    Args:
        num_titles: At least 1.
        how: ``equal``, or ``rising``: the k-th of n titles weighs k / (1 + ... + n).
    """
    weights: NDArray[np.float64] = (
        np.ones(num_titles) if how == "equal" else np.arange(1.0, num_titles + 1)
    )
    weights /= weights.sum()
    return weights


def shown_tokens(
    history_items: Sequence[Sequence[int]], titles: Sequence[Sequence[int]], opening: Sequence[int]
) -> IntArray:
    """How many tokens of each title stand in a history as they stand in the title.

    Args:
        history_items: Tokens of each item inside a history.
        titles: Tokens of each title, end token included.
        opening: Tokens of the template before the title.

    Returns:
        Shape (I,); 0 where the item does not begin with the opening or its first token differs.
    """
    start = len(opening)
    shown = [
        _agreement(item[start:], title) if start and list(item[:start]) == list(opening) else 0
        for item, title in zip(history_items, titles, strict=True)
    ]
    return np.array(shown, np.int64)


class InPlace(NamedTuple):
    """How much of the catalogue a history can supervise."""

    items: int
    not_at_all: int  # items whose first token in a history is another than their title's
    tokens: int  # of all titles
    shown: int  # of these, supervised in a history

    def note(self) -> str:
        """As a sentence."""
        return (
            f"in place {self.shown:,} of {self.tokens:,} title tokens are supervised "
            f"({self.shown / self.tokens:.0%}), {self.not_at_all:,} of {self.items:,} items not at "
            "all"
        )


def in_place_counts(book: "PromptBook") -> InPlace:
    """Count what `data.target_form=in_place` can supervise of a catalogue.

    Raises:
        ValueError: If it is nothing.
    """
    counts = InPlace(
        len(book.shown_I), int((book.shown_I == 0).sum()),
        int(book.target.length.sum()), int(book.shown_I.sum()),
    )  # fmt: skip
    if counts.shown == 0:
        raise ValueError(
            "data.target_form='in_place' can supervise no title: none begins with the same token "
            "in data.prompt.history_item as in data.prompt.target; let both have the same text "
            "before {title}, or use data.target_form=branches"
        )
    return counts


def _agreement(first: Sequence[int], second: Sequence[int]) -> int:
    pairs = zip(first, second, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))


def supervised_titles(
    book: "PromptBook", history: IntArray, target: int, prompt_length: int, in_place: str | None
) -> list[Supervised]:
    """The titles of one training row.

    Args:
        book: The tokenised catalogue.
        history: Item ids, oldest first.
        target: Item id.
        prompt_length: Tokens before the target's title.
        in_place: As in `target_weights`; None = the target alone.

    Returns:
        The items of the history after the first, where any token of theirs can be supervised, then
        the target.
    """
    rows = book.rows_of(np.append(history, target))
    title = int(rows[-1])
    asked = [(title, prompt_length - 1, int(book.target.length[title]))]
    if in_place is not None:
        starts = len(book.prefix) + np.cumsum(book.history_item.length[rows[:-1]])
        before = zip(rows[1:-1].tolist(), starts.tolist(), strict=False)
        shown = [(row, start + book.opening - 1, int(book.shown_I[row])) for row, start in before]
        asked = [title for title in shown if title[-1]] + asked
    weights = target_weights(len(asked), in_place or "equal").tolist()
    return [Supervised(*title, weight) for title, weight in zip(asked, weights, strict=True)]


@dataclass(frozen=True)
class Negatives:
    """Draws titles by example, so that a row has the same ones whenever and wherever it is seen."""

    item_id_T: IntArray  # an item of each different title
    title_I: IntArray  # title of each catalogue row
    num_negatives: int
    seed: int

    @classmethod
    def of(cls, book: "PromptBook", num_negatives: int, seed: int) -> "Negatives":
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
