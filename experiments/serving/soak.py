"""Half an hour of mixed requests: python -m experiments.serving.soak --run FOLDER --minutes 30.

Requests of all kinds (`traffic.py`) come in an open loop at a moderate rate. Every few seconds the
memory and the open files of the process that answers are read. The verdict: every request got an
answer that its kind may have, SIGTERM ends with exit code 0, and memory does not grow: the slope of
its means, the first fifth of the time left out, is not above 0 by more than its 95 % interval.
"""

import argparse
import asyncio
import shlex
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from matplotlib.figure import Figure
from scipy.stats import linregress, t

from experiments.serving.client import PATIENCE, Body, arrivals, client_of
from experiments.serving.load import RESULTS
from experiments.serving.offline import LoadedRun
from experiments.serving.server_process import ServerProcess, serving
from experiments.serving.traffic import KINDS, drawn_kinds
from experiments.speed.record import machine, markdown_table, one_line
from hatllm.figures.saving import BLUE, FAINT, ORANGE, save_figure, tidy
from hatllm.files import write_json, write_text
from hatllm.runs.provenance import environment

LOST = -1  # neither an answer nor a client that left
PARTS, FEWEST_PARTS = 30, 8  # of the time, whose mean memory the slope goes through
MOST_ALIKE = 0.95  # correlation of neighbouring parts
WARMING = 0.2  # share of the time that is left out: pools and caches fill
HEADINGS = ("kind", "requests", "answers by status", "wrong")


@dataclass(frozen=True)
class Slope:
    """A straight line through memory by time."""

    mb_per_hour: float
    half_width: float  # of the 95 % interval
    at_start: float  # MB, of the line at time 0

    @property
    def grows(self) -> bool:
        """Whether the interval lies above 0."""
        return self.mb_per_hour - self.half_width > 0


def main(argv: Sequence[str]) -> None:
    """Soak, print and write."""
    arguments = _parser().parse_args(argv)
    found: dict[str, Any] = {"command": shlex.join(["python", "-m", __spec__.name, *argv])}
    found["hardware"] = machine()
    words = [*arguments.set, f"num_threads={arguments.threads}"]
    run = LoadedRun(arguments.run, words)
    bodies = [{"history": run.titles(h), "k": 10} for h in run.histories(arguments.users)]
    del run
    with serving([f"task.run_folder={arguments.run}", *words]) as server:
        found |= asyncio.run(soaked(server, bodies, arguments))
        found["exit_code"] = server.end()
    slope = slope_of(found["samples"])
    found["slope"] = vars(slope)
    known = environment({"data_hash": None, "split_hash": None}, {}, None)
    found["versions"] = {"python": known["python"], **known["versions"]}
    folder = arguments.output
    write_json(folder / f"{arguments.name}.json", found)
    save_figure(draw(found["samples"], slope), folder / f"{arguments.name}.png")
    text = report(found, slope)
    write_text(folder / f"{arguments.name}.md", text)
    print(text)


async def soaked(
    server: ServerProcess, bodies: Sequence[Body], arguments: argparse.Namespace
) -> dict[str, Any]:
    """Answers by kind and status, and samples of the process."""
    seconds = 60 * arguments.minutes
    samples: list[dict[str, float]] = []
    watching = asyncio.create_task(_watch(server, samples, arguments.every))
    draw, tasks = drawn_kinds(arguments.seed), []
    async with client_of(server.address, arguments.sockets) as client:
        async for _ in arrivals(arguments.rate, seconds, arguments.seed):
            body, kind = bodies[len(tasks) % len(bodies)], draw()
            tasks.append(asyncio.create_task(_ask(client, kind, body)))
        answers = Counter(await asyncio.gather(*tasks))
    watching.cancel()
    kinds = {
        kind: {str(status): count for (name, status), count in sorted(answers.items())
               if name == kind}
        for kind in KINDS
    }  # fmt: skip
    wrong = sum(n for (kind, status), n in answers.items() if status not in KINDS[kind][2])
    return {"kinds": kinds, "requests": len(tasks), "wrong": wrong, "samples": samples}


async def _ask(client: httpx.AsyncClient, kind: str, body: Body) -> tuple[str, int]:
    try:
        async with asyncio.timeout(PATIENCE):
            return kind, await KINDS[kind][0](client, body)
    except (httpx.HTTPError, TimeoutError):
        return kind, LOST


async def _watch(server: ServerProcess, samples: list[dict[str, float]], every: float) -> None:
    start = time.perf_counter()
    while True:
        samples.append(
            {
                "seconds": time.perf_counter() - start, "memory_mb": server.memory_mb,
                "open": server.num_open, "processor_s": server.processor_seconds,
            }
        )  # fmt: skip
        await asyncio.sleep(every)


def slope_of(samples: Sequence[dict[str, float]]) -> Slope:
    """The line through the means of PARTS, with an interval that knows that they hang together.

    Neighbouring parts are alike, so that they tell less than as many independent ones: the
    standard error grows by sqrt((1 + r) / (1 - r)), r the correlation of neighbouring residuals.

    Raises:
        ValueError: If there are too few samples.
    """
    second_S = np.array([sample["seconds"] for sample in samples])
    memory_S = np.array([sample["memory_mb"] for sample in samples])
    part_S = np.minimum((PARTS * second_S / second_S[-1]).astype(int), PARTS - 1)
    parts = [part for part in np.unique(part_S) if part >= WARMING * PARTS]
    if len(parts) < FEWEST_PARTS:
        raise ValueError(f"{len(samples)} samples are too few for a slope: soak longer")
    hour_M = np.array([second_S[part_S == part].mean() / 3600 for part in parts])
    mean_M = np.array([memory_S[part_S == part].mean() for part in parts])
    line = linregress(hour_M, mean_M)
    residual_M = mean_M - line.intercept - line.slope * hour_M
    spread = float((residual_M**2).sum())
    alike = float((residual_M[1:] * residual_M[:-1]).sum()) / spread if spread > 0 else 0.0
    alike = min(max(alike, 0.0), MOST_ALIKE)
    error = line.stderr * np.sqrt((1 + alike) / (1 - alike))
    half = float(t.ppf(0.975, len(parts) - 2) * error)
    return Slope(float(line.slope), half, float(line.intercept))


def draw(samples: Sequence[dict[str, float]], slope: Slope) -> Figure:
    """Memory by time, with the line."""
    figure = Figure(figsize=(7.0, 3.0), layout="constrained")
    axes = figure.subplots()
    tidy(axes, "Memory of the serving process")
    axes.grid(color=FAINT, linewidth=0.8)
    minute_S = np.array([sample["seconds"] for sample in samples]) / 60
    axes.plot(minute_S, [sample["memory_mb"] for sample in samples], color=BLUE, linewidth=1.2)
    ends = np.array([WARMING * minute_S[-1], minute_S[-1]])
    label = f"{slope.mb_per_hour:+.1f} ± {slope.half_width:.1f} MB an hour"
    axes.plot(
        ends, slope.at_start + slope.mb_per_hour * ends / 60, color=ORANGE, linewidth=1.6,
        label=label,
    )  # fmt: skip
    axes.set_xlabel("minutes")
    axes.set_ylabel("resident MB")
    axes.legend(frameon=False, fontsize=8.5)
    return figure


def report(found: dict[str, Any], slope: Slope) -> str:
    """Verdict and tables."""
    lines = []
    for kind, answers in found["kinds"].items():
        shown = ", ".join(f"{_status(status)}: {count}" for status, count in answers.items())
        wrong = sum(n for status, n in answers.items() if int(status) not in KINDS[kind][2])
        lines.append([kind, str(sum(answers.values())), shown or "–", str(wrong)])
    first, last = found["samples"][0], found["samples"][-1]
    busy = (last["processor_s"] - first["processor_s"]) / (last["seconds"] - first["seconds"])
    return "\n".join(
        [
            f"`{found['command']}`", "", one_line(found["hardware"], found["versions"]), "",
            f"**{verdict(found, slope)}**", "",
            f"Memory: {first['memory_mb']:.0f} MB at the start, {last['memory_mb']:.0f} MB at the "
            f"end; slope {slope.mb_per_hour:+.1f} MB an hour, 95 % interval "
            f"[{slope.mb_per_hour - slope.half_width:+.1f}, "
            f"{slope.mb_per_hour + slope.half_width:+.1f}]. Open files: {first['open']:.0f} and "
            f"{last['open']:.0f}. Processor: {100 * busy:.0f} % of one core. Exit code after "
            f"SIGTERM: {found['exit_code']}.", "",
            *markdown_table(HEADINGS, lines), "",
        ]
    )  # fmt: skip


def verdict(found: dict[str, Any], slope: Slope) -> str:
    """One sentence."""
    faults = []
    if found["wrong"]:
        faults.append(f"{found['wrong']} of {found['requests']} answers are wrong")
    if slope.grows:
        faults.append(f"memory grows by {slope.mb_per_hour:.1f} MB an hour")
    if found["exit_code"]:
        faults.append(f"SIGTERM ended with exit code {found['exit_code']}")
    if faults:
        return f"Not sound: {'; '.join(faults)}."
    return f"Sound: {found['requests']} requests, each with a right answer; no growth is seen."


def _status(status: str) -> str:
    return {"0": "left", str(LOST): "lost"}.get(status, status)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True, help="folder of a finished LLM run")
    parser.add_argument("--name", default="soak", help="of the results")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--rate", type=float, default=1.0, help="requests a second")
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two looks")
    parser.add_argument("--users", type=int, default=64, help="histories, asked over and over")
    parser.add_argument("--sockets", type=int, default=64, help="connections at most")
    parser.add_argument("--seed", type=int, default=1, help="of arrivals and kinds")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of the server")
    parser.add_argument("--set", action="append", default=[], metavar="SETTING=VALUE",
                        help="a setting of run.py task=serve")  # fmt: skip
    return parser


if __name__ == "__main__":
    main(sys.argv[1:])
