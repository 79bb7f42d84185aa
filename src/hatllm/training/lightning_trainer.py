"""Lightning's trainer from our settings: the one place where it is built."""

import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as lightning
from lightning_fabric.plugins.environments import SLURMEnvironment
from pytorch_lightning.callbacks import Callback, RichProgressBar
from pytorch_lightning.strategies import DDPStrategy

from hatllm.config import Config, TrainerConfig
from hatllm.progress import Progress
from hatllm.training.checkpoints import WholeCheckpoints
from hatllm.training.finite_loss import FiniteLoss
from hatllm.training.loggers import KeepCurve, LearningRate
from hatllm.training.sharding import ShardedStrategy
from hatllm.training.training_state import TrainingState

logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)  # no advice between our lines
for upstream in ("LeafSpec", "does not have many workers", "exists and is not empty",
                 "your dataloader is not resumable"):  # fmt: skip
    # The last is wrong here: MicroBatches goes on at the optimizer step that was saved.
    warnings.filterwarnings("ignore", message=f".*{upstream}.*")


class ProgressBar(RichProgressBar):
    """Lightning's, without the end of the logger's version, which tells a user nothing."""

    def get_metrics(self, *given: Any) -> dict[str, Any]:
        """What stands behind the bar."""
        metrics: dict[str, Any] = super().get_metrics(*given)
        metrics.pop("v_num", None)
        return metrics


class ProgressLines(Callback):
    """What stands for the bar where there is no terminal: a line every half minute."""

    def __init__(self, num_steps: int) -> None:
        """Know how long it takes.

        Args:
            num_steps: Optimizer steps of the whole run.
        """
        self.num_steps = num_steps
        self.bar: Progress | None = None

    def on_train_start(self, trainer: lightning.Trainer, module: Any) -> None:
        """From here, or from the step that the run goes on at."""
        self.bar = Progress(
            total=self.num_steps, initial=trainer.global_step, desc="train", unit="step",
            disable=not trainer.is_global_zero,
        )  # fmt: skip

    def on_train_batch_end(self, trainer: lightning.Trainer, *given: Any) -> None:
        """Count an optimizer step once."""
        assert self.bar is not None
        if loss := trainer.callback_metrics.get("train/loss"):
            self.bar.set_postfix(loss=f"{float(loss):.4f}", refresh=False)
        self.bar.update(trainer.global_step - self.bar.n)

    def on_train_end(self, trainer: lightning.Trainer, module: Any) -> None:
        """The last line."""
        self.teardown(trainer, module, "fit")

    def teardown(self, trainer: lightning.Trainer, module: Any, stage: str) -> None:
        """Also where training was stopped."""
        if self.bar is not None:
            self.bar.close()


def build_trainer(
    config: Config, folder: Path, loggers: list[Any], num_steps: int, state: TrainingState
) -> lightning.Trainer:
    """The trainer of a run.

    Args:
        config: The run.
        folder: Run folder.
        loggers: Lightning loggers.
        num_steps: Optimizer steps of the whole run.
        state: Saves, chooses and stops.

    Returns:
        A trainer that validates and saves at optimizer steps.
    """
    trainer = config.trainer
    accumulation = trainer.global_batch_size // (trainer.rows_a_pass * trainer.num_processes)
    progress = ProgressBar() if sys.stdout.isatty() else ProgressLines(num_steps)
    every = trainer.validate_every_steps
    return lightning.Trainer(
        accelerator=trainer.accelerator,
        devices=trainer.devices,
        num_nodes=trainer.num_nodes,
        strategy=_strategy(trainer),
        plugins=_plugins(),
        max_epochs=trainer.max_epochs,
        max_steps=num_steps,
        accumulate_grad_batches=accumulation,
        gradient_clip_val=trainer.gradient_clip or None,
        val_check_interval=None if every is None else every * accumulation,
        check_val_every_n_epoch=1 if every is None else None,
        num_sanity_val_steps=0,
        callbacks=[FiniteLoss(config, folder), state, KeepCurve(), LearningRate(), progress],
        logger=loggers,
        log_every_n_steps=1,
        enable_progress_bar=sys.stdout.isatty(),
        use_distributed_sampler=False,
        enable_model_summary=False,
        default_root_dir=str(folder),
    )


def build_calibration_trainer(
    config: Config, num_batches: int, stopwatch: Callback
) -> lightning.Trainer:
    """A trainer of one process that steps after every micro-batch and leaves nothing behind.

    Args:
        config: The run.
        num_batches: Micro-batches to train on.
        stopwatch: Times them.

    Returns:
        A trainer without validation, checkpoints and loggers.
    """
    return lightning.Trainer(
        accelerator=config.trainer.accelerator,
        devices=1,
        max_steps=num_batches,
        gradient_clip_val=config.trainer.gradient_clip or None,
        limit_val_batches=0,
        callbacks=[stopwatch],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def _plugins() -> list[Any]:
    plugins: list[Any] = [WholeCheckpoints()]
    if SLURMEnvironment.detect():
        plugins.append(SLURMEnvironment(auto_requeue=False))
    return plugins


def _strategy(config: TrainerConfig) -> Any:
    match config.strategy:
        case "ddp":
            return DDPStrategy()
        case "fsdp":
            return ShardedStrategy(
                data_parallel_size=config.num_processes,
                tensor_parallel_size=1,
                save_distributed_checkpoint=False,
            )
        case _:
            return "auto"
