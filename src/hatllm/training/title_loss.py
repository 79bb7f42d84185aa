"""The loss of a batch's titles: which of the losses, over which hidden states.

Dimension key: B rows, J titles (of an example, or supervised in the batch), L prompt length, T
target tokens, M chosen ones of them, C legal tokens (all flat), D hidden width.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from hatllm.data.prompt import Batch
from hatllm.decode.catalogue import Catalogue
from hatllm.decode.legal import legal_logits
from hatllm.losses.bear import survival_weights
from hatllm.losses.lml import lml_loss
from hatllm.losses.msl import ats_temperature, legal_statistics, msl_loss, smooth
from hatllm.losses.sdpo import sdpo_loss
from hatllm.model.fast.packed_prompts import hidden_at
from hatllm.model.masked_lm import MaskedLM
from hatllm.processes import process_rank

if TYPE_CHECKING:
    from hatllm.config import Config
    from hatllm.config.loss import LossConfig


@dataclass(frozen=True)
class FirstChoices:
    """Logits at each title's first token that is a choice; msl_ats reads its temperature there."""

    positive_M: Tensor  # of the right token
    logit_C: Tensor  # of all legal tokens
    row_C: Tensor  # the choice each belongs to, ascending


@dataclass(frozen=True)
class TitleLoss:
    """The loss of a run, summed over a title's tokens and averaged over rows.

    A row of several supervised titles counts with their weighted mean.
    """

    lm: MaskedLM
    catalogue: Catalogue
    config: "Config"
    reference: "Reference | None"  # sdpo
    adapt: Callable[[FirstChoices], Tensor]  # msl_ats: the temperature of this step

    def __call__(self, batch: Batch) -> Tensor:
        """Choose the loss of `conf/loss/`.

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
            case "igd":
                nll_T, title_T = self._igd(batch), batch.title_T
            case _:
                nll_T, title_T = self._msl(batch)
        weight_J = batch.title_weight_J
        return (weight_J[title_T] * nll_T).sum() / weight_J.sum()

    def _lml(self, batch: Batch) -> Tensor:
        """Loss of every supervised token, (T,)."""
        hidden_TD = self.hidden_at(batch, batch.target_row_T, batch.target_column_T)
        return lml_loss(self.lm.logits(hidden_TD), batch.target_token_T)

    def _igd(self, batch: Batch) -> Tensor:
        """As `_lml`; a token that tells no title apart weighs less."""
        weight, node_T = self.config.loss.forced_weight, self._nodes(batch)
        assert weight is not None
        trie = self.catalogue.trie
        is_choice_T = trie.is_branching_N[trie.parent_N[node_T]]
        return self._lml(batch) * is_choice_T.float().clamp(min=weight)

    def _nodes(self, batch: Batch) -> Tensor:
        """Trie node that each supervised token leads into, (T,)."""
        trie = self.catalogue.trie = self.catalogue.trie.to(batch.input_ids_BL.device)
        path_JP = trie.path_to(trie.leaf_of_item(batch.title_item_J))
        step_P = torch.arange(path_JP.shape[1], device=path_JP.device)
        return path_JP[(path_JP >= 0) & (step_P < batch.title_length_J[:, None])]

    def _msl(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Loss of every supervised token that is a choice, (M,), and the title each is of."""
        node_T = self._nodes(batch)
        trie = self.catalogue.trie
        parent_T = trie.parent_N[node_T]
        chosen_T = trie.is_branching_N[parent_T]  # forced tokens have no loss and no gradient
        node_M, parent_M = node_T[chosen_T], parent_T[chosen_T]
        hidden_MD = self.hidden_at(
            batch, batch.target_row_T[chosen_T], batch.target_column_T[chosen_T]
        )
        row_C, child_C, logit_C = legal_logits(self.lm, trie, hidden_MD, parent_M)
        is_target_C = child_C == node_M[row_C]
        positive_M = logit_C[is_target_C]
        tau: float | Tensor = self.config.loss.tau
        if self.config.loss.name == "msl_ats":
            # The first branching node below the root, the same for every title: nodes are numbered
            # breadth first.
            is_first_M = parent_M == trie.is_branching_N.int().argmax()
            tau = self.adapt(_first_choices(positive_M, logit_C, row_C, is_first_M))
        if trie.log_prior_N is not None:  # softmax(logit / tau + prior), as titles are scored
            logit_C = logit_C + tau * trie.log_prior_N[child_C]
        nll_M = msl_loss(logit_C[is_target_C], logit_C, row_C, tau)
        if self.config.loss.name == "bear":
            nll_M = nll_M * self._survival(logit_C, row_C, is_target_C)
        return nll_M, batch.title_T[chosen_T]

    def _survival(self, logit_C: Tensor, row_C: Tensor, is_target_C: Tensor) -> Tensor:
        """BEAR's weight of each choice, (M,)."""
        loss = self.config.loss
        rank, xi, lam = loss.margin_rank, loss.margin_xi, loss.margin_weight
        assert rank is not None and xi is not None and lam is not None
        return survival_weights(logit_C / loss.tau, row_C, is_target_C, rank, xi, lam)

    def _sdpo(self, batch: Batch) -> Tensor:
        loss = self.config.loss
        assert self.reference is not None and loss.beta is not None
        with self.reference.instead():
            reference_BJ = self.title_log_probs(batch)
        loss_B = sdpo_loss(self.title_log_probs(batch), reference_BJ, loss.beta)
        weight_B = batch.title_weight_J.view(reference_BJ.shape)[:, 0]
        return (weight_B * loss_B).sum() / weight_B.sum()

    def title_log_probs(self, batch: Batch) -> Tensor:
        """Log-probability of each example's target and negatives, (B, J)."""
        assert self.config.loss.num_negatives is not None
        nll_T = self._lml(batch)
        nll = nll_T.new_zeros(batch.num_rows).index_add(0, batch.target_row_T, nll_T)
        return -nll.view(-1, 1 + self.config.loss.num_negatives)

    def hidden_at(self, batch: Batch, row_M: Tensor, column_M: Tensor) -> Tensor:
        """Hidden states of chosen tokens, the fast or the plain way.

        Args:
            batch: Prompts with titles.
            row_M: Row of each token. Shape (M,), int64.
            column_M: Its column. Shape (M,), int64.

        Returns:
            hidden_MD: Shape (M, D).
        """
        # The fast way hands keys and values of the prefix on beside the layers' outputs, where FSDP
        # does not see that a layer's weights are still needed.
        is_fast = self.config.fast and self.config.trainer.strategy != "fsdp"
        if is_fast and len(row_M):  # no choice in any title: the plain way has a graph
            prefix_A = torch.from_numpy(self.catalogue.book.prefix).to(row_M.device)
            return hidden_at(self.lm, batch, prefix_A, row_M, column_M)
        hidden_BLD = self.lm.hidden_of_prompts(batch.input_ids_BL, batch.tokens, batch.valid_BL)
        return hidden_BLD[row_M, column_M]


def _first_choices(
    positive_M: Tensor, logit_C: Tensor, row_C: Tensor, is_first_M: Tensor
) -> FirstChoices:
    chosen_C = is_first_M[row_C]
    renumbered_M = is_first_M.cumsum(0) - 1
    return FirstChoices(positive_M[is_first_M], logit_C[chosen_C], renumbered_M[row_C[chosen_C]])


def adapted_temperature(tau: Tensor, first: FirstChoices, loss: "LossConfig") -> Tensor:
    """The moving average of msl_ats after one more step, that of all processes together.

    Args:
        tau: Before; NaN = there was no step yet. Scalar.
        first: Of the step.
        loss: The average's settings.

    Returns:
        The temperature from now on. Scalar.
    """
    sums_5 = legal_statistics(first.positive_M, first.logit_C, first.row_C)
    if process_rank()[1] > 1:
        dist.all_reduce(sums_5)
    asked = ats_temperature(sums_5, loss.eta, loss.min_tau, loss.max_tau)
    return asked if tau.isnan() else smooth(tau, asked, loss.ema)


class Reference:
    """The model as it was when training began: the start of what is tuned; the rest is shared.

    Fresh adapters change nothing, so without a run to start from this is the model with its
    adapters switched off.
    """

    def __init__(self, lm: MaskedLM) -> None:
        self.lm = lm
        self.tuned = [p for p in lm.parameters() if p.requires_grad]
        self.start = [p.detach().clone() for p in self.tuned]

    @contextmanager
    def instead(self) -> Iterator[None]:
        """The model is the reference for a while: no gradients, no dropout."""
        was_training, now = self.lm.training, [p.data for p in self.tuned]
        self.start = [p.to(q.device) for p, q in zip(self.start, now, strict=True)]
        self._set(self.start)
        self.lm.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self._set(now)
            self.lm.train(was_training)

    def _set(self, values: list[Tensor]) -> None:
        for parameter, value in zip(self.tuned, values, strict=True):
            parameter.data = value
