"""What 10 million users and a million items take: steps, engines, memory, network, hours.

Nothing is run at that size: every figure follows from constants that experiments/speed measured on
one machine, from the bytes of a Parquet sample that is written here, and from the settings below.

    python -m experiments.robustness.plan_at_scale
    python -m experiments.robustness.plan_at_scale --users 1000000 --hours 8
"""

import argparse
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from hatllm.files import write_json

SPEED = Path(__file__).parents[1] / "speed" / "results"
RESULTS = Path(__file__).parent / "results"
# SmolLM2-135M with the adapters of conf/model/_base.yaml, from its own config.
PARAMETERS = 134_515_008
LAYERS, HIDDEN, KEY_VALUE, LORA_RANK = 30, 576, 192, 8
ADAPTER_PARAMETERS = LAYERS * LORA_RANK * ((HIDDEN + HIDDEN) + (HIDDEN + KEY_VALUE))
FLOAT32 = 4  # bytes
SAMPLE_USERS = 4096  # of the Parquet sample: a shard at task.chunk_rows' value in conf/


@dataclass(frozen=True)
class Step:
    """One step of the plan."""

    name: str
    engine: str
    amount: str
    machine_hours: float  # of one machine as measured
    machines: int  # to end within the hours
    hours: float  # on so many
    memory_gb: float  # a machine
    network: str

    def cells(self) -> list[str]:
        """Its row of the table."""
        return [
            self.name, self.engine, self.amount, f"{self.machine_hours:,.3g}", f"{self.machines:,}",
            f"{self.hours:.3g}", f"{self.memory_gb:.1f}", self.network,
        ]  # fmt: skip


HEADINGS = ("step", "engine", "amount", "machine-hours", "machines", "hours", "GB a machine",
            "network")  # fmt: skip


def measured(benchmark: str, **wanted: Any) -> dict[str, Any]:
    """The one row of a benchmark with these values.

    Raises:
        ValueError: If there is none, or more than one.
    """
    rows = json.loads((SPEED / f"{benchmark}.json").read_text())["rows"]
    found = [row for row in rows if all(row[key] == value for key, value in wanted.items())]
    if len(found) != 1:
        raise ValueError(f"{benchmark}.json has {len(found)} rows with {wanted}, 1 is needed")
    return dict(found[0])


def machine_of(benchmark: str) -> dict[str, Any]:
    """The machine a benchmark was measured on."""
    return dict(json.loads((SPEED / f"{benchmark}.json").read_text())["hardware"])


def parquet_bytes(args: argparse.Namespace) -> tuple[float, float]:
    """Bytes a user of a file of histories (item ids) and of a shard, from a made-up sample."""
    draw = np.random.default_rng(args.seed)
    users = np.arange(SAMPLE_USERS)
    history = draw.integers(args.items, size=(SAMPLE_USERS, args.history_items)).astype(str)
    histories = pl.DataFrame({"user_id": users, "history": history.tolist()})
    num_rows = SAMPLE_USERS * args.top_k
    letters = draw.integers(97, 123, size=(num_rows, args.title_characters), dtype=np.uint8)
    log_prob = draw.normal(size=num_rows)
    shard = pl.DataFrame(
        {
            "user_id": np.repeat(users, args.top_k),
            "rank": np.tile(np.arange(1, args.top_k + 1), SAMPLE_USERS),
            "item": draw.integers(args.items, size=num_rows).astype(str),
            "title": [row.tobytes().decode() for row in letters],
            "score": log_prob,
            "log_prob": log_prob,
        }
    )
    return _bytes(histories) / SAMPLE_USERS, _bytes(shard) / SAMPLE_USERS


def _bytes(frame: pl.DataFrame) -> int:
    file = io.BytesIO()
    frame.write_parquet(file)
    return len(file.getvalue())


def plan(args: argparse.Namespace) -> tuple[list[Step], dict[str, Any]]:
    """The steps, and the measured constants they follow from."""
    titles = measured("trie", titles=args.titles_measured, variant="hatllm/trie")
    train = measured("train", variant="hatllm+compile")
    decode = measured("decode", variant="hatllm/trie")
    read_bytes, written_bytes = parquet_bytes(args)
    constants = {
        "users_per_s": titles["users_per_s"],
        "rows_per_s": train["rows_per_s"],
        "trie_build_s": titles["build_s"],
        "trie_build_peak_mb": titles["build_peak_mb"],
        "train_extra_memory_mb": train["extra_memory_mb"],
        "decode_extra_memory_mb": decode["extra_memory_mb"],
        "history_bytes_a_user": read_bytes,
        "shard_bytes_a_user": written_bytes,
        "adapter_mb": ADAPTER_PARAMETERS * FLOAT32 / 1e6,
    }
    titles_gb = titles["build_peak_mb"] / 1e3 * args.items / args.titles_measured
    build_hours = titles["build_s"] * args.items / args.titles_measured / 3600
    build = Step(
        "trie of the titles", "in every process", f"{args.items:,} titles", build_hours, 1,
        build_hours, titles_gb, "none",
    )  # fmt: skip
    model_gb = PARAMETERS * FLOAT32 / 1e9 + titles_gb
    steps = [build, _train(args, constants, model_gb), _answer(args, constants, build, model_gb)]
    return steps, constants


def _train(args: argparse.Namespace, constants: dict[str, Any], model_gb: float) -> Step:
    """Machines that exchange the adapters' gradients in a ring after every step."""
    hours = args.train_rows / constants["rows_per_s"] / 3600
    trainers = min(_machines(hours, args.hours), args.global_batch_size)
    num_steps = args.train_rows // args.global_batch_size
    ring = 2 * (trainers - 1) / trainers * constants["adapter_mb"]
    mbit = num_steps * ring * 8 / (hours / trainers * 3600)
    return Step(
        "train", "DDP (Lightning, torchrun or SLURM)",
        f"{args.train_rows:,} rows, {num_steps:,} steps", hours, trainers, hours / trainers,
        model_gb + constants["train_extra_memory_mb"] / 1e3,
        f"{ring:.2f} MB a step and machine, {mbit:.2f} Mbit/s",
    )  # fmt: skip


def _answer(
    args: argparse.Namespace, constants: dict[str, Any], build: Step, model_gb: float
) -> Step:
    """Machines that know nothing of each other; each builds the trie before its first answer."""
    hours = args.users / constants["users_per_s"] / 3600
    answerers = _machines(hours, args.hours - build.hours)
    bytes_a_user = constants["history_bytes_a_user"] + constants["shard_bytes_a_user"]
    answer_gb = args.users * bytes_a_user / 1e9
    seconds = (hours / answerers + build.hours) * 3600
    return Step(
        "recommend", "task.engine=ray, or srun", f"{args.users:,} users", hours, answerers,
        seconds / 3600, model_gb + constants["decode_extra_memory_mb"] / 1e3,
        f"{answer_gb:.1f} GB in all, {answer_gb * 8e3 / seconds:.2f} Mbit/s over all machines",
    )  # fmt: skip


def _machines(machine_hours: float, hours: float) -> int:
    return max(1, math.ceil(machine_hours / hours))


def markdown(steps: list[Step], constants: dict[str, Any], args: argparse.Namespace) -> str:
    """The plan as a page."""
    machine = machine_of("trie")
    lines = [
        f"# {args.users:,} users, {args.items:,} items",
        "",
        f"A machine: {machine['cores']} cores, {machine['processor']}, no GPU, float32, "
        f"SmolLM2-135M, mask=hatllm, beam 10 along the trie. Each step within {args.hours:g} h.",
        "",
        f"| {' | '.join(HEADINGS)} |",
        f"|{'---|' * len(HEADINGS)}",
        *(f"| {' | '.join(step.cells())} |" for step in steps),
        "",
        "Measured constants (experiments/speed/results; bytes: a Parquet sample of "
        f"{SAMPLE_USERS} users):",
        "",
        *(f"- {name}: {value:,.2f}" for name, value in constants.items()),
        "",
        "Taken for granted: machines alike, and no loss from their number. Recommending needs "
        "no word between machines; training waits for the slowest at every step. Titles that do "
        "not look like the measured ones (recombined titles of Books) change the first two lines. "
        "Left out: preparing the interactions, and tokenising the titles.",
    ]
    return "\n".join(lines) + "\n"


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--users", type=int, default=10_000_000)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--train-rows", type=int, default=1_000_000, help="rows seen in all")
    parser.add_argument("--global-batch-size", type=int, default=128)
    parser.add_argument("--hours", type=float, default=24.0, help="that a step may take")
    parser.add_argument("--history-items", type=int, default=10)
    parser.add_argument("--title-characters", type=int, default=40)
    parser.add_argument("--top-k", type=int, default=10)
    parser.add_argument("--titles-measured", type=int, default=1_000_000, help="row of trie.json")
    parser.add_argument("--seed", type=int, default=42, help="of the Parquet sample")
    parser.add_argument("--output", type=Path, default=RESULTS)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Print the plan and write it as plan_at_scale.md and .json."""
    args = parse(argv)
    steps, constants = plan(args)
    text = markdown(steps, constants, args)
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "plan_at_scale.md").write_text(text, "utf-8")
    settings = {key: value for key, value in vars(args).items() if key != "output"}
    found = {
        "settings": settings,
        "constants": constants,
        "steps": [dict(zip(HEADINGS, step.cells(), strict=True)) for step in steps],
    }
    write_json(args.output / "plan_at_scale.json", found)
    print(text)


if __name__ == "__main__":
    main()
