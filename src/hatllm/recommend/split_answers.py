"""A finished baseline run answers a split, with the decoding settings of the command line."""

from dataclasses import replace
from pathlib import Path

import polars as pl

from hatllm.baselines.fusion import fused_predictions
from hatllm.baselines.popularity import ranked_predictions
from hatllm.config import Config
from hatllm.data.prepare import Dataset
from hatllm.data.sources.source_tables import read_parquet
from hatllm.files import read_json
from hatllm.memory import naming_what_to_lower
from hatllm.runs.folder import finished_config, load_config
from hatllm.runs.run_files import FUSION_FILE, POPULARITY_FILE
from hatllm.training.assemble import assemble, load_tuned
from hatllm.training.decode_splits import decode_splits
from hatllm.training.scored_run import scored_run

RANKED = ["item_id", "rank", "item_rank", "log_prob", "ambiguous"]


def split_answers(config: Config, dataset: Dataset, split: str, scratch: Path) -> pl.DataFrame:
    """The predictions table of a split, from what the run has learned; nothing is learned again.

    Args:
        config: The run's settings with the command line's on top.
        dataset: Its prepared examples.
        split: ``valid`` or ``test``.
        scratch: Folder for the users that an LLM of a fused run has decoded so far.

    Returns:
        As the run itself wrote it, were it made with these settings.

    Raises:
        ValueError: If something that the run has learned is missing or does not fit.
    """
    assert config.task.run_folder is not None
    folder, examples = Path(config.task.run_folder), dataset.splits[split]
    top_k, exclude_history = config.decode.top_k, config.decode.exclude_history
    match config.model.kind:
        case "popularity":
            ranked = read_parquet(folder / POPULARITY_FILE, RANKED)
            return ranked_predictions(ranked, examples, top_k, exclude_history)
        case "fusion":
            learned = read_json(folder / FUSION_FILE)
            first, second = (
                _part(config, field, dataset, split, scratch / field)
                for field in ("first_run", "second_run")
            )
            share, constant = float(learned["share"]), float(learned["constant"])
            return fused_predictions(first, second, dataset.items, share, constant, top_k)
        case _:
            rule = scored_run(folder, config, dataset.items, "task.run_folder")
            return rule.predictions(examples, dataset.items, top_k, exclude_history)


def _part(config: Config, field: str, dataset: Dataset, split: str, scratch: Path) -> pl.DataFrame:
    """One of the two runs of a fused one answers the same rows, under its own decoder."""
    settings = _settings_of_part(config, field)
    if settings.model.kind != "llm":
        return split_answers(settings, dataset, split, scratch)
    assert settings.task.run_folder is not None
    parts = assemble(settings, finished=Path(settings.task.run_folder))
    theirs, ours = (of.manifest["split_hashes"][split] for of in (parts.dataset, dataset))
    if theirs != ours:
        raise ValueError(
            f"model.{field}={settings.task.run_folder!r} has other {split} examples than this run "
            f"({theirs[:12]}, here {ours[:12]}): its data settings are not those of this run"
        )
    with naming_what_to_lower(settings, decoding=True):
        found = decode_splits(settings, scratch, parts, load_tuned(parts, settings), (split,))
    assert found is not None  # one process makes a baseline's evaluation
    return found[split]


def _settings_of_part(config: Config, field: str) -> Config:
    """The settings that a part was made with, and what the command line changes for both."""
    folder = str(getattr(config.model, field))
    load_config(Path(folder), f"model.{field}")  # refuses by name what is no finished run
    saved = finished_config(Path(folder))
    assert saved is not None
    rows, exclude = config.data, config.decode.exclude_history
    return replace(
        saved,
        task=replace(config.task, run_folder=folder),
        decode=replace(saved.decode, exclude_history=exclude),
        data=replace(saved.data, valid_rows=rows.valid_rows, test_rows=rows.test_rows),
        data_root=config.data_root,
        cache_root=config.cache_root,
        num_threads=config.num_threads,
    )
