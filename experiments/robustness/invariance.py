"""One set of metrics: processes x users a batch x killed on the way or not.

Every cell is a whole run (train, evaluate) of a small random model, with at least four validations
and early stopping. A killed cell is killed three times, all of its processes at once: when the
first validation has just written its best checkpoint, in the second validation, and in the
evaluation of the test split with a quarter of the users decoded; the same command then ends the
run. A cell that is there is not run again, so that the script goes on where it was stopped.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import torch
from safetensors.torch import load_file

from experiments.robustness.commands import run, run_killed
from experiments.speed.record import machine, markdown_table, one_line
from hatllm.files import write_json
from hatllm.runs.provenance import code_hash, environment

RESULTS = Path(__file__).parent / "results"
RANK_METRICS = tuple(f"{name}@{k}" for name in ("HR", "NDCG", "MRR") for k in (1, 5, 10))
WORDS = (
    "scale=smoke", "trainer=ddp", "trainer.accelerator=cpu", "num_threads=1",
    "trainer.global_batch_size=12", "trainer.micro_batch_size=2", "trainer.learning_rate=0.01",
    "trainer.checkpoint_every_steps=1", "model.lora.dropout=0.0", "task.batches_a_shard=1",
    "trainer.validate_every_steps=2", "trainer.early_stopping_patience=3",
    "data.valid_rows=64", "data.train_targets=every", "data.target_weights=rising", "loss.tau=3",
)  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One run."""

    processes: int
    users_per_batch: int
    is_killed: bool
    folder: Path

    def words(self, common: Sequence[str]) -> list[str]:
        """Of its command."""
        return [
            *WORDS, *common, f"trainer.devices={self.processes}",
            f"decode.users_per_batch={self.users_per_batch}", f"run_name={self.folder.name}",
            f"output_root={self.folder.parent}",
        ]  # fmt: skip

    def made(self, common: Sequence[str], num_users: int) -> dict[str, Any]:
        """What was there when it was killed; run from nothing, unless this code has done so."""
        words, found = self.words(common), {}
        note, made_by = self.folder.with_suffix(".json"), [code_hash(), *words]
        if note.exists() and (before := json.loads(note.read_text()))["made_by"] == made_by:
            return dict(before["found"])
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.is_killed:
            checkpoints = self.folder / "checkpoints"
            run_killed(words, lambda: any(checkpoints.glob("best-step=*.ckpt")))
            found["steps_at_kill"] = [self._step_saved()]
            run_killed(words, lambda: len(list(self.folder.glob("shards/valid-*"))) == 2)
            found["steps_at_kill"].append(self._step_saved())
            files = -(-num_users // (4 * self.users_per_batch))
            run_killed(words, lambda: len(self._shards()) >= files)
            found["users_at_kill"] = sum(pl.read_parquet(path).height for path in self._shards())
        run(words)
        write_json(note, {"made_by": made_by, "found": found})
        return found

    def _step_saved(self) -> int:
        last = torch.load(self.folder / "checkpoints" / "last.ckpt", weights_only=True)
        return int(last["global_step"])

    def _shards(self) -> list[Path]:
        return list(self.folder.glob("shards/test-*/*.parquet"))

    def result(self) -> "Result":
        """What the finished run has left."""
        curves = pl.read_csv(self.folder / "curves.csv")["train/loss"].drop_nulls()
        return Result(
            json.loads((self.folder / "metrics.json").read_text())["test"],
            json.loads((self.folder / "environment.json").read_text())["exported"]["step"],
            curves.to_list(),
            pl.read_parquet(self.folder / "predictions.parquet"),
            load_file(self.folder / "adapter" / "adapter_model.safetensors"),
        )


@dataclass(frozen=True)
class Result:
    """Of a finished run."""

    metrics: dict[str, float]
    exported_step: int
    losses: list[float]
    predictions: pl.DataFrame
    adapter: dict[str, torch.Tensor]

    def against(self, other: "Result") -> dict[str, Any]:
        """How far it is from another one."""
        assert len(self.losses) == len(other.losses) and self.adapter.keys() == other.adapter.keys()
        columns = ["example_id", "target_rank", "target_item_rank", "top_items"]
        same = self.predictions.select(columns).equals(other.predictions.select(columns))
        return {
            "same_answers": same,
            "same_step": self.exported_step == other.exported_step,
            "loss_difference": max(
                abs(a - b) for a, b in zip(self.losses, other.losses, strict=True)
            ),
            "adapter_difference": max(
                float((value - other.adapter[name]).abs().max())
                for name, value in self.adapter.items()
            ),
            "trie_NLL_difference": abs(self.metrics["trie_NLL"] - other.metrics["trie_NLL"]),
        }


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 7, 32])
    parser.add_argument("--data", default="ml100k", help="a choice of conf/data")
    parser.add_argument("--train-rows", type=int, default=96)
    parser.add_argument("--test-rows", type=int, default=200)
    parser.add_argument("--set", action="append", default=[], metavar="SETTING=VALUE")
    parser.add_argument("--work", type=Path, default=Path("outputs/invariance"))
    parser.add_argument("--output", type=Path, default=RESULTS)
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> None:
    """Run every cell, compare it with the first, write and print the table."""
    arguments = _parse(argv)
    common = [
        f"data={arguments.data}", f"data.train_rows={arguments.train_rows}",
        f"data.test_rows={arguments.test_rows}", *arguments.set,
    ]  # fmt: skip
    found = machine()
    cells = [
        Cell(processes, users, killed, arguments.work.resolve() / f"{processes}-{users}-{killed}")
        for processes in arguments.processes
        for users in arguments.batches
        for killed in (False, True)
    ]
    rows: list[dict[str, Any]] = []
    reference: Result | None = None
    for cell in cells:
        at_kill = cell.made(common, arguments.test_rows)
        result = cell.result()
        reference = reference or result
        rows.append(
            {
                "processes": cell.processes,
                "users_per_batch": cell.users_per_batch,
                "killed": cell.is_killed,
                **at_kill,
                "steps": len(result.losses),
                "exported_step": result.exported_step,
                "users": result.predictions.height,
                "metrics": {name: result.metrics[name] for name in RANK_METRICS},
                "trie_NLL": result.metrics["trie_NLL"],
                **result.against(reference),
            }
        )
        print(*_line(rows[-1]), sep=" | ", flush=True)
        _write(arguments.output, argv, found, rows)


def _write(
    folder: Path, argv: Sequence[str], hardware: dict[str, Any], rows: list[dict[str, Any]]
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    made = environment({"data_hash": None, "split_hash": None}, {}, None)
    command = " ".join(["python -m experiments.robustness.invariance", *argv])
    num_sets = len({json.dumps(row["metrics"], sort_keys=True) for row in rows})
    content = {
        "command": command, "hardware": hardware, "commit": made["commit"],
        "code_hash": made["code_hash"], "versions": made["versions"],
        "sets_of_rank_metrics": num_sets, "rows": rows,
    }  # fmt: skip
    write_json(folder / "invariance.json", content)
    largest = {
        name: max(row[f"{name}_difference"] for row in rows)
        for name in ("loss", "adapter", "trie_NLL")
    }
    same = sum(row["same_answers"] for row in rows)
    same_step = sum(row["same_step"] for row in rows)
    lines = [
        f"`{command}`", "", one_line(hardware, made["versions"]), "",
        f"Sets of rank metrics (HR, NDCG, MRR at 1, 5, 10) over {len(rows)} runs: {num_sets}. "
        f"Runs with the first one's top 10 and ranks for every user: {same}, with its exported "
        f"step: {same_step}. Largest "
        f"difference to the first run: {largest['loss']:.1e} in the loss curve, "
        f"{largest['adapter']:.1e} in an adapter's weight, {largest['trie_NLL']:.1e} in trie_NLL.",
        "", *markdown_table(HEADINGS, map(_line, rows)), "",
    ]  # fmt: skip
    text = "\n".join(lines)
    (folder / "invariance.md").write_text(text)


HEADINGS = ("processes", "users a batch", "killed (all processes, SIGKILL)", "HR@10", "NDCG@10",
            "trie_NLL", "exported step", "same top 10", "loss curve", "adapter")  # fmt: skip


def _line(row: dict[str, Any]) -> list[str]:
    killed = "no"
    if row["killed"]:
        killed = (
            f"steps {' and '.join(map(str, row['steps_at_kill']))} of {row['steps']}, then "
            f"user {row['users_at_kill']} of {row['users']}"
        )
    return [
        str(row["processes"]), str(row["users_per_batch"]), killed,
        f"{row['metrics']['HR@10']:.6f}", f"{row['metrics']['NDCG@10']:.6f}",
        f"{row['trie_NLL']:.6f}", str(row["exported_step"]), "yes" if row["same_answers"] else "no",
        f"{row['loss_difference']:.1e}", f"{row['adapter_difference']:.1e}",
    ]  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1:])
