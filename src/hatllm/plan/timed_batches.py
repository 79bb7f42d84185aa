"""How long batches of a run, or an epoch of an id model, take on this machine."""

import io
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field, replace
from typing import Any, cast

import polars as pl
import pytorch_lightning as lightning
import torch
from torch.utils.data import DataLoader

from hatllm.baselines.ranks_of_scores import TitleIndex
from hatllm.baselines.sequences import sequences_of
from hatllm.config import Config
from hatllm.data.datamodule import Examples, TrainingBatches
from hatllm.data.prepare import Dataset
from hatllm.data.prompt import Batch
from hatllm.decode.predict import predict
from hatllm.memory import naming_what_to_lower, peak_memory_mb
from hatllm.model.masked_lm import MaskedLM
from hatllm.plan.forecast_table import Seconds
from hatllm.plan.loads import Load
from hatllm.training.assemble import Parts
from hatllm.training.baseline_run import rows_to_fit
from hatllm.training.id_model import Keeping, build_sequence_model, fit
from hatllm.training.lightning_module import Recommender
from hatllm.training.lightning_trainer import build_calibration_trainer

NUM_BATCHES = 4  # of training; as many rows are ranked
NUM_WARM = 2  # batches before the clock starts


@dataclass
class Pace:
    """What some batches took."""

    seconds: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)

    def over(self, num_tokens: float) -> Seconds:
        """Time for as many tokens; the range is that of the fastest and the slowest batch."""
        rates = [s / t for s, t in zip(self.seconds, self.tokens, strict=True)]
        return Seconds(min(rates), sum(self.seconds) / sum(self.tokens), max(rates)) * num_tokens


@dataclass
class Calibration:
    """What was measured."""

    train: Pace  # forward and backward; empty where the run does not train
    steps: Pace  # clipping and optimizer, a "token" each
    decode: Pace
    model_share: float  # of decoding: time inside the decoder's layers
    model_token_seconds: float  # of decoding: one token through all layers
    memory_mb: float
    seconds: float  # that all this took


def calibrate(
    config: Config, parts: Parts, lm: MaskedLM, train: Load, decode: Load, split: str
) -> Calibration:
    """Run a few micro-batches and a few users; tunes the model, writes nothing.

    Args:
        config: The run.
        parts: Its data and catalogue.
        lm: A model to throw away.
        train: Micro-batches of the train split; none = the run does not train.
        decode: Batches of users.
        split: The split these users are of.

    Returns:
        Times by tokens, and the peak memory.

    Raises:
        OutOfMemoryError: If memory does not suffice.
    """
    start = time.perf_counter()
    on_gpu = uses_gpu(config)
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    with naming_what_to_lower(config, decoding=False):
        watch = _time_training(config, parts, lm, train)
    with naming_what_to_lower(config, decoding=True):
        lm.to("cuda" if on_gpu else "cpu")
        pace, model = _time_decoding(config, parts, lm, decode, split)
    return Calibration(
        train=watch.batches,
        steps=watch.steps,
        decode=pace,
        model_share=sum(model.seconds) / sum(pace.seconds),
        model_token_seconds=sum(model.seconds) / sum(model.tokens),
        memory_mb=torch.cuda.max_memory_allocated() / 2**20 if on_gpu else peak_memory_mb(),
        seconds=time.perf_counter() - start,
    )


def uses_gpu(config: Config) -> bool:
    """Whether the run's processes work on GPUs."""
    return config.trainer.accelerator != "cpu" and torch.cuda.is_available()


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class _Stopwatch(lightning.Callback):
    """Times micro-batches after the first, fetching included, and optimizer steps."""

    def __init__(self, tokens: list[int]) -> None:
        self.tokens = tokens
        self.batches, self.steps = Pace(), Pace()
        self.batch_start = self.step_start = 0.0

    def on_before_optimizer_step(self, *_: Any) -> None:
        """The backward pass is done."""
        self.step_start = _now()

    def on_train_batch_end(self, *args: Any) -> None:
        """Keep the times; the first micro-batch warms up."""
        end, batch_idx = _now(), args[4]
        if batch_idx > 0:
            self.batches.seconds.append(self.step_start - self.batch_start)
            self.batches.tokens.append(self.tokens[batch_idx])
            self.steps.seconds.append(end - self.step_start)
            self.steps.tokens.append(1)
        self.batch_start = end


def _time_training(config: Config, parts: Parts, lm: MaskedLM, load: Load) -> _Stopwatch:
    chosen = load.sample() if load.batches else []
    watch = _Stopwatch([int(load.tokens_of_batches[i]) for i in chosen])
    if not chosen:
        return watch
    dataset, book = parts.dataset, parts.catalogue.book
    examples = Examples.of(dataset.splits["train"], config.data.max_history_items)
    batches = TrainingBatches(examples, book, config)

    def batch(i: Any) -> Batch:
        return batches.batch(load.batches[i])

    recommender = Recommender(lm, parts.catalogue, config, len(chosen), dataset.splits["valid"])
    loader: DataLoader[Any] = DataLoader(cast(Any, chosen), batch_size=None, collate_fn=batch)
    recommender.train()
    build_calibration_trainer(config, len(chosen), watch).fit(recommender, loader, [])
    return watch


def _time_decoding(
    config: Config, parts: Parts, lm: MaskedLM, load: Load, split: str
) -> tuple[Pace, Pace]:
    """Whole batches of users, and what of it is spent in the model by the tokens it runs."""
    # The states would be made for these weights, which nobody needs again.
    config = replace(config, decode=replace(config.decode, state_cache=False))
    frame: pl.DataFrame = parts.dataset.splits[split]
    total, model = Pace(), Pace()
    warm_up, *measured = load.sample()
    predict(lm, parts.catalogue, frame[load.batches[warm_up].tolist()], config, "calibrate")
    for i in measured:
        with _model_pace(lm, model):
            start = _now()
            predict(lm, parts.catalogue, frame[load.batches[i].tolist()], config, "calibrate")
            total.seconds.append(_now() - start)
        total.tokens.append(int(load.tokens_of_batches[i]))
    return total, model


@contextmanager
def _model_pace(lm: MaskedLM, pace: Pace) -> Iterator[None]:
    """Time every pass through the decoder."""

    def before(_: Any, __: Any, words: dict[str, Any]) -> None:
        pace.tokens.append(words["position_ids"].numel())
        pace.seconds.append(-_now())

    def after(*_: Any) -> None:
        pace.seconds[-1] += _now()

    hooks = [
        lm.decoder.register_forward_pre_hook(before, with_kwargs=True),
        lm.decoder.register_forward_hook(after),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


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
    model = build_sequence_model(config.model.kind, len(index.item_id_I), length, settings)

    def seconds_of(train: pl.DataFrame, valid: pl.DataFrame) -> float:
        first, second = (sequences_of(f, index.item_id_I, length) for f in (train, valid))
        start = time.perf_counter()
        with redirect_stderr(io.StringIO()):  # its bar would speak of a training
            fit(model, first, second, index, once, lambda metrics, step: None, Keeping())
        return time.perf_counter() - start

    with torch.random.fork_rng():
        few = settings.batch_size * NUM_BATCHES
        seconds_of(train.head(settings.batch_size * NUM_WARM), valid.head(1))
        # One row of valid costs next to nothing: the first clock is that of training.
        training = seconds_of(train.head(few), valid.head(1)) * len(train) / min(few, len(train))
        ranking = seconds_of(train.head(1), valid.head(few)) * len(valid) / min(few, len(valid))
    return training + ranking
