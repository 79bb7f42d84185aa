"""Finished runs of id models that a run needs for its item vectors."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from hatllm.config import Config
from hatllm.data.prompt import IntArray
from hatllm.model.export import ITEM_TOKENS_FILE, read_tensors
from hatllm.runs.run_files import read_identity
from hatllm.training.sequence_run import check_same_items, load_sequence_run

ITEM_VECTORS = "model.item_vectors"


def load_item_vectors(
    folder: str, item_id_I: IntArray, data_hash: str, coming: Mapping[str, Config]
) -> Tensor:
    """The item embedding of a finished baseline run.

    Args:
        folder: The run's folder.
        item_id_I: The catalogue, ascending.
        data_hash: Of the data this run is on.
        coming: As in `load_sequence_run`.

    Returns:
        vector_IE: Shape (I, E), float32.

    Raises:
        ValueError: As `load_sequence_run`; and if the run was on other data.
    """
    model, _ = load_sequence_run(folder, item_id_I, ITEM_VECTORS, coming)
    if folder not in coming:
        theirs = read_identity(Path(folder))["data_hash"]
        if theirs != data_hash:
            raise ValueError(
                f"{ITEM_VECTORS}={folder!r} was made of data {theirs[:12]}, this run's is "
                f"{data_hash[:12]}; give a run on the same data"
            )
    return model.items.weight[: len(item_id_I)].detach().clone()


def exported_item_vectors(finished: Path, item_id_I: IntArray) -> Tensor:
    """The vectors that a finished run keeps beside its adapter.

    Args:
        finished: The run's folder.
        item_id_I: The catalogue to answer from, ascending.

    Returns:
        vector_IE: Shape (I, E), float32.

    Raises:
        ValueError: If they are missing or the catalogue is another: an item without a vector has
            no token.
    """
    path = finished / ITEM_TOKENS_FILE
    if not path.exists():
        raise ValueError(f"task.run_folder={str(finished)!r} has no {ITEM_TOKENS_FILE}")
    check_same_items(finished, item_id_I, "task.run_folder")
    tensors = read_tensors(path)
    if "vector_IE" not in tensors:
        raise ValueError(f"{path} has no vector_IE")
    return tensors["vector_IE"]
