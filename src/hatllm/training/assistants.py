"""A finished baseline run as the assistant of `decode=d3`: from its scores to probabilities.

The models of SEQUENCE_KINDS learn a softmax over items, and popularity counts probabilities of
titles: those are taken as they are. The other rules give numbers to rank by, of no scale (a cosine,
a similarity, reciprocal ranks): there the title of rank r gets a probability proportional to
1 / (1 + r), and titles of equal scores share what their ranks get together.

Dimension key: B users, I items by ascending id, J titles.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import torch
from torch import Tensor

from hatllm.baselines.ranks_of_scores import TitleIndex
from hatllm.baselines.scored import Scored
from hatllm.baselines.sequences import sequences_of
from hatllm.config import SEQUENCE_KINDS, Config
from hatllm.data.prompt import IntArray
from hatllm.decode.catalogue import Assistant
from hatllm.runs.folder import load_items
from hatllm.training.scored_run import check_baseline, scored_baseline

ASSISTANT = "decode.assistant_run"
SAME_DECIMALS = 9  # scores of rules that are alike so far are equal


@dataclass(frozen=True)
class ScoredAssistant:
    """What `hatllm.decode.catalogue.Assistant` asks for, of a model that scores all items."""

    model: Scored
    index: TitleIndex
    kind: str  # of the run's model

    @torch.inference_mode()
    def __call__(self, histories: list[IntArray]) -> Tensor:
        """Log-probability of every item by ascending id, (B, I).

        Where probabilities are of titles, the first item of a title has its title's, others none.
        """
        item_id_I = self.index.item_id_I
        anything = np.full(len(histories), item_id_I[0])  # nobody asks for the target
        examples = pl.DataFrame(
            {"history": [history.tolist() for history in histories], "target": anything}
        )
        rows = sequences_of(examples, item_id_I, self.model.num_read)
        return torch.cat([self._log_probs(score_BI) for score_BI, _ in self.model.batches(rows)])

    def _log_probs(self, score_BI: Tensor) -> Tensor:
        if self.kind in SEQUENCE_KINDS:
            return score_BI.log_softmax(1)
        score_BJ = self.index.title_scores(score_BI)
        if self.kind == "popularity":
            log_prob_BJ = score_BJ.log_softmax(1)
        else:
            log_prob_BJ = log_probs_by_rank(score_BJ)
        log_prob_BI = torch.full_like(score_BI, -torch.inf, dtype=log_prob_BJ.dtype)
        log_prob_BI[:, self.index.first_J] = log_prob_BJ
        return log_prob_BI


def log_probs_by_rank(score_BJ: Tensor) -> Tensor:
    """Log-probabilities proportional to 1 / (1 + rank); equal scores share theirs.

    Args:
        score_BJ: Higher is better. Shape (B, J), float.

    Returns:
        log_prob_BJ: Nats; their probabilities add up to 1. Shape (B, J), float64.
    """
    # Sums in another order are no other scores.
    score_BJ = score_BJ.double().round(decimals=SAME_DECIMALS)
    sorted_BJ, order_BJ = score_BJ.sort(dim=1, descending=True)
    weight_J = 1 / torch.arange(2, score_BJ.shape[1] + 2, dtype=torch.float64)
    is_lower_BJ = sorted_BJ[:, 1:] < sorted_BJ[:, :-1]
    group_BJ = torch.nn.functional.pad(is_lower_BJ.long().cumsum(1), (1, 0))
    empty_BJ = torch.zeros_like(score_BJ)
    total_BJ = empty_BJ.scatter_add(1, group_BJ, weight_J.expand_as(empty_BJ))
    count_BJ = empty_BJ.scatter_add(1, group_BJ, torch.ones_like(empty_BJ))
    prob_BJ = (total_BJ / count_BJ).gather(1, group_BJ) / weight_J.sum()
    return empty_BJ.scatter(1, order_BJ, prob_BJ.log())


def load_assistant(folder: str, item_id_I: IntArray, coming: Mapping[str, Config]) -> Assistant:
    """A finished baseline run, on the CPU.

    Args:
        folder: The run's folder.
        item_id_I: The catalogue, ascending.
        coming: Runs that `task=plan` counts on though they are not made yet, by folder: a
            uniform guess stands in, which takes no time.

    Returns:
        The assistant; it reads as many items of a history as its model does.

    Raises:
        ValueError: As `scored_baseline`.
    """
    if folder in coming:
        check_baseline(coming[folder], folder, ASSISTANT)
        return lambda histories: torch.zeros(len(histories), len(item_id_I)).log_softmax(1)
    model, config = scored_baseline(folder, ASSISTANT, item_id_I)
    return ScoredAssistant(model, TitleIndex.of(load_items(Path(folder))), config.model.kind)
