"""What another process of one thread adds: training rows and evaluated users a second.

Each count of processes is one whole run of the project's command. Rows a second come from its
curve (the steps after the first ones, which warm up), users a second from the times at which its
shards were written; loading and starting are in neither.
"""

import argparse
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import polars as pl
from omegaconf import OmegaConf

from experiments.robustness.commands import command, environment
from experiments.speed.record import Row, machine, markdown_table, one_line
from hatllm.files import write_json
from hatllm.runs.provenance import environment as made_in

RESULTS = Path(__file__).parent / "results"
MODELS = {"smollm2": "smollm2_135m", "tiny": "tiny"}
WARM_UP = 2  # optimizer steps
HEADINGS = ("processes", "rows/s in training", "ratio", "users/s in evaluation", "ratio")


def watch(words: Sequence[str], folder: Path) -> dict[str, list[tuple[float, int]]]:
    """Run the command and note when it gets on.

    Args:
        words: Of the command, with a last.ckpt after every step and a shard after every batch.
        folder: The run's.

    Returns:
        (seconds, how many so far) of the optimizer ``steps`` and of the ``users`` of the test
        split, at every change.

    Raises:
        RuntimeError: If the command fails.
    """
    last, seen = folder / "checkpoints" / "last.ckpt", {"steps": [(0.0, 0)], "users": [(0.0, 0)]}
    rows_of: dict[Path, int] = {}
    saved_at = 0
    process = subprocess.Popen(
        command(words), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    while process.poll() is None:
        now = time.perf_counter()
        if last.exists() and last.stat().st_mtime_ns != saved_at:
            saved_at = last.stat().st_mtime_ns
            seen["steps"].append((now, seen["steps"][-1][1] + 1))
        for path in folder.glob("shards/test-*/*.parquet"):
            if path not in rows_of:
                rows_of[path] = pl.scan_parquet(path).select(pl.len()).collect().item()
        if (users := sum(rows_of.values())) != seen["users"][-1][1]:
            seen["users"].append((now, users))
        time.sleep(0.01)
    if process.returncode:
        assert process.stderr is not None
        raise RuntimeError(f"run.py {' '.join(words)}: {process.stderr.read()[-2000:]!r}")
    return seen


def rate(seen: Sequence[tuple[float, int]], leave_out: int) -> float:
    """How many a second between a point and the end.

    Args:
        seen: (seconds, how many so far), the first entry a zero that was not seen.
        leave_out: Changes that are over when the clock starts, at least 1.

    Raises:
        ValueError: If there are no two changes after them.
    """
    counted = seen[1:][leave_out - 1 :]
    if len(counted) < 2:
        raise ValueError("too few steps or shards were seen; give more rows or users")
    (start, before), (end, after) = counted[0], counted[-1]
    return (after - before) / (end - start)


def main(argv: Sequence[str]) -> None:
    """Run each count of processes, write and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=MODELS, default="smollm2")
    parser.add_argument("--data", default="ml100k", help="a choice of conf/data")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--train-rows", type=int, default=160)
    parser.add_argument("--test-rows", type=int, default=160)
    parser.add_argument("--set", action="append", default=[], metavar="SETTING=VALUE")
    parser.add_argument("--work", type=Path, default=Path("outputs/scaling"))
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args(argv)
    hardware, rows = machine(), []
    for processes in arguments.processes:
        folder = arguments.work.resolve() / f"{arguments.model}-{processes}"
        shutil.rmtree(folder, ignore_errors=True)
        words = [
            f"data={arguments.data}", "scale=published", f"model={MODELS[arguments.model]}",
            "trainer=ddp", "trainer.accelerator=cpu", f"trainer.devices={processes}",
            "num_threads=1", f"data.train_rows={arguments.train_rows}", "data.valid_rows=8",
            f"data.test_rows={arguments.test_rows}", "trainer.micro_batch_size=4",
            "trainer.checkpoint_every_steps=1", "task.batches_a_shard=1",
            f"run_name={folder.name}", f"output_root={folder.parent}", *arguments.set,
        ]  # fmt: skip
        seen = watch(words, folder)
        steps_per_s = rate(seen["steps"], WARM_UP)
        global_batch_size = OmegaConf.load(folder / "config.yaml").trainer.global_batch_size
        rows.append(
            {
                "processes": processes,
                "rows_per_s": steps_per_s * global_batch_size,
                "users_per_s": rate(seen["users"], processes),
                "seen": seen,
            }
        )
        _write(arguments.output, argv, hardware, rows)


def _write(folder: Path, argv: Sequence[str], hardware: Row, rows: list[Row]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    made = made_in({"data_hash": None, "split_hash": None}, {}, None)
    content = {
        "command": " ".join(["python -m experiments.robustness.scaling", *argv]),
        "hardware": hardware, "commit": made["commit"], "versions": made["versions"],
        "rows": rows,
    }  # fmt: skip
    write_json(folder / "scaling.json", content)
    lines = [
        [str(row["processes"]), f"{row['rows_per_s']:.2f}",
         f"{row['rows_per_s'] / rows[0]['rows_per_s']:.2f}", f"{row['users_per_s']:.2f}",
         f"{row['users_per_s'] / rows[0]['users_per_s']:.2f}"]
        for row in rows
    ]  # fmt: skip
    text = "\n".join(
        [f"`{content['command']}`", "", one_line(hardware, made["versions"]), "",
         "One thread a process; the same global batch.", "", *markdown_table(HEADINGS, lines), ""]
    )  # fmt: skip
    (folder / "scaling.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main(sys.argv[1:])
