"""A finished run of a model that knows items by id, as the assistant of `decode=d3`."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from torch import Tensor

from hatllm.baselines.fit import SequenceModel, scores
from hatllm.baselines.sequences import sequences_of
from hatllm.config import Config
from hatllm.data.prompt import IntArray
from hatllm.tasks.sequence_run import load_sequence_run

FIELD = "decode.assistant_run"


@dataclass(frozen=True)
class IdAssistant:
    """Softmax over the scores of all items (see `hatllm.decode.catalogue.Assistant`)."""

    model: SequenceModel
    item_id_I: IntArray
    max_history_items: int
    batch_size: int

    def __call__(self, histories: list[IntArray]) -> Tensor:
        """Log-probability of every item by ascending id, (B, I)."""
        anything = np.full(len(histories), self.item_id_I[0])  # nobody asks for the target
        examples = pl.DataFrame(
            {"history": [history.tolist() for history in histories], "target": anything}
        )
        rows = sequences_of(examples, self.item_id_I, self.max_history_items)
        parts = [score_BI for score_BI, _ in scores(self.model, rows, self.batch_size)]
        return torch.cat(parts).log_softmax(1)


def load_assistant(folder: str, item_id_I: IntArray, coming: Mapping[str, Config]) -> IdAssistant:
    """The model of a finished baseline run, on the CPU.

    Args:
        folder: The run's folder.
        item_id_I: The catalogue, ascending.
        coming: As in `load_sequence_run`.

    Returns:
        The assistant; it reads as many items of a history as it was trained with.

    Raises:
        ValueError: As `load_sequence_run`.
    """
    model, saved = load_sequence_run(folder, item_id_I, FIELD, coming)
    length, batch_size = saved.data.max_history_items, saved.model.sequence.batch_size
    return IdAssistant(model, item_id_I, length, batch_size)
