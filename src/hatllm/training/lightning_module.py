"""The LightningModule: a masked LLM, its training steps and its validation."""

import random
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import polars as pl
import pytorch_lightning as lightning
import torch
from torch import Tensor
from torchmetrics import MetricCollection

from hatllm.data.prompt import Batch
from hatllm.decode.catalogue import Catalogue
from hatllm.decode.predict import predict
from hatllm.memory import naming_what_to_lower
from hatllm.metrics.from_predictions import NLL_COLUMNS, ranks_and_nlls
from hatllm.metrics.rank_metrics import NDCG, ExampleMean, HitRate
from hatllm.model.masked_lm import MaskedLM
from hatllm.training.sharding import shard_layers, whole
from hatllm.training.title_loss import FirstChoices, Reference, TitleLoss, adapted_temperature

if TYPE_CHECKING:
    from hatllm.config import Config


class Recommender(lightning.LightningModule):
    """Fine-tunes a masked LLM to write the next item's title."""

    def __init__(
        self,
        lm: MaskedLM,
        catalogue: Catalogue,
        config: "Config",
        num_steps: int,
        valid: pl.DataFrame,
        decode_valid: Callable[[MaskedLM], pl.DataFrame] | None = None,
    ) -> None:
        """Wire a run.

        Args:
            lm: The model under its schedule.
            catalogue: Tokenised titles and their trie.
            config: The run.
            num_steps: Optimizer steps of the whole run, for the learning-rate decay.
            valid: Validation rows.
            decode_valid: Gives their predictions under the model; None = they are decoded and
                nothing of it is kept.
        """
        super().__init__()
        self.lm = lm
        self.catalogue, self.config, self.num_steps = catalogue, config, num_steps
        self.valid, self.decode_valid = valid, decode_valid
        cut_offs = config.validation_cut_offs
        ranking = {f"HR@{k}": HitRate(k) for k in cut_offs}
        ranking |= {f"NDCG@{k}": NDCG(k) for k in cut_offs}
        self.val_ranking = MetricCollection(ranking, compute_groups=False)
        nlls = {name: ExampleMean() for name in NLL_COLUMNS}
        self.val_nlls = MetricCollection(nlls, compute_groups=False)
        self.tau: Tensor
        self.register_buffer("tau", torch.tensor(float("nan")))  # msl_ats: moving average
        self.reference = Reference(lm) if config.loss.name == "sdpo" else None
        self.micro_losses: list[Tensor] = []  # of the optimizer step under way
        # Checkpoints hold what is tuned; the frozen backbone is not in them.
        self.strict_loading = False

    def configure_model(self) -> None:
        """Under FSDP each process keeps its part of every decoder layer."""
        if self.config.trainer.strategy == "fsdp" and self.trainer.training:
            assert self.device_mesh is not None
            shard_layers(self.lm, self.device_mesh["data_parallel"])

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Mean over rows of the title's loss (nats a title)."""
        loss = self.title_loss(batch)
        self.micro_losses.append(loss.detach())
        if (batch_idx + 1) % self.trainer.accumulate_grad_batches == 0:
            # Micro-batches differ in title length, so only the whole step's mean is a curve.
            mean = torch.stack(self.micro_losses).mean()
            self.log("train/loss", mean, prog_bar=True, sync_dist=True, batch_size=1)
        return loss

    @property
    def loss(self) -> TitleLoss:
        """The run's loss under the model and catalogue of now."""
        return TitleLoss(self.lm, self.catalogue, self.config, self.reference, self._adapt)

    def title_loss(self, batch: Batch) -> Tensor:
        """Loss of the batch's titles, as `TitleLoss`."""
        return self.loss(batch)

    def _adapt(self, first: FirstChoices) -> Tensor:
        self.tau = adapted_temperature(self.tau, first, self.config.loss)
        self.log("train/tau", self.tau)
        return self.tau

    def on_train_batch_start(self, _: Any, batch_idx: int) -> None:
        """Seed dropout by the optimizer step, so that a resumed run draws what it would have."""
        accumulation = self.trainer.accumulate_grad_batches
        if self.config.model.item_curriculum:
            self._set_text_only()
        if batch_idx % accumulation == 0:
            self.micro_losses = []
            step = self.trainer.global_step * self.trainer.world_size + self.trainer.global_rank
            torch.manual_seed(self.config.seed * 1_000_003 + step)

    def _set_text_only(self) -> None:
        assert self.lm.item_tokens is not None
        step = self.trainer.global_step
        self.lm.item_tokens.text_only = shows_text_only(self.config.seed, step, self.num_steps)

    def on_train_batch_end(self, *_: Any) -> None:
        """Whatever is not a training batch sees item tokens."""
        if self.lm.item_tokens is not None:
            self.lm.item_tokens.text_only = False

    def validation_step(self, *_: Any) -> None:
        """Decode every validation row (each process its share) and log val/ metrics."""
        self.score_as_trained()
        with whole(self.lm), naming_what_to_lower(self.config, decoding=True):
            if self.decode_valid is not None:
                predictions = self.decode_valid(self.lm)
            else:
                predictions = predict(self.lm, self.catalogue, self.valid, self.config, "validate")
        rank_B, nlls = ranks_and_nlls(predictions)
        self.val_ranking.update(rank_B)
        main = f"NDCG@{self.config.validation_cut_offs[0]}"
        for name, metric in self.val_ranking.items():
            self.log(f"val/{name}", metric, prog_bar=name == main, batch_size=1)
        for name, nll_B in nlls.items():  # d3 has none of its own
            self.val_nlls[name].update(nll_B)
            self.log(f"val/{name}", self.val_nlls[name], batch_size=1)

    def score_as_trained(self) -> None:
        """Under msl_ats titles are scored at the temperature that it has come to."""
        adapts = self.config.loss.name == "msl_ats" and self.config.decode.temperature is None
        if adapts and not self.tau.isnan():
            self.lm.trie_temperature = float(self.tau)

    def configure_optimizers(self) -> Any:
        """AdamW; linear warm-up, then linear decay to 0 at the last step."""
        trainer = self.config.trainer
        tuned = [p for p in self.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            tuned, lr=trainer.learning_rate, weight_decay=trainer.weight_decay
        )
        factor = partial(share_of_rate, warmup=trainer.warmup_steps, num_steps=self.num_steps)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step", "name": "learning_rate"},
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what is tuned; a frozen backbone is loaded from where it came from."""
        tuned = {name for name, p in self.named_parameters() if p.requires_grad} | {"tau"}
        checkpoint["state_dict"] = {
            name: value for name, value in checkpoint["state_dict"].items() if name in tuned
        }


def share_of_rate(step: int, warmup: int, num_steps: int) -> float:
    """What an optimizer step has of the learning rate: linear warm-up, then linear decay to 0.

    Args:
        step: Optimizer steps done before.
        warmup: Steps until it has all of it.
        num_steps: Of the whole run; the decay ends there.
    """
    warmed = min(1.0, (step + 1) / max(1, warmup))
    left = (num_steps - step) / max(1, num_steps - warmup)
    return max(0.0, min(warmed, left))


def shows_text_only(seed: int, step: int, num_steps: int) -> bool:
    """LLaRA's curriculum: item tokens with a probability that grows to 1 at the last step.

    Drawn for an optimizer step (in the authors' code for a micro-batch).

    Args:
        seed: Of the run.
        step: Optimizer steps done before.
        num_steps: Of the whole run.
    """
    draw = random.Random(f"item_curriculum {seed} {step}").random()
    return draw >= (step + 1) / num_steps
