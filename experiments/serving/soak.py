"""Half an hour of mixed requests: python -m experiments.serving.soak --run FOLDER --minutes 30.

Requests of all kinds (`traffic.py`) come in an open loop at a moderate rate. Every few seconds the
memory and the open files of the process that answers are read. The verdict: every request got an
answer that its kind may have (429 and 504, of a server that cannot keep up, are counted apart),
SIGTERM ends with exit code 0, and memory that stays does not grow. A leak stays, the memory of a
batch comes and goes: the slope is that of the least memory in each part of the time, the first
fifth left out, and growth is a slope above 0 by more than its 95 % interval. The slope of the means
is shown beside it; it rises as well where batches become larger.
"""

import argparse
import asyncio
import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
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

FloatArray = NDArray[np.float64]
BUSY = (429, 504)  # the queue was full, or the time over: as told to a client that asks too much
LOST = -1  # neither an answer nor a client that left
PARTS, FEWEST_PARTS = 30, 8  # of the time, through whose memory the slope goes
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
    slope = slope_of(found["samples"], np.min)
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
    return {"kinds": kinds, "requests": len(tasks), "samples": samples} | counted(kinds)


def counted(kinds: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    """How many answers are wrong, and how many say that the server could not keep up."""
    answers = [
        (kind, int(status), n) for kind, found in kinds.items() for status, n in found.items()
    ]
    busy = sum(n for _, status, n in answers if status in BUSY)
    right = sum(n for kind, status, n in answers if status in KINDS[kind][2])
    return {"wrong": sum(n for _, _, n in answers) - right - busy, "busy": busy}


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


def slope_of(samples: Sequence[dict[str, float]], of: Callable[[FloatArray], float]) -> Slope:
    """The line through the memory of PARTS, with an interval that knows that they hang together.

    Neighbouring parts are alike, so that they tell less than as many independent ones: the
    standard error grows by sqrt((1 + r) / (1 - r)), r the correlation of neighbouring residuals.

    Args:
        samples: Seconds and megabytes.
        of: The least or the mean of a part.

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
    memory_M = np.array([of(memory_S[part_S == part]) for part in parts])
    line = linregress(hour_M, memory_M)
    residual_M = memory_M - line.intercept - line.slope * hour_M
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
    label = f"what stays: {slope.mb_per_hour:+.1f} ± {slope.half_width:.1f} MB an hour"
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
        wrong = counted({kind: answers})["wrong"]
        lines.append([kind, str(sum(answers.values())), shown or "–", str(wrong)])
    first, last = found["samples"][0], found["samples"][-1]
    means = slope_of(found["samples"], np.mean)
    busy = (last["processor_s"] - first["processor_s"]) / (last["seconds"] - first["seconds"])
    return "\n".join(
        [
            f"`{found['command']}`", "", one_line(found["hardware"], found["versions"]), "",
            f"**{verdict(found, slope)}**", "",
            f"Memory: {first['memory_mb']:.0f} MB at the start, {last['memory_mb']:.0f} MB at the "
            f"end. What stays: {_shown(slope)}; means: {_shown(means)}. Open files: "
            f"{first['open']:.0f} and {last['open']:.0f}. Processor: {100 * busy:.0f} % of one "
            f"core. Exit code after SIGTERM: {found['exit_code']}.", "",
            *markdown_table(HEADINGS, lines), "",
        ]
    )  # fmt: skip


def _shown(slope: Slope) -> str:
    low, high = slope.mb_per_hour - slope.half_width, slope.mb_per_hour + slope.half_width
    return f"{slope.mb_per_hour:+.1f} MB an hour, 95 % interval [{low:+.1f}, {high:+.1f}]"


def verdict(found: dict[str, Any], slope: Slope) -> str:
    """One sentence."""
    faults = []
    if found["wrong"]:
        faults.append(f"{found['wrong']} of {found['requests']} answers are wrong")
    if slope.grows:
        faults.append(f"memory that stays grows by {slope.mb_per_hour:.1f} MB an hour")
    if found["exit_code"]:
        faults.append(f"SIGTERM ended with exit code {found['exit_code']}")
    if faults:
        return f"Not sound: {'; '.join(faults)}."
    busy = f", of which {found['busy']} that there was too much to do" if found["busy"] else ""
    return (
        f"Sound: {found['requests']} requests, each with a right answer{busy}; no growth is seen."
    )


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
