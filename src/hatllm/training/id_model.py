"""Training of the id-based baselines, stopped early on valid NDCG@10.

Dimension key: G rows of a split, B rows of a batch, I items, D hidden size, M training states.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import astuple, dataclass, field, fields
from math import isfinite
from typing import Any

import polars as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from hatllm.baselines.bert4rec import BERT4Rec
from hatllm.baselines.gru4rec import GRU4Rec
from hatllm.baselines.next_item_loss import next_item_loss, nominal_distribution
from hatllm.baselines.ranks_of_scores import TitleIndex, target_ranks
from hatllm.baselines.sasrec import SASRec
from hatllm.baselines.sequences import Sequences, draw_by_xavier, learned_items
from hatllm.config import SequenceConfig
from hatllm.metrics.best_step import Validation, best_of, num_without_better
from hatllm.metrics.rank_metrics import NDCG
from hatllm.progress import Progress

SequenceModel = SASRec | GRU4Rec | BERT4Rec
VALID_K = 10
MONITOR = f"val/NDCG@{VALID_K}"


class NonFiniteLossError(ArithmeticError):
    """A training loss that is NaN or infinite."""

    def __init__(self, loss: float, step: int, row_B: Tensor) -> None:
        """Say which.

        Args:
            loss: The loss.
            step: Optimizer steps done before.
            row_B: Training rows of the batch. Shape (B,), int64.
        """
        super().__init__(f"the training loss is {loss} at step {step}")
        self.loss, self.step, self.row_B = loss, step, row_B


@dataclass(frozen=True)
class Fitted:
    """How training went."""

    best_epoch: int  # from 1: the epoch whose weights the model has
    num_epochs: int
    num_steps: int
    validations: tuple[Validation, ...]  # one an epoch


def build_sequence_model(
    kind: str, num_items: int, max_history_items: int, config: SequenceConfig
) -> SequenceModel:
    """An untrained model; its weights are drawn from torch's global generator."""
    model: SequenceModel
    match kind:
        case "sasrec":
            model = SASRec(num_items, max_history_items, config)
        case "gru4rec":
            model = GRU4Rec(num_items, config)
        case "bert4rec":
            model = BERT4Rec(num_items, max_history_items, config)
        case _:
            raise ValueError(f"kind={kind!r} must be sasrec, gru4rec or bert4rec")
    if config.init_std is None:
        draw_by_xavier(model)
    return model


@dataclass(frozen=True)
class Keeping:
    """How a training goes on where it was stopped; as it stands, nothing is kept."""

    # Called after every epoch, and after a step where it is due, with all that is needed to go on:
    # tensors, dicts, lists and numbers, good until it returns.
    save: Callable[[dict[str, Any]], None] = lambda state: None
    is_due: Callable[[], bool] = lambda: False  # asked after every step
    saved: dict[str, Any] | None = None  # what `save` was given by a run that was stopped


def fit(
    model: SequenceModel,
    train: Sequences,
    valid: Sequences,
    index: TitleIndex,
    config: SequenceConfig,
    log: Callable[[dict[str, float], int], None],
    keeping: Keeping,
    excluded: pl.Series | None = None,
) -> Fitted:
    """Train until valid NDCG@10 stops rising and leave the best epoch's weights in the model.

    Of epochs with an equal NDCG@10 the latest is the best, and the first alone counts as better.
    Equal seeds of torch's global generator give equal weights, stopped on the way or not.

    Args:
        model: A model of :func:`build_sequence_model`, on its device.
        train: Training rows.
        valid: Rows that decide when to stop.
        index: The catalogue.
        config: Loss, optimizer, epochs.
        log: Called once an epoch with metrics and the number of optimizer steps so far.
        keeping: Whether and how to go on where training was stopped.
        excluded: Item ids of each valid row whose titles are no answers; None = all titles are.

    Returns:
        The best epoch and what was done.

    Raises:
        ValueError: If there are no training or no valid rows.
        NonFiniteLossError: If a loss is NaN or infinite.
    """
    for name, rows in (("train", train), ("valid", valid)):
        if len(rows) == 0:
            raise ValueError(f"the {name} split has no rows: model=sasrec and its like need some")
    with _dropped_vectors(model.items, config.item_dropout):
        training = _Training.begin(model, train, config, keeping)
        training.run(lambda: _valid_ndcg(model, valid, index, config, excluded), log)
        done = training.done
        model.load_state_dict(done.best_weights)
    return Fitted(done.best_epoch, done.epoch, done.steps, tuple(done.validations))


@contextmanager
def _dropped_vectors(items: nn.Embedding, rate: float) -> Iterator[None]:
    """While it is open, numbers of item vectors are dropped in training mode; then all are back.

    Under ``parametrize.cached()`` reading and answering see the same draw, as in RecTools 0.13.
    """
    if not rate:
        yield
        return
    parametrize.register_parametrization(items, "weight", nn.Dropout(rate))
    try:
        yield
    finally:
        parametrize.remove_parametrizations(items, "weight", leave_parametrized=False)


@torch.inference_mode()
def scores(
    model: SequenceModel, sequences: Sequences, batch_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """score_BI of all items and target_B, batch by batch in the rows' order."""
    model.eval()
    weight_ID, bias_I = model.output()
    for row_B in torch.split(torch.arange(len(sequences)), batch_size):
        history_BL, length_B, target_B = sequences.rows(row_B, _device(model))
        state_BD = model.next_states(history_BL, length_B)
        yield F.linear(state_BD, weight_ID, bias_I), target_B


@dataclass
class _Progress:
    """How far training has come, and the best of it."""

    best_weights: dict[str, Any]
    validations: list[Validation] = field(default_factory=list)  # one an epoch
    epoch: int = 0  # epochs done
    steps: int = 0  # optimizer steps done
    order_G: Tensor | None = None  # of the rows in the epoch under way
    losses: list[float] = field(default_factory=list)  # of its steps so far

    @property
    def best_epoch(self) -> int:
        """From 1; 0 = none is done."""
        best = best_of(self.validations, MONITOR)
        return 0 if best is None else 1 + self.validations.index(best)

    def end_epoch(self) -> float:
        """Every row was seen; returns the mean loss of the steps."""
        loss = sum(self.losses) / len(self.losses)
        self.epoch, self.order_G, self.losses = self.epoch + 1, None, []
        return loss

    def is_done(self, config: SequenceConfig) -> bool:
        """Whether that was the last epoch, or the last `patience` ones brought nothing better."""
        without, patience = num_without_better(self.validations, MONITOR), config.patience
        out_of_patience = patience is not None and self.epoch > 0 and without >= patience
        return out_of_patience or self.epoch >= config.max_epochs


@dataclass
class _Training:
    """A model with all that moves it."""

    model: SequenceModel
    optimizer: torch.optim.Optimizer
    train: Sequences
    config: SequenceConfig
    nominal_I: Tensor | None
    keeping: Keeping
    done: _Progress

    @classmethod
    def begin(
        cls, model: SequenceModel, train: Sequences, config: SequenceConfig, keeping: Keeping
    ) -> "_Training":
        """From the model's weights, or from where a stopped training was saved."""
        optimizer, nominal_I = _optimizer(model, config), _nominal(train, config, _device(model))
        done = _Progress(deepcopy(model.state_dict()))
        if (saved := keeping.saved) is not None:
            model.load_state_dict(saved["weights"])
            optimizer.load_state_dict(saved["optimizer"])
            _set_generators(saved["generators"])
            done = _Progress(**{part.name: saved[part.name] for part in fields(_Progress)})
            done.validations = [Validation(*values) for values in saved["validations"]]
        return cls(model, optimizer, train, config, nominal_I, keeping, done)

    def state(self) -> dict[str, Any]:
        """What :meth:`begin` needs; the tensors are the training's own, not copies."""
        return vars(self.done) | {
            "validations": [astuple(validation) for validation in self.done.validations],
            "weights": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generators": _generators(),
        }

    def run(
        self, valid_ndcg: Callable[[], float], log: Callable[[dict[str, float], int], None]
    ) -> None:
        """Epoch after epoch, the best one's weights kept aside."""
        done, config = self.done, self.config
        bar = Progress(total=config.max_epochs, initial=done.epoch, desc="train", unit="epoch")
        while not done.is_done(config):
            for _ in self._steps():
                if self.keeping.is_due():
                    self.keeping.save(self.state() | {"is_done": False})
            metrics = {"train/loss": done.end_epoch(), MONITOR: valid_ndcg()}
            log(metrics, done.steps)
            bar.update()
            bar.set_postfix({name: f"{value:.4f}" for name, value in metrics.items()})
            done.validations.append(Validation(done.steps, metrics[MONITOR]))
            if done.best_epoch == done.epoch:
                done.best_weights = deepcopy(self.model.state_dict())
            self.keeping.save(self.state() | {"is_done": done.is_done(config)})
        bar.close()

    def _steps(self) -> Iterator[None]:
        """The steps that are left of an epoch: all rows once, in a new order."""
        done = self.done
        if done.order_G is None:
            done.order_G = torch.randperm(len(self.train))
        for row_B in torch.split(done.order_G, self.config.batch_size)[len(done.losses) :]:
            loss = self._step(row_B)
            if not isfinite(loss):
                raise NonFiniteLossError(loss, done.steps, row_B)
            done.losses.append(loss)
            done.steps += 1
            yield

    def _step(self, row_B: Tensor) -> float:
        """One optimizer step; returns its loss."""
        model = self.model.train()
        with parametrize.cached():  # item_dropout is drawn once
            state_MD, target_M = model.training_states(*self.train.rows(row_B, _device(model)))
            loss = next_item_loss(state_MD, target_M, model.output(), self.config, self.nominal_I)
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        self.optimizer.step()
        return float(loss.detach())


def _valid_ndcg(
    model: SequenceModel,
    valid: Sequences,
    index: TitleIndex,
    config: SequenceConfig,
    excluded: pl.Series | None,
) -> float:
    ndcg, start, is_gone_BJ = NDCG(VALID_K), 0, None
    for score_BI, target_B in scores(model, valid, config.batch_size):
        if excluded is not None:
            is_gone_BJ = index.holds(excluded.slice(start, len(target_B))).to(score_BI.device)
        ndcg.update(target_ranks(score_BI, target_B, index, is_gone_BJ)[0])
        start += len(target_B)
    return float(ndcg.compute())


def _nominal(train: Sequences, config: SequenceConfig, device: torch.device) -> Tensor | None:
    """What DROS takes the items' distribution for, (I,); None without it."""
    if config.dros is None:
        return None
    asked = learned_items(train, config.every_position or config.cloze is not None)
    return nominal_distribution(asked, train.num_items, config.dros).to(device)


def _optimizer(model: SequenceModel, config: SequenceConfig) -> torch.optim.Optimizer:
    weights, rate, decay = model.parameters(), config.learning_rate, config.weight_decay
    betas = (0.9, config.second_beta)
    match config.optimizer:
        case "adam":
            return torch.optim.Adam(weights, rate, betas, weight_decay=decay, fused=True)
        case "adamw":
            return torch.optim.AdamW(weights, rate, betas, weight_decay=decay, fused=True)
        case _:
            raise ValueError(f"model.sequence.optimizer={config.optimizer!r} must be adam or adamw")


def _device(model: SequenceModel) -> torch.device:
    return next(model.parameters()).device


def _generators() -> list[Tensor]:
    """State of torch's global generators: the CPU's, then each GPU's."""
    on_gpu = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return [torch.get_rng_state(), *on_gpu]


def _set_generators(states: list[Tensor]) -> None:
    torch.set_rng_state(states[0])
    if torch.cuda.is_available() and len(states) == 1 + torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states[1:])
