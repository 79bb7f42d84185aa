"""How long an epoch of a baseline that learns from item ids takes on this machine."""

import io
import time
from contextlib import redirect_stderr
from dataclasses import replace

import polars as pl
import torch

from hatllm.baselines.fit import build_sequence_model, fit
from hatllm.baselines.ranking import TitleIndex
from hatllm.baselines.sequences import sequences_of
from hatllm.config import Config
from hatllm.data.prepare import Dataset
from hatllm.tasks.baseline import rows_to_fit

NUM_BATCHES = 4  # of training; as many rows are ranked
NUM_WARM = 2  # batches before the clock starts


def seconds_an_epoch(config: Config, dataset: Dataset) -> float:
    """Train for a few batches and throw the model away.

    Args:
        config: A run of a model of SEQUENCE_KINDS.
        dataset: Its prepared examples.

    Returns:
        Seconds of one epoch, its ranking of valid included: by the rows, from a few batches.
    """
    settings = config.model.sequence
    assert settings is not None
    train, valid = rows_to_fit(config, dataset)
    index, length = TitleIndex.of(dataset.items), config.data.max_history_items
    once = replace(settings, max_epochs=1)
    model = build_sequence_model(config.model.kind, len(index.item_id_N), length, settings)

    def seconds_of(train: pl.DataFrame, valid: pl.DataFrame) -> float:
        first, second = (sequences_of(f, index.item_id_N, length) for f in (train, valid))
        start = time.perf_counter()
        with redirect_stderr(io.StringIO()):  # its bar would speak of a training
            fit(model, first, second, index, once, lambda metrics, step: None)
        return time.perf_counter() - start

    with torch.random.fork_rng():
        few = settings.batch_size * NUM_BATCHES
        seconds_of(train.head(settings.batch_size * NUM_WARM), valid.head(1))
        # One row of valid costs next to nothing: the first clock is that of training.
        training = seconds_of(train.head(few), valid.head(1)) * len(train) / min(few, len(train))
        ranking = seconds_of(train.head(1), valid.head(few)) * len(valid) / min(few, len(valid))
    return training + ranking
