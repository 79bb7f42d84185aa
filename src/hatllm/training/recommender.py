"""The LightningModule: a masked LLM, its loss and its validation.

Dimension key: B rows, R rows each with one of an example's J titles, L prompt length, T target
tokens, M chosen ones of them, C legal tokens (all flat), D hidden width.
"""

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import polars as pl
import pytorch_lightning as lightning
import torch
import torch.distributed as dist
from torch import Tensor
from torchmetrics import MetricCollection

from hatllm.data.prompt import Batch
from hatllm.decode.catalogue import Catalogue
from hatllm.decode.legal import legal_logits
from hatllm.decode.predict import predict
from hatllm.losses.lml import lml_loss
from hatllm.losses.msl import ats_temperature, legal_statistics, msl_loss, smooth
from hatllm.losses.sdpo import sdpo_loss
from hatllm.memory import naming_what_to_lower
from hatllm.metrics.from_predictions import NLL_COLUMNS, ranks_and_nlls
from hatllm.metrics.rank_metrics import NDCG, ExampleMean, HitRate
from hatllm.model.fast.packed_prompts import hidden_at
from hatllm.model.masked_lm import MaskedLM
from hatllm.processes import process_rank
from hatllm.training.reference import Reference
from hatllm.training.sharding import shard_layers, whole

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
        # Not parameters: kept out of the module tree.
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

    def title_loss(self, batch: Batch) -> Tensor:
        """Loss of the batch's titles: summed over a title's tokens, averaged over rows.

        A row of several supervised titles counts with their weighted mean.

        Args:
            batch: Prompts with titles; under sdpo a row for each title of an example.

        Returns:
            Scalar, float32.
        """
        match self.config.loss.name:
            case "sdpo":
                return self._sdpo(batch)
            case "lml":
                nll_T, title_T = self._lml(batch), batch.title_T
            case _:
                nll_T, title_T = self._msl(batch)
        weight_S = batch.title_weight_S
        return (weight_S[title_T] * nll_T).sum() / weight_S.sum()

    def _lml(self, batch: Batch) -> Tensor:
        hidden_TD = self._hidden_at(batch, batch.target_row_T, batch.target_column_T)
        return lml_loss(self.lm.logits(hidden_TD), batch.target_token_T)

    def _sdpo(self, batch: Batch) -> Tensor:
        loss = self.config.loss
        assert self.reference is not None and loss.beta is not None
        with self.reference.instead():
            reference_BJ = self._title_log_probs(batch)
        loss_B = sdpo_loss(self._title_log_probs(batch), reference_BJ, loss.beta)
        weight_B = batch.title_weight_S.view(reference_BJ.shape)[:, 0]
        return (weight_B * loss_B).sum() / weight_B.sum()

    def _title_log_probs(self, batch: Batch) -> Tensor:
        """Log-probability of each example's target and negatives, (B, J)."""
        assert self.config.loss.num_negatives is not None
        nll_T = self._lml(batch)
        nll_R = nll_T.new_zeros(batch.num_rows).index_add(0, batch.target_row_T, nll_T)
        return -nll_R.view(-1, 1 + self.config.loss.num_negatives)

    def _hidden_at(self, batch: Batch, row_M: Tensor, column_M: Tensor) -> Tensor:
        """Hidden states of chosen tokens, the fast or the plain way. Shape (M, D)."""
        # The fast way hands keys and values of the prefix on beside the layers' outputs, where FSDP
        # does not see that a layer's weights are still needed.
        is_fast = self.config.fast and self.config.trainer.strategy != "fsdp"
        if is_fast and len(row_M):  # no choice in any title: the plain way has a graph
            prefix_P = torch.from_numpy(self.catalogue.book.prefix).to(row_M.device)
            return hidden_at(self.lm, batch, prefix_P, row_M, column_M)
        hidden_BLD = self.lm.hidden_of_prompts(batch.input_ids_BL, batch.tokens, batch.valid_BL)
        return hidden_BLD[row_M, column_M]

    def _msl(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Loss of every supervised token that is a choice, and the title each is of."""
        trie = self.catalogue.trie = self.catalogue.trie.to(batch.input_ids_BL.device)
        path_SP = trie.path_to(trie.leaf_of_item(batch.title_item_S))
        step_P = torch.arange(path_SP.shape[1], device=path_SP.device)
        node_T = path_SP[(path_SP >= 0) & (step_P < batch.title_length_S[:, None])]
        parent_T = trie.parent_N[node_T]
        chosen_T = trie.is_branching_N[parent_T]  # forced tokens have no loss and no gradient
        hidden_MD = self._hidden_at(
            batch, batch.target_row_T[chosen_T], batch.target_column_T[chosen_T]
        )
        row_C, child_C, logit_C = legal_logits(self.lm, trie, hidden_MD, parent_T[chosen_T])
        positive_T = logit_C[child_C == node_T[chosen_T][row_C]]
        tau: float | Tensor = self.config.loss.tau
        if self.config.loss.name == "msl_ats":
            is_first_T = parent_T[chosen_T] == self._first_choice()
            tau = self._adapted_tau(positive_T, logit_C, row_C, is_first_T)
        return msl_loss(positive_T, logit_C, row_C, tau), batch.title_T[chosen_T]

    def _first_choice(self) -> Tensor:
        """The first branching node below the root, the same for every title."""
        is_branching_N = self.catalogue.trie.is_branching_N
        return is_branching_N.int().argmax()  # nodes are numbered breadth first

    def _adapted_tau(
        self, positive_T: Tensor, logit_C: Tensor, row_C: Tensor, is_first_T: Tensor
    ) -> Tensor:
        chosen_C = is_first_T[row_C]
        renumbered_T = is_first_T.cumsum(0) - 1
        sums_5 = legal_statistics(
            positive_T[is_first_T], logit_C[chosen_C], renumbered_T[row_C[chosen_C]]
        )
        if process_rank()[1] > 1:
            dist.all_reduce(sums_5)
        loss = self.config.loss
        tau = ats_temperature(sums_5, loss.eta, loss.min_tau, loss.max_tau)
        self.tau = tau if self.tau.isnan() else smooth(self.tau, tau, loss.ema)
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
        """LLaRA's curriculum: item tokens with a probability that grows to 1 at the last step.

        Drawn for an optimizer step (in the authors' code for a micro-batch).
        """
        assert self.lm.item_tokens is not None
        step = self.trainer.global_step
        draw = random.Random(f"item_curriculum {self.config.seed} {step}").random()
        self.lm.item_tokens.text_only = draw >= (step + 1) / self.num_steps

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

        def factor(step: int) -> float:
            warmed = min(1.0, (step + 1) / max(1, trainer.warmup_steps))
            left = (self.num_steps - step) / max(1, self.num_steps - trainer.warmup_steps)
            return max(0.0, min(warmed, left))

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
