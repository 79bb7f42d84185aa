"""Throughput and waiting against offered load: python -m experiments.serving.load --run FOLDER.

A server is started on a free port and driven over loopback: one request after the other, then as
many clients as a batch holds, then open loops at shares of what the second phase gave. The same
histories go through our decoder without a server and through transformers' `generate`, one at a
time. With `--each SETTING=VALUE`, given several times, each value has a server of its own, at the
rates of the first. Results: NAME.json and NAME.md in experiments/serving/results.
"""

import argparse
import asyncio
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.serving.client import Body, Outcome, at_once, at_rate, one_by_one
from experiments.serving.offline import LoadedRun
from experiments.serving.server_process import ServerProcess, serving
from experiments.speed.record import machine, markdown_table, one_line
from hatllm.files import write_json, write_text
from hatllm.runs.provenance import environment

SHARES = (0.25, 0.5, 0.9, 1.5, 5.0)  # of the capacity
RESULTS = Path(__file__).parent / "results"
HEADINGS = ("phase", "offered /s", "answered /s", "refused (429)", "late (504)", "lost",
            "p50 s", "p95 s", "p99 s", "mean batch", "memory MB")  # fmt: skip


def main(argv: Sequence[str]) -> None:
    """Measure, print and write."""
    arguments = _parser().parse_args(argv)
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    here = machine()
    found: dict[str, Any] = {"command": shlex.join(["python", "-m", __spec__.name, *argv])}
    found["hardware"] = here
    words = list(arguments.set)
    if arguments.threads is not None:
        words.append(f"num_threads={arguments.threads}")
    found["servers"] = []
    for each in arguments.each or [None]:
        chosen = [*words, *([] if each is None else [each])]
        run = LoadedRun(arguments.run, chosen)
        histories = run.histories(arguments.users)
        offline = run.users_per_second(histories)
        if "generate_users_per_s" not in found:
            few = histories[: arguments.generate]
            found["generate_users_per_s"] = run.generate_users_per_second(few)
        bodies = [{"history": run.titles(history), "k": 10} for history in histories]
        del run
        capacity = found["servers"][0]["capacity_per_s"] if found["servers"] else None
        with serving([f"task.run_folder={arguments.run}", *chosen]) as server:
            rows = asyncio.run(phases(server, bodies, arguments, capacity))
        capacity = rows[1]["answered_per_s"] if capacity is None else capacity
        found["servers"].append(
            {"setting": each, "offline_users_per_s": offline, "capacity_per_s": capacity,
             "phases": rows}
        )  # fmt: skip
    known = environment({"data_hash": None, "split_hash": None}, {}, None)
    found["versions"] = {"python": known["python"], **known["versions"]}
    RESULTS.mkdir(exist_ok=True)
    write_json(RESULTS / f"{arguments.name}.json", found)
    text = report(found)
    write_text(RESULTS / f"{arguments.name}.md", text)
    print(text)


async def phases(
    server: ServerProcess,
    bodies: Sequence[Body],
    arguments: argparse.Namespace,
    capacity: float | None,
) -> list[dict[str, Any]]:
    """One row a phase; open loops at shares of a capacity, None = what the closed loop shows."""
    address, seconds = server.address, arguments.seconds
    await one_by_one(address, bodies[:2])  # the first call makes what others share
    rows = []

    def add(name: str, offered: float | None, outcomes: list[Outcome], took: float) -> None:
        rows.append(row_of(name, offered, outcomes, took) | {"memory_mb": server.memory_mb})
        print(rows[-1], file=sys.stderr)

    alone = await one_by_one(address, bodies[: arguments.alone])
    add("one by one", None, alone, sum(outcome.seconds for outcome in alone))
    took, outcomes = await _timed(at_once(address, bodies, arguments.clients))
    add(f"{arguments.clients} clients", None, outcomes, took)
    capacity = len(outcomes) / took if capacity is None else capacity
    for share in SHARES:
        coming = at_rate(
            address, bodies, share * capacity, seconds, arguments.sockets, arguments.seed
        )
        took, outcomes = await _timed(coming)
        add(f"open, {share:g} of capacity", share * capacity, outcomes, took)
    return rows


def row_of(
    name: str, offered: float | None, outcomes: Sequence[Outcome], took: float
) -> dict[str, Any]:
    """The numbers of a phase; waiting is that of answered requests."""
    status = Counter(outcome.status for outcome in outcomes)
    answered = [outcome for outcome in outcomes if outcome.status == 200]
    waits = [outcome.seconds for outcome in answered] or [float("nan")]
    p50, p95, p99 = np.quantile(waits, [0.5, 0.95, 0.99]).tolist()
    sizes = [outcome.batch_size for outcome in answered]
    return {
        "phase": name, "offered_per_s": offered, "answered_per_s": len(answered) / took,
        "requests": len(outcomes), "refused": status[429], "late": status[504],
        "lost": len(outcomes) - status[200] - status[429] - status[504],
        "p50_s": p50, "p95_s": p95, "p99_s": p99,
        # Of calls, not of requests: a request in a batch of n counts 1 / n.
        "mean_batch": len(sizes) / sum(1 / size for size in sizes) if sizes else None,
    }  # fmt: skip


def report(found: dict[str, Any]) -> str:
    """The table, and what it is to be compared with."""
    servers = found["servers"]
    several = len(servers) > 1
    lines = [
        [*([str(one["setting"])] if several else []), *_cells(row)]
        for one in servers
        for row in one["phases"]
    ]
    headings = ("setting", *HEADINGS) if several else HEADINGS
    return "\n".join(
        [
            f"`{found['command']}`", "", one_line(found["hardware"], found["versions"]), "",
            *markdown_table(headings, lines), "",
            f"Transformers' generate, one at a time: {found['generate_users_per_s']:.2f} users/s.",
            *(_compared(one, found["generate_users_per_s"]) for one in servers), "",
        ]
    )  # fmt: skip


def _compared(server: dict[str, Any], field: float) -> str:
    served = max(row["answered_per_s"] for row in server["phases"])
    offline = server["offline_users_per_s"]
    name = "" if server["setting"] is None else f"{server['setting']}: "
    return (
        f"{name}our decoder without a server {offline:.2f} users/s; the server at its fullest "
        f"{served:.2f}, {served / offline:.2f} of that, {served / field:.0f} times generate."
    )


def _cells(row: dict[str, Any]) -> list[str]:
    def shown(key: str, form: str) -> str:
        return "–" if row[key] is None else f"{row[key]:{form}}"

    counts = [str(row[key]) for key in ("refused", "late", "lost")]
    waits = [shown(key, ".3f") for key in ("p50_s", "p95_s", "p99_s")]
    return [
        row["phase"], shown("offered_per_s", ".2f"), shown("answered_per_s", ".2f"), *counts,
        *waits, shown("mean_batch", ".1f"), shown("memory_mb", ".0f"),
    ]  # fmt: skip


async def _timed(coming: Any) -> tuple[float, list[Outcome]]:
    start = asyncio.get_running_loop().time()
    outcomes = await coming
    return asyncio.get_running_loop().time() - start, outcomes


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True, help="folder of a finished LLM run")
    parser.add_argument("--name", default="load", help="of the results")
    parser.add_argument("--users", type=int, default=64, help="histories, asked over and over")
    parser.add_argument("--alone", type=int, default=16, help="requests one by one")
    parser.add_argument("--generate", type=int, default=8, help="histories for generate")
    parser.add_argument("--clients", type=int, default=16, help="of the closed loop")
    parser.add_argument("--seconds", type=float, default=30.0, help="of each open loop")
    parser.add_argument("--sockets", type=int, default=512, help="connections at most")
    parser.add_argument("--seed", type=int, default=1, help="of the arrivals")
    parser.add_argument("--threads", type=int, help="CPU threads; none = torch's own choice")
    parser.add_argument("--each", action="append", default=[], metavar="SETTING=VALUE",
                        help="a server of its own with this setting")  # fmt: skip
    parser.add_argument("--set", action="append", default=[], metavar="SETTING=VALUE",
                        help="a setting of run.py task=serve")  # fmt: skip
    return parser


if __name__ == "__main__":
    main(sys.argv[1:])
