"""Lightning's trainer from our settings: the one place where it is built."""

import logging
import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as lightning
from lightning_fabric.plugins.environments import SLURMEnvironment
from pytorch_lightning.callbacks import Callback, RichProgressBar
from pytorch_lightning.strategies import DDPStrategy, ModelParallelStrategy
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from hatllm.config import Config, TrainerConfig
from hatllm.training.checkpoints import WholeCheckpoints
from hatllm.training.finite_loss import FiniteLoss
from hatllm.training.loggers import KeepCurve, LearningRate
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
    accumulation = trainer.global_batch_size // (
        trainer.rows_a_pass * trainer.devices * trainer.num_nodes
    )
    callbacks: list[Callback] = [
        FiniteLoss(config, folder), state, KeepCurve(), LearningRate(), ProgressBar(),
    ]  # fmt: skip
    plugins: list[Any] = [WholeCheckpoints()]
    if SLURMEnvironment.detect():
        plugins.append(SLURMEnvironment(auto_requeue=False))
    every = trainer.validate_every_steps
    return lightning.Trainer(
        accelerator=trainer.accelerator,
        devices=trainer.devices,
        num_nodes=trainer.num_nodes,
        strategy=_strategy(trainer),
        plugins=plugins,
        max_epochs=trainer.max_epochs,
        max_steps=num_steps,
        accumulate_grad_batches=accumulation,
        gradient_clip_val=trainer.gradient_clip or None,
        val_check_interval=None if every is None else every * accumulation,
        check_val_every_n_epoch=1 if every is None else None,
        num_sanity_val_steps=0,
        callbacks=callbacks,
        logger=loggers,
        log_every_n_steps=1,
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


class ShardedStrategy(ModelParallelStrategy):
    """FSDP2 whose checkpoints are those of one process: what is tuned, put together."""

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Tuned weights and buffers, whole, on the first process; nothing on the others."""
        options = StateDictOptions(
            full_state_dict=True, cpu_offload=True, ignore_frozen_params=True
        )
        return get_model_state_dict(self.model, options=options)
