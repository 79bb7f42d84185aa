"""task=attention: whom item tokens attend to, layer by layer, before and after tuning.

"Before" is the backbone under the run's masks without the tuned weights; under `mask=causal` that
is the untouched backbone. Everything is computed in float32 by the `eager` backend, on prompts
without their title.
"""

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import polars as pl
import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table
from torch import Tensor

from hatllm.compose import PLACES, checked
from hatllm.config import Config
from hatllm.data.datamodule import Examples
from hatllm.data.prompt import Batch
from hatllm.figures.attention_shares import (
    KINDS,
    draw_attention,
    headline_ratios,
    mass_of_kinds,
    pair_kinds,
    with_shares,
)
from hatllm.figures.saving import save_figure
from hatllm.files import write_csv, write_json
from hatllm.model.attention_weights import reading_weights
from hatllm.model.export import load_exported
from hatllm.model.masked_lm import MaskedLM
from hatllm.runs.begin import check_data_unchanged
from hatllm.runs.folder import is_finished, load_config
from hatllm.runs.provenance import environment
from hatllm.runs.run_files import RUN_FILE, read_identity, read_manifest
from hatllm.training.assemble import Parts, assemble
from hatllm.training.loggers import log_attention


def attention(config: Config) -> Path:
    """Attention shares of ``task.run_folder``: one finished run, or a folder of runs on ``data``.

    Args:
        config: Names the folder (null: ``output_root``), the split and the number of users.

    Returns:
        Folder of table and figure: ``experiment.folder``, or ``attention`` under ``output_root``.

    Raises:
        ValueError: If there is no finished LLM run on the data.
    """
    root = Path(config.task.run_folder or config.output_root).expanduser()
    if is_finished(root):
        return write_attention_of(config, [(read_identity(root)["label"], root)])
    found = [
        (path.parent, read_identity(path.parent)) for path in sorted(root.glob(f"*/{RUN_FILE}"))
    ]
    named = [(run["label"], folder) for folder, run in found if run["data"] == config.data.name]
    if not named:
        raise ValueError(
            f"task.run_folder={str(root)!r} holds no finished run on data={config.data.name}; give "
            "the folder of a run, or a folder of runs and their data=NAME"
        )
    return write_attention_of(config, named)


def write_attention_of(config: Config, folders: list[tuple[str, Path]]) -> Path:
    """Measure these runs and write ``attention.csv``, ``attention_ratios.csv``, ``attention.png``.

    Args:
        config: Split, number of users, where things lie.
        folders: Label and folder of finished runs, in the order of the panels; baselines are left
            out.

    Returns:
        Folder of the files.

    Raises:
        ValueError: If none of the runs is an LLM's, or they are on different splits.
    """
    start = time.perf_counter()
    every = [(label, folder, config_of_run(folder, config)) for label, folder in folders]
    runs = [(label, folder, run) for label, folder, run in every if run.model.kind == "llm"]
    if not runs:
        raise ValueError("task=attention needs an LLM run; these are baselines without attention")
    _refuse_other_splits([folder for _, folder, _ in runs])
    measured: list[pl.DataFrame] = []
    labels: set[str] = set()
    for label, folder, run in runs:
        measured += _measure_run(folder, run, label, with_before=label not in labels)
        labels.add(label)
    shares = with_shares(pl.concat(measured))
    target = Path(config.experiment.folder or Path(config.output_root) / "attention").expanduser()
    target.mkdir(parents=True, exist_ok=True)
    ratios = headline_ratios(shares)
    write_csv(target / "attention.csv", shares)
    write_csv(target / "attention_ratios.csv", ratios)
    picture = save_figure(draw_attention(shares), target / "attention.png")
    log_attention(config, target, picture, ratios)
    seconds = {"total": round(time.perf_counter() - start, 3)}
    manifest = read_manifest(runs[0][1])
    write_json(target / "attention.json", environment(manifest, seconds, runs[0][2].model.dtype))
    console = Console()
    console.print(_terminal_table(ratios))
    console.print(f"attention shares: {target}")
    return target


def config_of_run(folder: Path, config: Config) -> Config:
    """Settings of a finished run, with places, task and accelerator of the command line.

    Raises:
        ValueError: If the folder holds no finished run.
    """
    settings = asdict(config)
    ours = {
        # The experiment is what measures, not what once made the run; its label stays in run.json.
        **{key: settings[key] for key in (*PLACES, "experiment")},
        "trainer": {"accelerator": config.trainer.accelerator},
        "model": {"backend": "eager", "dtype": "float32"},
    }
    merged = OmegaConf.merge(load_config(folder), ours)
    assert isinstance(merged, DictConfig)
    return checked(merged)


def measure(lm: MaskedLM, batches: Iterable[Batch]) -> pl.DataFrame:
    """Attention mass by layer and kind.

    Args:
        lm: A model with the `eager` backend.
        batches: Prompts.

    Returns:
        One row a layer and kind: ``layer``, ``pattern``, ``kind``, ``pairs``, ``mass``.
    """
    mass: Counter[tuple[int, str]] = Counter()
    pairs: Counter[str] = Counter()
    for batch in batches:
        batch = batch.to(lm.output_embedding_VD.device)
        kinds = pair_kinds(batch.tokens.segment_BL, batch.valid_BL)
        pairs.update({kind: int(of_kind_BQK.sum()) for kind, of_kind_BQK in kinds.items()})

        def add(layer: int, weight_BHQK: Tensor, kinds: dict[str, Tensor] = kinds) -> None:
            for kind, value in mass_of_kinds(weight_BHQK, kinds).items():
                mass[layer, kind] += value  # type: ignore[assignment]  # a Counter of floats

        with torch.inference_mode(), reading_weights(lm, add):
            lm.hidden_of_prompts(batch.input_ids_BL, batch.tokens, batch.valid_BL)
    patterns = lm.schedule.patterns
    rows = [
        (layer, pattern, kind, pairs[kind], float(mass[layer, kind]))
        for layer, pattern in enumerate(patterns)
        for kind in KINDS
    ]
    return pl.DataFrame(rows, schema=["layer", "pattern", "kind", "pairs", "mass"], orient="row")


def _measure_run(folder: Path, run: Config, label: str, with_before: bool) -> list[pl.DataFrame]:
    """The masses of one run: untuned where asked for, and tuned where it was tuned."""
    check_data_unchanged(run, folder)
    parts = assemble(run, finished=folder)
    lm = parts.load_model(run).eval()
    if run.trainer.accelerator != "cpu" and torch.cuda.is_available():
        lm.cuda()
    tables = {}
    if with_before:  # untuned weights are the same for every seed
        tables["before"] = measure(lm, _batches(run, parts))
    if run.model.tuning != "none" and (run.trainer.max_steps != 0 or run.model.start_from):
        load_exported(lm, run, folder)
        tables["after"] = measure(lm, _batches(run, parts))
    return [
        table.select(pl.lit(label).alias("label"), pl.lit(state).alias("state"),
                     pl.lit(run.seed).alias("seed"), pl.all())
        for state, table in tables.items()
    ]  # fmt: skip


def _batches(run: Config, parts: Parts) -> Iterator[Batch]:
    """Prompts of ``task.num_users`` rows, evenly spread over the split, without titles."""
    frame = parts.dataset.splits[run.task.split]
    examples = Examples.of(frame, run.data.max_history_items)
    count = min(run.task.num_users, len(examples))
    rows = np.linspace(0, len(examples) - 1, count).astype(np.int64)
    size = run.decode.users_per_batch
    for start in range(0, count, size):
        chosen = rows[start : start + size]
        yield examples.batch(parts.catalogue.book, chosen, run.mask.target_is_item, False)


def _refuse_other_splits(folders: list[Path]) -> None:
    first = read_identity(folders[0])["split_hash"]
    for folder in folders:
        if (other := read_identity(folder)["split_hash"]) != first:
            raise ValueError(
                f"{folder} has split_hash {other}, {folders[0]} has {first}: shares of different "
                "users do not belong in one figure"
            )


def _terminal_table(ratios: pl.DataFrame) -> Table:
    table = Table("mask", "state", "intra / cross mass", "cross / intra pairs", "per pair")
    for label, state, *values in ratios.iter_rows():
        table.add_row(label, state, *("–" if v is None else f"{v:.2f}" for v in values))
    return table
