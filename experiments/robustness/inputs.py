"""One run of the tiny model over made-up data, in this process: prepare, one step, decode."""

import random
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from experiments.robustness.bad_tables import Files, write_files
from hatllm.compose import checked, register_schema
from hatllm.config import Config
from hatllm.data.datamodule import Examples, TrainingBatches
from hatllm.data.filter import REPEATED
from hatllm.data.prepare import Dataset
from hatllm.data.report import data_report_table, write_data_report
from hatllm.decode.predict import predict
from hatllm.training.assemble import assemble
from hatllm.training.lightning_module import Recommender

CONF = Path(__file__).parents[2] / "conf"
SHOP = ["scale=smoke", "data=custom", "data.user_column=who", "data.item_column=song",
        "data.time_column=when", "data.title_column=name", "data.min_interactions=1",
        "data.train_rows=8", "data.valid_rows=4", "data.test_rows=4", "num_threads=1"]  # fmt: skip
DONE = "trained and decoded"


def composed(words: list[str]) -> Config:
    """The config of a command line."""
    register_schema()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return checked(compose("config", overrides=words))


@cache
def _config(top_k: int, protocol: str) -> Config:
    names = ["data.interactions_file=plays", "data.items_file=songs"]
    return composed(
        [*SHOP, *names, f"decode.top_k={top_k}", f"data.protocol={protocol}",
         "cache_root=cache", "data_root=null"]
    )  # fmt: skip


def one_step(config: Config) -> str:
    """Prepare the data, train one step and decode.

    Returns:
        How far it came.
    """
    parts = assemble(config)
    dataset = parts.dataset
    lm = parts.load_model(config)
    recommender = Recommender(lm, parts.catalogue, config, 1, dataset.splits["valid"])
    rows = Examples.of(dataset.splits["train"][:2], config.data.max_history_items)
    batches = TrainingBatches(rows, parts.catalogue.book, config)
    loss = recommender.title_loss(batches.batch(np.arange(len(rows))))
    assert torch.isfinite(loss), f"the loss is {loss}"
    if loss.requires_grad:  # no title branches: nothing to learn
        loss.backward()
    table = predict(lm, parts.catalogue, dataset.splits["test"][:2], config, "test")
    assert table.height == min(2, dataset.splits["test"].height)
    assert table["target_trie_log_prob"].is_finite().all()
    return DONE


def data_files_input(random_: random.Random, folder: Path) -> tuple[str, Callable[[], str]]:
    """A pair of data files, see `write_files`."""
    files = write_files(random_, folder)
    top_k = random_.choice((1, 1, 3))
    protocol = random_.choice(("leave_one_out", "all_prefixes", "sliding_window"))
    draw = random_.random() < 0.02

    def use() -> str:
        config = _config(top_k, protocol)
        config.data.interactions_file, config.data.items_file = str(files.plays), str(files.songs)
        config.cache_root = str(folder / "cache")
        parts = assemble(config)
        check_nothing_is_lost(files, parts.dataset)
        data_report_table(parts.dataset)
        if draw:
            write_data_report(parts.dataset, folder / "report")
        return one_step(config)

    return ", ".join(files.changes), use


def check_nothing_is_lost(files: Files, dataset: Dataset) -> None:
    """Every row of the files is in the data or counted among what was dropped."""
    if files.num_plays is None or files.num_songs is None:
        return
    bad = {reason: entry["count"] for reason, entry in dataset.manifest["bad_rows"].items()}
    plays = sum(n for reason, n in bad.items() if "plays" in reason or "interaction w" in reason)
    late = ("interaction with an unknown item", "interaction with an untitled item")
    plays -= sum(bad.get(reason, 0) for reason in late)  # dropped after "read"
    steps = {step["step"]: step for step in dataset.manifest["steps"]}
    read, titled = steps["read"]["interactions"], steps["with a title"]["interactions"]
    assert read + plays == files.num_plays, f"{files.num_plays} rows, {read} read, {bad}"
    dropped = sum(bad.get(reason, 0) for reason in (*late, REPEATED))
    assert titled + dropped == read, f"{read} rows read, {titled} with a title, {bad}"
    items = sum(n for reason, n in bad.items() if "songs" in reason or reason.startswith("item "))
    kept = steps["with a title"]["items"]
    left_out = dataset.manifest["untouched_items"]
    played = dataset.train_interactions.height
    targets = {name: rows.height for name, rows in dataset.splits.items() if name != "train"}
    assert played + sum(targets.values()) <= titled, f"{played} in train, {targets}, of {titled}"
    assert kept + items + left_out == files.num_songs, (
        f"{files.num_songs} items, {kept} kept, {left_out} that nobody touched, {bad}"
    )
