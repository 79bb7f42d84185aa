"""The batches a run will take, counted without running them."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from hatllm.config import Config
from hatllm.data.datamodule import Examples, micro_batches
from hatllm.data.prompt import IntArray
from hatllm.runs.folder import is_finished
from hatllm.runs.run_files import CHECKPOINT_FILE
from hatllm.training.assemble import Parts
from hatllm.training.checkpoints import load_checkpoint

MEASURED_AT = (1 / 6, 3 / 6, 5 / 6)  # of the batches in the order of their tokens


@dataclass(frozen=True)
class Load:
    """The batches of a split as a run will take them."""

    lengths: IntArray  # tokens of each row of the split
    batches: list[IntArray]  # rows
    num_prefix: int
    packed: bool  # the prefix once a batch and no padding; otherwise padded rows

    @property
    def tokens_of_batches(self) -> IntArray:
        """Tokens of each batch, the most that go through the model."""
        if not self.packed:
            return self._padded()
        own = [int(self.lengths[rows].sum()) - self.num_prefix * len(rows) for rows in self.batches]
        return np.array(own, np.int64) + self.num_prefix

    @property
    def tokens(self) -> int:
        """Of all batches."""
        return int(self.tokens_of_batches.sum())

    @property
    def padding_share(self) -> float | None:
        """Share of padding in the padded batches; None = there are none."""
        padded = int(self._padded().sum())
        used = sum(int(self.lengths[rows].sum()) for rows in self.batches)
        return 1 - used / padded if padded else None

    def _padded(self) -> IntArray:
        sizes = [len(rows) * int(self.lengths[rows].max()) for rows in self.batches]
        return np.array(sizes, np.int64)

    def sample(self) -> list[int]:
        """Batches to calibrate with: the largest, to warm up and for its memory, then a few."""
        order = np.argsort(self.tokens_of_batches, kind="stable").tolist()
        places = sorted({int(len(order) * share) for share in MEASURED_AT})
        return [order[-1], *(order[place] for place in places)]


def steps_done(config: Config, folder: Path) -> int:
    """Optimizer steps that a broken run has behind it; a finished one starts over."""
    last = folder / CHECKPOINT_FILE
    if not config.trains or is_finished(folder) or not last.exists():
        return 0
    return int(load_checkpoint(last)["global_step"])


def loads_of(config: Config, parts: Parts, num_done: int) -> dict[str, Load]:
    """The batches of every split, as training and decoding will take them.

    Args:
        config: The run.
        parts: Its data and catalogue.
        num_done: Optimizer steps that are not made again.

    Returns:
        Load by split; no batches in train where the run does not train.

    Raises:
        ValueError: If there are fewer training rows than one global batch.
    """
    book, loads = parts.catalogue.book, {}
    for name, frame in parts.dataset.splits.items():
        examples = Examples.of(frame, config.data.max_history_items)
        lengths = examples.prompt_lengths(book, with_target=name == "train")
        if name == "train":
            batches = list(_micro_batches(config, examples, lengths, num_done))
        else:
            batches = _user_batches(lengths, config.decode.users_per_batch)
        loads[name] = Load(lengths, batches, len(book.prefix), config.fast)
    return loads


def _micro_batches(
    config: Config, examples: Examples, lengths: IntArray, num_done: int
) -> Iterator[IntArray]:
    """Rows of every micro-batch of the steps to come, over all epochs and processes."""
    trainer, done = config.trainer, num_done
    if not config.trains:
        return
    num_steps = trainer.num_steps(len(lengths))
    batches = micro_batches(examples, lengths, trainer, config.seed, 0, 1, lambda: done)
    while done < num_steps:
        steps = min(batches.steps_per_epoch - done % batches.steps_per_epoch, num_steps - done)
        yield from map(np.asarray, islice(batches, steps * batches.accumulation))
        done += steps


def _user_batches(lengths: IntArray, size: int) -> list[IntArray]:
    order = np.argsort(lengths, kind="stable")[::-1]
    return [order[start : start + size] for start in range(0, len(order), size)]
