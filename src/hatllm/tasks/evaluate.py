"""task=evaluate: decode a finished run again, with the decoder of the command line."""

import time
from pathlib import Path

import torch
from rich.console import Console

from hatllm.config import Config
from hatllm.decode.predict import predict
from hatllm.model.export import load_exported
from hatllm.model.masked_lm import MaskedLM
from hatllm.model.out_of_memory import naming_what_to_lower
from hatllm.report.evaluation import evaluate_predictions
from hatllm.report.terminal import metrics_table
from hatllm.tasks.assemble import Parts, assemble
from hatllm.tasks.run_folder import config_hash, environment, write_json, write_table


def load_run(config: Config) -> tuple[Parts, MaskedLM]:
    """The data and the tuned model of a finished run.

    Args:
        config: The run's own settings, with the command line's on top; ``task.run_folder`` set.

    Returns:
        Data and model, the model on the GPU where the trainer asks for one.
    """
    assert config.task.run_folder is not None
    folder = Path(config.task.run_folder)
    parts = assemble(config, finished=folder)
    lm = parts.load_model(config).eval()
    load_exported(lm, config, folder)
    if config.trainer.accelerator != "cpu" and torch.cuda.is_available():
        lm.cuda()
    return parts, lm


def evaluate(config: Config) -> Path:
    """Decode a split of a finished run and write metrics and predictions beside the old ones.

    Args:
        config: The run's own settings, with the command line's on top.

    Returns:
        The new folder, ``evaluations/SPLIT-HASH`` inside the run's.

    Raises:
        ValueError: If a setting does not fit, or the model is not an LLM.
    """
    if config.model.kind != "llm":
        raise ValueError(f"task=evaluate needs an LLM run, this one is model={config.model.name}")
    assert config.task.run_folder is not None
    start = time.perf_counter()
    parts, lm = load_run(config)
    dataset, split = parts.dataset, config.task.split
    with naming_what_to_lower(config, decoding=True):
        predictions = predict(lm, parts.catalogue, dataset.splits[split], config, split)
    metrics = {split: evaluate_predictions(predictions, dataset.items, dataset.full_train)}
    folder = Path(config.task.run_folder) / "evaluations" / f"{split}-{config_hash(config)[:8]}"
    folder.mkdir(parents=True, exist_ok=True)
    write_table(folder / "predictions.parquet", predictions)
    seconds = {"total": round(time.perf_counter() - start, 3)}
    write_json(folder / "environment.json", environment(dataset.manifest, seconds))
    write_json(folder / "metrics.json", metrics)
    Console().print(metrics_table(metrics))
    Console().print(f"written to {folder}")
    return folder
