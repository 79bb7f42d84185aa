"""How far training has come: the one callback that saves, chooses the best step and stops.

``last.ckpt`` is the state of training with every validation so far in it; ``best-step=N.ckpt`` are
the weights of the best of them. After a validation the new best is written first, then
``last.ckpt``, which names it, and only then an older best is removed. Which step is the best and
how long none was better follow from the list of validations, so that a run that is killed anywhere
goes on with what it would have known.
"""

import shutil
import time
from dataclasses import astuple
from pathlib import Path
from typing import Any

import polars as pl
import pytorch_lightning as lightning
from pytorch_lightning.callbacks import Checkpoint

from hatllm.config import Config
from hatllm.metrics.best_step import NLL, Validation, best_of, num_without_better
from hatllm.model.masked_lm import MaskedLM
from hatllm.runs.run_files import CHECKPOINT_FILE, SHARDS
from hatllm.training.assemble import Parts
from hatllm.training.checkpoints import put_at_step
from hatllm.training.decode_splits import collected_split, decode_into_shards
from hatllm.training.stop_signals import StopSignals


class ValidAnswers:
    """Decodes the valid split in training, into the shards that `decode_splits` looks for.

    A validation that was cut off goes on with the users that are left, and the weights that are
    exported need not decode the split again.

    Attributes:
        name: Folder of the last validation's shards.
    """

    def __init__(self, config: Config, folder: Path, parts: Parts) -> None:
        """Decode for a run.

        Args:
            config: The run.
            folder: Run folder.
            parts: Data and catalogue.
        """
        self.config, self.folder, self.parts = config, folder, parts
        self.name: str | None = None

    def __call__(self, lm: MaskedLM) -> pl.DataFrame:
        """The predictions table of the valid split under these weights, on every process."""
        shards = decode_into_shards(self.config, self.folder, self.parts, lm, "valid")
        self.name = shards.folder.name
        return collected_split(shards, self.parts, "valid")

    def keep_only(self, name: str | None) -> None:
        """Delete the shards of all other validations."""
        for shards in (self.folder / SHARDS).glob("valid-*"):
            if shards.name != name:
                shutil.rmtree(shards, ignore_errors=True)


class TrainingState(Checkpoint):
    """Saves every so many steps or seconds, before and after a validation, and when asked to stop.

    Attributes:
        validations: All so far.
    """

    def __init__(
        self,
        config: Config,
        folder: Path,
        num_rows: int,
        num_steps: int,
        signals: StopSignals,
        answers: ValidAnswers | None,
    ) -> None:
        """Know a run.

        Args:
            config: Of the run.
            folder: Of the run.
            num_rows: Rows of the train split.
            num_steps: Optimizer steps of the whole run.
            signals: Says when to stop.
            answers: Keeps the predictions of validations; None = they are not kept.
        """
        self.config, self.monitor = config.trainer, config.monitor
        self.folder = (folder / CHECKPOINT_FILE).parent
        self.steps_per_epoch = num_rows // config.trainer.global_batch_size
        self.num_steps = num_steps
        self.signals, self.answers = signals, answers
        self.validations: list[Validation] = []
        self.saved_step, self.saved_at = 0, time.monotonic()

    @property
    def best(self) -> Validation | None:
        """The validation whose weights the run answers with."""
        return best_of(self.validations, self.monitor)

    def best_path(self, best: Validation) -> Path:
        """Its weights."""
        return self.folder / f"best-step={best.step}.ckpt"

    def state_dict(self) -> dict[str, Any]:
        """Of a checkpoint; tuples and plain values only."""
        return {"validations": [astuple(validation) for validation in self.validations]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From a checkpoint."""
        self.validations = [Validation(*values) for values in state_dict["validations"]]

    def on_load_checkpoint(
        self, trainer: lightning.Trainer, module: Any, checkpoint: dict[str, Any]
    ) -> None:
        """Go on after the checkpoint's step."""
        self.saved_step = checkpoint["global_step"]
        put_at_step(
            checkpoint["loops"]["fit_loop"], self.saved_step, self.steps_per_epoch,
            trainer.accumulate_grad_batches,
        )  # fmt: skip
        # Lightning would not even start where all steps are done; the last validation may be due.
        trainer.fit_loop.epoch_loop.max_steps = -1

    def on_train_start(self, trainer: lightning.Trainer, module: Any) -> None:
        """Make up for a validation that was cut off; a run out of patience makes no step more."""
        trainer.fit_loop.epoch_loop.max_steps = self.num_steps
        self.signals.listen()
        self.signals.finish_first()
        if self._is_validation_missing(trainer.global_step):
            _validate(trainer)
        self._stop_out_of_patience(trainer)

    def on_train_batch_end(self, trainer: lightning.Trainer, module: Any, *rest: Any) -> None:
        """After a whole step: save where it is time, and stop where a signal has come."""
        if (rest[-1] + 1) % trainer.accumulate_grad_batches:
            return
        is_asked = self._is_asked(trainer)
        is_late = time.monotonic() - self.saved_at >= self.config.checkpoint_every_seconds
        is_due = trainer.global_step % self.config.checkpoint_every_steps == 0
        # Processes have clocks of their own and save together.
        if is_asked or is_due or trainer.strategy.reduce_boolean_decision(is_late, all=False):
            self._save(trainer)
        if is_asked:
            self.signals.end(f"after step {trainer.global_step} of {self.num_steps}")

    def on_validation_start(self, trainer: lightning.Trainer, module: Any) -> None:
        """Save the step first: decoding may take long, and a signal then ends it at once."""
        if self.saved_step != trainer.global_step:
            self._save(trainer)
        if trainer.world_size == 1:  # several processes end together, after it
            step = f"step {trainer.global_step} of {self.num_steps}"
            self.signals.at_once(f"in the validation after {step}")

    def on_validation_end(self, trainer: lightning.Trainer, module: Any) -> None:
        """Note what was found, save, then let go of what is no longer the best."""
        self.signals.finish_first()
        self.validations.append(self._found(trainer))
        best = self.best
        assert best is not None
        if best is self.validations[-1]:
            trainer.save_checkpoint(self.best_path(best), weights_only=True)
        self._save(trainer)
        if trainer.is_global_zero:
            self._keep_only(best)
        if self._is_asked(trainer):
            step = f"step {trainer.global_step} of {self.num_steps}"
            self.signals.end(f"after the validation of {step}")
        self._stop_out_of_patience(trainer)

    def on_train_end(self, trainer: lightning.Trainer, module: Any) -> None:
        """What comes now needs no step again."""
        if self.saved_step != trainer.global_step:
            self._save(trainer)
        self.signals.at_once("after training")

    def on_exception(self, *_: Any) -> None:
        """There is nothing left to finish."""
        self.signals.waits = False

    def _found(self, trainer: lightning.Trainer) -> Validation:
        metrics = trainer.callback_metrics
        return Validation(
            trainer.global_step,
            float(metrics[self.monitor]),
            float(metrics[NLL]) if NLL in metrics else None,
            None if self.answers is None else self.answers.name,
        )

    def _save(self, trainer: lightning.Trainer) -> None:
        trainer.save_checkpoint(self.folder / CHECKPOINT_FILE.name)
        self.saved_step, self.saved_at = trainer.global_step, time.monotonic()

    def _keep_only(self, best: Validation) -> None:
        for path in self.folder.glob("best-step=*.ckpt"):
            if path != self.best_path(best):
                path.unlink()
        if self.answers is not None:
            self.answers.keep_only(best.answers)

    def _is_asked(self, trainer: lightning.Trainer) -> bool:
        """Whether any process was asked to stop; all of them ask together."""
        is_asked = self.signals.asked is not None
        return bool(trainer.strategy.reduce_boolean_decision(is_asked, all=False))

    def _is_validation_missing(self, step: int) -> bool:
        every = self.config.validate_every_steps or self.steps_per_epoch
        return step > 0 and step % every == 0 and step not in {v.step for v in self.validations}

    def _stop_out_of_patience(self, trainer: lightning.Trainer) -> None:
        patience = self.config.early_stopping_patience
        without = num_without_better(self.validations, self.monitor)
        if patience is not None and without >= max(1, patience):
            trainer.should_stop = True


def _validate(trainer: lightning.Trainer) -> None:
    """Validate as Lightning does after a step."""
    trainer.validating = True
    trainer.fit_loop.epoch_loop.val_loop.restarting = False
    trainer.fit_loop.epoch_loop.val_loop.run()
    trainer.training = True
