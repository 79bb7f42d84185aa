"""Training batches: global batches of rows, cut into micro-batches over processes and steps.

A global batch is the same set of rows for any number of processes and any micro-batch size. Inside
it rows are sorted by length, so that a micro-batch holds little padding, or stay beside their
user's others, whose history they share; the loss, a mean over rows, does not care.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import polars as pl
import pytorch_lightning as lightning
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Sampler

from hatllm.data.prompt import Batch, PromptBook, build_batch
from hatllm.data.targets import Negatives, target_weights

if TYPE_CHECKING:
    from hatllm.config import Config, TrainerConfig

IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class Examples:
    """A split as arrays."""

    example_id_G: IntArray
    histories: list[IntArray]  # item ids, oldest first
    target_G: IntArray
    user_G: IntArray | None = None  # where examples have users

    @classmethod
    def of(cls, frame: pl.DataFrame, max_history_items: int) -> "Examples":
        """Read a split; keeps the newest items of each history."""
        histories = [
            np.asarray(history[-max_history_items:], np.int64)
            for history in frame["history"].to_list()
        ]
        users = frame["user_id"].to_numpy()
        return cls(frame["example_id"].to_numpy(), histories, frame["target"].to_numpy(), users)

    def __len__(self) -> int:
        return len(self.target_G)

    def batch(
        self,
        book: PromptBook,
        rows: IntArray,
        target_is_item: bool,
        with_target: bool,
        in_place: str | None = None,
    ) -> Batch:
        """The chosen rows as one padded batch, see `build_batch`."""
        return build_batch(
            book,
            self.example_id_G[rows].tolist(),
            [self.histories[row] for row in rows],
            self.target_G[rows].tolist(),
            target_is_item,
            with_target,
            in_place,
        )

    def prompt_lengths(self, book: PromptBook, with_target: bool) -> IntArray:
        """Tokens of every row's prompt, with or without its title."""
        lengths = np.array([book.prompt_length(book.rows_of(h)) for h in self.histories], np.int64)
        if with_target:
            lengths += book.target.length[book.rows_of(self.target_G)] - 1
        return lengths


class MicroBatches(Sampler[list[int]]):
    """Rows of each micro-batch of one process, in order.

    An epoch is a seeded permutation cut into whole global batches (the rest, fewer rows than one
    global batch, sits this epoch out). Where to begin is asked when an epoch starts, so that a
    resumed run goes on with the very rows it would have seen.
    """

    def __init__(
        self,
        lengths: IntArray,
        global_batch_size: int,
        micro_batch_size: int,
        rank: int,
        world_size: int,
        seed: int,
        steps_done: Callable[[], int],
        user_G: IntArray | None = None,
    ) -> None:
        """Plan the epochs.

        Args:
            lengths: Tokens of each row; rows of a global batch are sorted by it.
            global_batch_size: Rows an optimizer step.
            micro_batch_size: Rows a forward pass of one process.
            rank: This process.
            world_size: Processes.
            seed: Of the permutations.
            steps_done: Optimizer steps done so far, over all epochs.
            user_G: User of each row: users are shuffled and their rows stay together, in their
                order; None = rows are shuffled.

        Raises:
            ValueError: If there are fewer rows than one global batch.
        """
        self.steps_per_epoch = len(lengths) // global_batch_size
        if self.steps_per_epoch == 0:
            raise ValueError(
                f"trainer.global_batch_size={global_batch_size} must be at most {len(lengths)}, "
                "the rows of the train split"
            )
        self.lengths, self.seed = lengths, seed
        self.global_batch_size, self.micro_batch_size = global_batch_size, micro_batch_size
        self.rank, self.world_size = rank, world_size
        self.steps_done = steps_done
        self.user_G = user_G

    @property
    def accumulation(self) -> int:
        """Micro-batches of one process in one optimizer step."""
        return self.global_batch_size // (self.micro_batch_size * self.world_size)

    def __len__(self) -> int:
        return self.steps_per_epoch * self.accumulation

    def __iter__(self) -> Iterator[list[int]]:
        epoch, first_step = divmod(self.steps_done(), self.steps_per_epoch)
        order = self._order(np.random.default_rng([self.seed, epoch]))
        for step in range(first_step, self.steps_per_epoch):
            rows = order[step * self.global_batch_size : (step + 1) * self.global_batch_size]
            if self.user_G is None:
                rows = rows[np.argsort(self.lengths[rows], kind="stable")]
            chunks = rows.reshape(-1, self.micro_batch_size)
            # Neighbouring chunks go to different processes, so that these wait little.
            for chunk in chunks[self.rank :: self.world_size]:
                yield chunk.tolist()

    def _order(self, generator: np.random.Generator) -> IntArray:
        if self.user_G is None:
            return generator.permutation(len(self.lengths))
        _, user_G = np.unique(self.user_G, return_inverse=True)
        order = np.argsort(generator.permutation(user_G.max() + 1)[user_G], kind="stable")
        # Another start each epoch, so that not the same rows sit out where there are few users.
        return np.roll(order, generator.integers(len(order)))


def micro_batches(
    examples: Examples,
    lengths: IntArray,
    config: "TrainerConfig",
    seed: int,
    rank: int,
    world_size: int,
    steps_done: Callable[[], int],
) -> MicroBatches:
    """The micro-batches of a run, see `MicroBatches`."""
    return MicroBatches(
        lengths, config.global_batch_size, config.rows_a_pass, rank, world_size, seed, steps_done,
        examples.user_G if config.group_by_user else None,
    )  # fmt: skip


class TrainingBatches:
    """Lays training rows out as the loss wants them."""

    def __init__(self, examples: Examples, book: PromptBook, config: "Config") -> None:
        self.examples, self.book = examples, book
        self.target_is_item = config.mask.target_is_item
        every = config.data.train_targets == "every"
        weights, form = config.data.target_weights, config.data.target_form
        self.in_place = weights if every and form == "in_place" else None
        self.branches = weights if every and form == "branches" else None
        self.negatives = None
        if config.loss.num_negatives is not None:
            self.negatives = Negatives.of(book, config.loss.num_negatives, config.seed)

    def batch(self, rows: IntArray) -> Batch:
        """The chosen rows with their titles; under sdpo each target's negatives come after it."""
        examples, weights = self.examples, None
        if self.branches is not None:
            examples, weights = branches_of(examples, rows, self.branches)
            rows = np.arange(len(examples))
        if self.negatives is not None:
            examples = self._with_negatives(examples, self.negatives, rows)
            rows = np.arange(len(examples))
        batch = examples.batch(self.book, rows, self.target_is_item, True, self.in_place)
        if weights is not None:
            times = len(batch.title_weight_J) // len(weights)
            batch.title_weight_J = torch.from_numpy(np.repeat(weights, times))
        return batch

    def _with_negatives(self, examples: Examples, negatives: Negatives, rows: IntArray) -> Examples:
        example_id_B, target_B = examples.example_id_G[rows], examples.target_G[rows]
        target_rows = self.book.rows_of(target_B).tolist()
        drawn = map(negatives.draw, example_id_B.tolist(), target_rows)
        titles = [(target, *others) for target, others in zip(target_B, drawn, strict=True)]
        times = 1 + negatives.num_negatives
        histories = [examples.histories[row] for row in np.repeat(rows, times)]
        return Examples(np.repeat(example_id_B, times), histories, np.array(titles).flatten())


def branches_of(
    examples: Examples, rows: IntArray, how: str
) -> tuple[Examples, NDArray[np.float32]]:
    """Each chosen row as one row for every item after the first, and for its target.

    Args:
        examples: A split.
        rows: The chosen ones.
        how: As in `target_weights`.

    Returns:
        The prefixes of each history with the item that follows, oldest first, and their weights;
        those of one chosen row sum to 1.
    """
    ids, histories, targets, weights = [], [], [], []
    for row in rows.tolist():
        items = np.append(examples.histories[row], examples.target_G[row])
        num_titles = len(items) - 1
        ids += [examples.example_id_G[row]] * num_titles
        histories += [items[:end] for end in range(1, len(items))]
        targets += items[1:].tolist()
        weights.append(target_weights(num_titles, how).astype(np.float32))
    grown = Examples(np.array(ids, np.int64), histories, np.array(targets, np.int64))
    return grown, np.concatenate(weights)


class TrainingData(lightning.LightningDataModule):
    """The train split of one run."""

    def __init__(self, examples: Examples, book: PromptBook, config: "Config") -> None:
        super().__init__()
        self.examples, self.book, self.config = examples, book, config
        self.batches = TrainingBatches(examples, book, config)

    def train_dataloader(self) -> DataLoader[int]:
        """Micro-batches of this process."""
        config = self.config
        sampler = micro_batches(
            self.examples, self.examples.prompt_lengths(self.book, with_target=True),
            config.trainer, config.seed, self.trainer.global_rank, self.trainer.world_size,
            lambda: self.trainer.global_step,
        )  # fmt: skip
        return DataLoader(
            cast(Any, range(len(self.examples))), batch_sampler=sampler, collate_fn=self._collate
        )

    def _collate(self, rows: list[int]) -> Batch:
        return self.batches.batch(np.asarray(rows))

    def val_dataloader(self) -> DataLoader[int]:
        """One dummy step; validation decodes all rows at once (see `Recommender`)."""
        return DataLoader(cast(Any, range(1)))
