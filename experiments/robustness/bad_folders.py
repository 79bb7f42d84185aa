"""Exported run folders as they should not be: files missing, cut off or edited."""

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from safetensors.torch import load_file, save_file

from experiments.robustness.bad_tables import BYTE_CHANGES, encoded, tables
from experiments.robustness.inputs import CONF, SHOP, composed
from hatllm.compose import checked, register_schema, with_finished_run
from hatllm.runs.folder import load_config
from hatllm.tasks.evaluate import evaluate
from hatllm.tasks.recommend import recommend
from hatllm.tasks.train import train

DONE = "trained and decoded"
FILES = ("config.yaml", "run.json", "items.parquet", "hatllm.json", "adapter",
         "adapter/adapter_model.safetensors", "adapter/adapter_config.json", "metrics.json",
         "predictions.parquet", "environment.json", "split_manifest.json")  # fmt: skip
ODD = (None, -1, 0, 1e300, "", "x", [], {}, [1], {"a": 1}, True, float("nan"), "${x}", "../x",
       "${oc.env:HOME}", "tiny", "🎉")  # fmt: skip


@dataclass(frozen=True)
class FinishedRun:
    """A run of seconds that every input begins with."""

    folder: Path

    @classmethod
    def made_in(cls, place: Path) -> "FinishedRun":
        """Train it."""
        made = tables(random.Random(3))
        for stem, rows in (("plays", made.plays), ("songs", made.songs)):
            (place / f"{stem}.csv").write_bytes(encoded(rows, "csv"))
        words = [*SHOP, f"data.interactions_file={place}/plays.csv",
                 f"data.items_file={place}/songs.csv", "decode.top_k=3",
                 f"cache_root={place}/cache", f"output_root={place}/out", "data_root=null",
                 "data.protocol=all_prefixes", "run_name=done",
                 "trainer.global_batch_size=4"]  # fmt: skip
        return cls(train(composed(words)))

    def input(self, random_: random.Random, folder: Path) -> tuple[str, Callable[[], str]]:
        """A copy of the folder with one or two files changed."""
        copy = shutil.copytree(self.folder, folder / "run")
        names = random_.sample(FILES, random_.choice((1, 1, 2)))
        changes = [_change(random_, copy, name) for name in names]
        task = random_.choice(("recommend", "recommend", "evaluate"))
        cache = self.folder.parents[1] / "cache"
        words = [f"task={task}", f"task.run_folder={copy}", "data_root=null", f"cache_root={cache}",
                 f"output_root={folder}/out"]  # fmt: skip
        if task == "recommend":
            words.append(f"task.history=[{random_.choice(['s0', 's1', 'Song 0', 'nope'])}]")
        return f"{task}: {', '.join(changes)}", lambda: _use(words, copy)


def _use(words: list[str], folder: Path) -> str:
    register_schema()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        command = compose("config", overrides=words)
    config = checked(with_finished_run(command, words, load_config(folder)))
    if config.task.name == "recommend":
        recommend(config)
    else:
        assert evaluate(config).is_dir()
    return DONE


def _change(random_: random.Random, folder: Path, name: str) -> str:
    path = folder / name
    if not path.exists():
        return f"{name} is not there"
    if path.is_dir() or random_.random() < 0.2:
        (shutil.rmtree if path.is_dir() else Path.unlink)(path)  # type: ignore[operator]
        return f"{name} missing"
    if random_.random() < 0.5:
        return f"{name} edited: {_edit(random_, path)}"
    kind = random_.choice(list(BYTE_CHANGES))
    path.write_bytes(BYTE_CHANGES[kind](path.read_bytes(), random_))
    return f"{name}: {kind}"


def _edit(random_: random.Random, path: Path) -> str:
    match path.suffix:
        case ".json":
            content = json.loads(path.read_text())
            what = _edit_node(random_, content)
            path.write_text(json.dumps(content))
        case ".yaml":
            content = yaml.safe_load(path.read_text())
            what = _edit_node(random_, content)
            path.write_text(yaml.safe_dump(content))
        case ".parquet":
            what = _edit_table(random_, path)
        case _:
            what = _edit_tensors(random_, path)
    return what


def _edit_node(random_: random.Random, content: Any) -> str:
    """Change, remove or add one key, somewhere."""
    if not isinstance(content, dict) or not content:
        return "nothing to change"
    key = random_.choice(list(content))
    if isinstance(content[key], dict) and content[key] and random_.random() < 0.8:
        return f"{key}.{_edit_node(random_, content[key])}"
    match random_.randrange(4):
        case 0:
            del content[key]
            return f"{key} removed"
        case 1:
            content["_target_"] = "os.system"
            return "_target_ added"
    content[key] = value = random_.choice(ODD)
    return f"{key}={value!r}"


def _edit_table(random_: random.Random, path: Path) -> str:
    table = pl.read_parquet(path)
    name = random_.choice(table.columns)
    kind = random_.choice(("column gone", "no rows", "half the rows", "texts", "nulls", "twice"))
    match kind:
        case "column gone":
            table = table.drop(name)
        case "no rows":
            table = table.clear()
        case "half the rows":
            table = table.head(table.height // 2)
        case "texts":
            table = table.with_columns(pl.lit("x").alias(name))
        case "nulls":
            table = table.with_columns(pl.lit(None, table.schema[name]).alias(name))
        case _:
            table = pl.concat([table, table])
    table.write_parquet(path)
    return f"{name}, {kind}"


def _edit_tensors(random_: random.Random, path: Path) -> str:
    tensors = load_file(path)
    name = random_.choice(list(tensors))
    kind = random_.choice(("tensor gone", "renamed", "another shape", "not finite"))
    match kind:
        case "tensor gone":
            del tensors[name]
        case "renamed":
            tensors["x"] = tensors.pop(name)
        case "another shape":
            tensors[name] = tensors[name][:, :3].contiguous()
        case _:
            tensors[name] = tensors[name] * float("nan")
    save_file(tensors, path)
    return f"{name}, {kind}"
