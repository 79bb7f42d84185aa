"""A finished run of a model that knows items by id, as the assistant of `decode=d3`."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file
from torch import Tensor

from hatllm.baselines.fit import SequenceModel, build_sequence_model, scores
from hatllm.baselines.sequences import sequences_of
from hatllm.config import SEQUENCE_KINDS, SequenceConfig
from hatllm.data.prompt import IntArray
from hatllm.tasks.run_folder import WEIGHTS_FILE, load_config

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


def load_assistant(folder: Path, item_id_I: IntArray) -> IdAssistant:
    """The model of a finished baseline run, on the CPU.

    Args:
        folder: The run's folder.
        item_id_I: The catalogue, ascending.

    Returns:
        The assistant; it reads as many items of a history as it was trained with.

    Raises:
        ValueError: If the run is not finished, not of a model of SEQUENCE_KINDS, or knows another
            catalogue.
    """
    saved = load_config(folder, FIELD)
    if saved.model.kind not in SEQUENCE_KINDS:
        raise ValueError(
            f"{FIELD}={str(folder)!r} is a run of model={saved.model.name}; give one of a model "
            f"of kind {', '.join(SEQUENCE_KINDS)}"
        )
    known_I = pl.read_parquet(folder / "items.parquet")["item_id"].sort().to_numpy()
    if not np.array_equal(known_I, item_id_I):
        raise ValueError(
            f"{FIELD}={str(folder)!r} knows {len(known_I)} items that are not the {len(item_id_I)} "
            "of this run's catalogue; give a run on the same data"
        )
    settings = OmegaConf.to_object(saved.model.sequence)
    assert isinstance(settings, SequenceConfig)
    length = saved.data.max_history_items
    model = build_sequence_model(saved.model.kind, len(item_id_I), length, settings)
    model.load_state_dict(load_file(folder / WEIGHTS_FILE))
    return IdAssistant(model.eval(), item_id_I, length, settings.batch_size)
