"""The model of a finished baseline run, loaded again."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
from omegaconf import OmegaConf

from hatllm.config import SEQUENCE_KINDS, Config, SequenceConfig
from hatllm.data.prompt import IntArray
from hatllm.model.export import read_tensors
from hatllm.runs.folder import load_config, load_items
from hatllm.runs.run_files import WEIGHTS_FILE
from hatllm.training.id_model import SequenceModel, build_sequence_model


def load_sequence_run(
    folder: str, item_id_I: IntArray, field: str, coming: Mapping[str, Config]
) -> tuple[SequenceModel, Any]:
    """The model of a finished baseline run, on the CPU, and the run's settings.

    Args:
        folder: The run's folder.
        item_id_I: The catalogue, ascending.
        field: The setting that names the run, for messages.
        coming: Runs that `task=plan` counts on though they are not made yet, by folder: an
            untrained model stands in.

    Raises:
        ValueError: If the run is not finished, not of a model of SEQUENCE_KINDS, or knows another
            catalogue.
    """
    saved: Any = coming.get(folder) or load_config(Path(folder), field)
    if saved.model.kind not in SEQUENCE_KINDS:
        raise ValueError(
            f"{field}={folder!r} is a run of model={saved.model.name}; give one of a model "
            f"of kind {', '.join(SEQUENCE_KINDS)}"
        )
    settings = saved.model.sequence
    if not isinstance(settings, SequenceConfig):
        settings = cast(SequenceConfig, OmegaConf.to_object(settings))
    length = saved.data.max_history_items
    model = build_sequence_model(saved.model.kind, len(item_id_I), length, settings)
    if folder not in coming:
        check_same_items(Path(folder), item_id_I, field)
        _load_weights(model, Path(folder) / WEIGHTS_FILE)
    return model.eval(), saved


def _load_weights(model: SequenceModel, path: Path) -> None:
    try:
        model.load_state_dict(read_tensors(path))
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit the settings beside it: {error}") from error


def check_same_items(folder: Path, item_id_I: IntArray, field: str) -> None:
    """Refuse a run that knows other items.

    Raises:
        ValueError: If its item ids are not the catalogue's.
    """
    known_I = load_items(folder)["item_id"].sort().to_numpy()
    if not np.array_equal(known_I, item_id_I):
        raise ValueError(
            f"{field}={str(folder)!r} knows {len(known_I)} items that are not the {len(item_id_I)} "
            "of this run's catalogue; give a run on the same data"
        )
