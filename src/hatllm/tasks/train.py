"""task=train: prepare, fine-tune, evaluate, report; finished runs are not run twice."""

import json
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl
import torch
from omegaconf import OmegaConf
from pytorch_lightning.utilities import rank_zero_only
from rich.console import Console

from hatllm.config import Config
from hatllm.data.datamodule import Examples, TrainingData
from hatllm.data.prepare import Dataset
from hatllm.model.export import export_adapter, load_exported
from hatllm.model.masked_lm import MaskedLM
from hatllm.model.out_of_memory import naming_what_to_lower
from hatllm.model.processes import agreed
from hatllm.model.recommender import Recommender
from hatllm.report.draw_masks import draw_masks
from hatllm.report.evaluation import evaluate_predictions
from hatllm.report.figures import save_figure
from hatllm.report.run_report import write_run_report
from hatllm.report.terminal import metrics_table
from hatllm.tasks.assemble import (
    Parts,
    assemble,
    check_catalogue,
    check_hardware,
    load_dataset,
)
from hatllm.tasks.baseline import CHECKPOINT_FILE, baseline_predictions, popularity_of
from hatllm.tasks.begin import begin
from hatllm.tasks.checkpoints import load_checkpoint
from hatllm.tasks.child import INTERRUPTED, TERMINATED
from hatllm.tasks.decoding import SHARDS, decode_splits, start_processes
from hatllm.tasks.loggers import build_loggers, log_results, wants_picture
from hatllm.tasks.masks import masks_of
from hatllm.tasks.run_folder import (
    RUN_FILE,
    code_hash,
    commit,
    config_hash,
    environment,
    is_finished,
    load_config,
    run_folder,
    run_label,
)
from hatllm.tasks.run_lock import held_alone
from hatllm.tasks.same_data import check_data_unchanged
from hatllm.tasks.stop_signals import StopSignals
from hatllm.tasks.trainer import build_trainer, num_optimizer_steps
from hatllm.whole_files import write_json, write_table

console = Console()


def train(config: Config) -> Path:
    """Run the whole of one run.

    Args:
        config: The run.

    Returns:
        Its folder, with metrics.json, predictions.parquet, report.md and the adapter.

    Raises:
        ValueError: If a setting does not fit the data, the model or the machine, the data have
            changed since the run was finished, or another process works in the folder.
    """
    folder = run_folder(config)
    is_first = rank_zero_only.rank == 0
    console.quiet = not is_first
    with held_alone(folder):
        if is_finished(folder) and not config.task.force:
            _refuse_other_settings(folder, config)
            check_data_unchanged(config, folder)
            console.print(f"finished already, not run again (task.force=true does): {folder}")
            return folder
        code_hash()  # now, of the files that this process has just read
        commit()
        torch.manual_seed(config.seed)
        if config.model.kind == "llm":
            return _run_llm(config, folder)
        # One process makes a baseline, however many torchrun or SLURM has started.
        return _run_baseline(config, folder) if is_first else folder


def _refuse_other_settings(folder: Path, config: Config) -> None:
    """A run that was given a name is not any other run of that name."""
    theirs = json.loads((folder / RUN_FILE).read_text()).get("config_hash")
    if config.run_name is not None and theirs != config_hash(config):
        raise ValueError(
            f"run_name={config.run_name!r}: {folder} is a finished run with other settings; give "
            "another name, or task.force=true to replace it"
        )


def _run_baseline(config: Config, folder: Path) -> Path:
    start = time.perf_counter()
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    check_hardware(config)
    dataset = load_dataset(config)
    check_catalogue(config, dataset)
    resumed = begin(config, folder, dataset)
    if not (folder / CHECKPOINT_FILE).exists():
        (folder / "curves.csv").unlink(missing_ok=True)
    loggers = build_loggers(config, folder, dataset.manifest, None)
    seconds = {"prepare": time.perf_counter() - start}
    predictions = baseline_predictions(config, folder, dataset, loggers, seconds)
    seconds["total"] = time.perf_counter() - start
    facts = {"resumed": resumed}
    metrics = _finish(config, folder, dataset, predictions, seconds, facts)
    log_results(loggers, metrics, predictions["test"], dataset.items, None)
    return folder


def _run_llm(config: Config, folder: Path) -> Path:
    start = time.perf_counter()
    signals = StopSignals()
    parts = assemble(config)
    rows = Examples.of(parts.dataset.splits["train"], config.data.max_history_items)
    num_steps = num_optimizer_steps(config.trainer, len(rows))
    resumed = begin(config, folder, parts.dataset)
    console.print(
        f"[bold]{folder.name}[/] layers {parts.schedule.letters}, {num_steps} steps, "
        f"weights {config.model.dtype}"
    )
    lm = parts.load_model(config)
    start_from_run(lm, config)
    dataset = parts.dataset
    recommender = Recommender(
        lm, parts.catalogue, config, num_steps,
        dataset.items, dataset.train_interactions, dataset.splits["valid"],
    )  # fmt: skip
    seconds = {"prepare": time.perf_counter() - start}
    loggers = build_loggers(config, folder, dataset.manifest, parts.schedule)
    exported = picture = None
    if wants_picture(loggers) and rank_zero_only.rank == 0:
        picture = save_figure(draw_masks(*masks_of(config, parts)), folder / "masks.png")
    if num_steps and config.model.tuning != "none":
        trained = time.perf_counter()
        exported = fit(config, folder, recommender, rows, parts, num_steps, loggers, signals)
        seconds["train"] = time.perf_counter() - trained
    else:
        start_processes(config.trainer)
        if config.trainer.accelerator != "cpu" and torch.cuda.is_available():
            recommender.cuda()
    evaluated = time.perf_counter()
    with naming_what_to_lower(config, decoding=True):
        predictions = decode_splits(config, folder, parts, recommender.lm, ("valid", "test"))
    seconds["evaluate"] = time.perf_counter() - evaluated
    seconds["total"] = time.perf_counter() - start
    if predictions is not None:
        export_adapter(recommender.lm, parts.schedule, config, dataset.items, folder)
        facts = {"resumed": resumed, "titles": asdict(parts.title_counts)}
        if exported is not None:
            facts["exported"] = exported
        metrics = _finish(config, folder, dataset, predictions, seconds, facts)
        shutil.rmtree(folder / SHARDS)  # the tables hold their rows
        log_results(loggers, metrics, predictions["test"], dataset.items, picture)
    return folder


def start_from_run(lm: MaskedLM, config: Config) -> None:
    """Give the model the weights of `model.start_from`, where there is one.

    Raises:
        ValueError: If that run is not finished, or tuned another model or other adapters, or only
            one of the two runs has item tokens.
    """
    if config.model.start_from is None:
        return
    folder = Path(config.model.start_from)
    saved = load_config(folder, "model.start_from")
    for field in ("source", "tuning", "lora.r", "lora.alpha", "lora.target_modules"):
        theirs = OmegaConf.select(saved.model, field)
        ours = OmegaConf.select(OmegaConf.structured(config.model), field)
        if theirs != ours:
            raise ValueError(
                f"model.{field}={ours} must be {theirs} with model.start_from={str(folder)!r}, "
                "whose weights this run starts from"
            )
    if (saved.model.item_vectors is None) != (config.model.item_vectors is None):
        raise ValueError(
            f"model.item_vectors={config.model.item_vectors!r} must be "
            f"{saved.model.item_vectors!r} with model.start_from={str(folder)!r}: both or none of "
            "the two runs have item tokens"
        )
    load_exported(lm, config, folder)


def fit(
    config: Config,
    folder: Path,
    recommender: Recommender,
    rows: Examples,
    parts: Parts,
    num_steps: int,
    loggers: list[Any],
    signals: StopSignals,
) -> dict[str, Any] | None:
    """Train, from `last.ckpt` where there is one, and load the best weights.

    Args:
        config: The run.
        folder: Run folder; checkpoints go to ``checkpoints/``.
        recommender: The module to train, in place.
        rows: Training rows.
        parts: Data and catalogue.
        num_steps: Optimizer steps.
        loggers: Lightning loggers.
        signals: What Ctrl-C and the like do.

    Returns:
        Which step's weights these are and why, see `Checkpoints.exported`.
    """
    data = TrainingData(rows, parts.catalogue.book, config)
    trainer, checkpoints = build_trainer(config, folder, loggers, num_steps, signals)
    last = folder / CHECKPOINT_FILE
    if last.exists():
        console.print(f"resuming from {last}")
    recommender.train()
    try:
        with naming_what_to_lower(config, decoding=False):
            trainer.fit(
                recommender, data, ckpt_path=str(last) if last.exists() else None, weights_only=True
            )
    except SystemExit as stop:
        if stop.code in (INTERRUPTED, TERMINATED):  # after a step that was saved
            raise
        # Lightning's answer to a Ctrl-C that did not wait, after it has shut its processes down.
        again = f"resume with the same command; the last step saved is in {last}"
        console.print(f"\n[bold]interrupted[/]: {again if last.exists() else 'nothing saved yet'}")
        raise SystemExit(INTERRUPTED) from stop
    state: dict[str, Any] = {}
    if checkpoints.best is not None:
        state = load_checkpoint(checkpoints.best_path)["state_dict"]
    if config.trainer.strategy == "fsdp":
        state = state or agreed(trainer.strategy.lightning_module_state_dict())
        recommender.lm = parts.load_model(config)  # whole again, on every process
    recommender.load_state_dict(state, strict=False)
    recommender.score_as_trained()
    recommender.to(trainer.strategy.root_device)
    return checkpoints.exported()


def _finish(
    config: Config,
    folder: Path,
    dataset: Dataset,
    predictions: dict[str, pl.DataFrame],
    seconds: dict[str, float],
    facts: dict[str, Any],
) -> dict[str, dict[str, float]]:
    """Write everything the folder must hold; `run.json` last, because it says finished."""
    folder.mkdir(parents=True, exist_ok=True)
    metrics = {
        split: evaluate_predictions(
            table, dataset.items, dataset.train_interactions, config.cut_offs
        )
        for split, table in predictions.items()
    }
    metrics["popularity"] = evaluate_predictions(
        popularity_of(config, dataset, "test", "interactions"),
        dataset.items,
        dataset.train_interactions,
        config.cut_offs,
    )
    rounded = {name: round(value, 3) for name, value in seconds.items()}
    write_table(folder / "predictions.parquet", predictions["test"])
    write_table(folder / "valid_predictions.parquet", predictions["valid"])
    write_table(folder / "items.parquet", dataset.items)
    write_table(folder / "users.parquet", dataset.users)
    write_table(folder / "examples.parquet", dataset.splits["test"])
    write_json(folder / "split_manifest.json", dataset.manifest)
    write_json(folder / "metrics.json", metrics)
    made_by = environment(dataset.manifest, rounded, config.model.dtype) | facts
    write_json(folder / "environment.json", made_by)
    run = {
        "label": run_label(config),
        "data": config.data.name,
        "seed": config.seed,
        "config_hash": config_hash(config),
        "split_hash": dataset.manifest["split_hash"],
        "data_hash": dataset.manifest["data_hash"],
        "seconds": rounded,
    }
    write_run_report(folder, run_label(config))
    write_json(folder / RUN_FILE, run)
    console.print(metrics_table(metrics))
    console.print(f"report: {folder / 'report.md'}")
    return metrics
