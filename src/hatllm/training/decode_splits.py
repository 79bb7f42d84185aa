"""Splits decoded by all processes of a run, from where an earlier command was stopped."""

import hashlib
import json
from pathlib import Path

import polars as pl
import torch
from lightning_fabric import Fabric

from hatllm.config import Config, TrainerConfig
from hatllm.data.prepare import Dataset
from hatllm.decode.predict import collected, predict_into
from hatllm.decode.shards import Shards
from hatllm.model.masked_lm import MaskedLM
from hatllm.processes import agreed, process_rank
from hatllm.runs.name import settings_that_count
from hatllm.runs.provenance import code_hash
from hatllm.runs.run_files import SHARDS
from hatllm.training.assemble import Parts


def start_processes(trainer: TrainerConfig) -> None:
    """Make this one of the run's processes, where training has not done so.

    Starts the others on this machine, unless torchrun or SLURM has.
    """
    if trainer.devices * trainer.num_nodes > 1 and process_rank()[1] == 1:
        Fabric(
            accelerator=trainer.accelerator,
            devices=trainer.devices,
            num_nodes=trainer.num_nodes,
            strategy="ddp",
        ).launch()


def decode_splits(
    config: Config, folder: Path, parts: Parts, lm: MaskedLM, splits: tuple[str, ...]
) -> dict[str, pl.DataFrame] | None:
    """Decode splits into shards, and their shards into tables.

    Args:
        config: The run.
        folder: Holds the folder of shards; on a disk that all processes share.
        parts: Data and catalogue.
        lm: The model with its final weights.
        splits: Of the data.

    Returns:
        Predictions table by split on the first process, None on every other: those are done when
        their share is.
    """
    weights = agreed(_weights_hash(lm))
    opened = {
        split: decode_into_shards(config, folder, parts, lm, split, weights) for split in splits
    }
    if process_rank()[0] > 0:
        return None
    return {split: collected_split(opened[split], parts, split) for split in splits}


def decode_into_shards(
    config: Config, folder: Path, parts: Parts, lm: MaskedLM, split: str, weights: str | None = None
) -> Shards:
    """Decode this process's share of a split; what an earlier process has decoded is left out.

    Args:
        config: The run.
        folder: As in `decode_splits`.
        parts: Data and catalogue.
        lm: The model.
        split: Of the data.
        weights: Hash of the model's weights, where it is known.

    Returns:
        The shards, which wait for those of the other processes.
    """
    weights = weights or agreed(_weights_hash(lm))
    name = f"{split}-{_shards_hash(config, parts.dataset, split, weights)}"
    shards = Shards(folder / SHARDS / name, config.task.batches_a_shard)
    predict_into(shards, lm, parts.catalogue, parts.dataset.splits[split], config, split)
    return shards


def collected_split(shards: Shards, parts: Parts, split: str) -> pl.DataFrame:
    """The predictions table of a split, once its shards hold every example."""
    return collected(shards, parts.dataset.splits[split])


def _shards_hash(config: Config, dataset: Dataset, split: str, weights: str) -> str:
    """Sixteen hexadecimal digits over all that a split's predictions depend on.

    How the weights were trained is in them.
    """
    settings = settings_that_count(config)
    settings["trainer"] = config.trainer.accelerator
    data = [dataset.manifest["data_hash"], dataset.manifest["split_hashes"][split]]
    text = json.dumps([settings, data, weights, code_hash()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _weights_hash(lm: MaskedLM) -> str:
    digest = hashlib.sha256(f"{lm.trie_temperature} {lm.vocab_temperature}".encode())
    for name, value in sorted(lm.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        flat = value.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy())
    return digest.hexdigest()
