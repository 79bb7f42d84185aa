"""What every benchmark leaves behind: its machine, its raw measurements, its rows, table and plot.

A benchmark asks `Record.measure` for each raw measurement. What was measured before under the same
settings and the same code is read back, so that a run that was cut off goes on where it stopped.
"""

import argparse
import json
import os
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from hatllm.figures.saving import BLUE, GREY, INK, ORANGE, save_figure, tidy
from hatllm.files import write_json, write_text
from hatllm.runs.provenance import code_hash, environment, hardware

RESULTS = Path(__file__).parent / "results"
# Where results go and how a run is launched: two runs that differ here measure the same.
NOT_SETTINGS = ("output", "fresh", "memory_of")
CPU_FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16")

Row = dict[str, Any]
Columns = Mapping[str, Callable[[Row], str]]  # heading -> text of a row's cell

console = Console(width=None if Console().is_terminal else 170)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments every benchmark has."""
    parser.add_argument("--quick", action="store_true", help="small samples, into results/quick")
    parser.add_argument("--output", type=Path, help="folder of the results")
    parser.add_argument("--fresh", action="store_true", help="measure again what is there already")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, help="CPU threads; none = torch's own choice")


def parse(
    parser: argparse.ArgumentParser, argv: Sequence[str], quick: Mapping[str, Any]
) -> argparse.Namespace:
    """The parsed command line; under --quick other defaults hold."""
    if "--quick" in argv:
        of_workload = {"data": "ml100k"} if parser.get_default("data") else {}  # fetched by itself
        parser.set_defaults(**of_workload, **quick)
    return parser.parse_args(argv)


def add_workload_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the benchmarks that run a model."""
    parser.add_argument("--model", choices=("smollm2", "tiny"), default="smollm2")
    parser.add_argument("--data", default="msl_books", help="a choice of conf/data")
    parser.add_argument("--seed", type=int, default=42, help="which rows are drawn")
    parser.add_argument(
        "--set", action="append", default=[], metavar="SETTING=VALUE", help="a setting of run.py"
    )


class Record:
    """The results file of one benchmark, written again after every measurement."""

    def __init__(self, name: str, arguments: argparse.Namespace, argv: Sequence[str]) -> None:
        """Open the file, or begin it.

        Args:
            name: Of the benchmark; names the files.
            arguments: The parsed command line.
            argv: The command line, to be quoted.

        Raises:
            ValueError: If the file holds results of other settings or other code, and
                `arguments.fresh` is not set.
        """
        if arguments.threads is not None:
            torch.set_num_threads(arguments.threads)
        folder = arguments.output or (RESULTS / "quick" if arguments.quick else RESULTS)
        folder.mkdir(parents=True, exist_ok=True)
        self.name, self.folder = name, folder
        self.settings = {
            key: value for key, value in vars(arguments).items() if key not in NOT_SETTINGS
        } | {"code": code_hash(), "torch_threads": torch.get_num_threads()}
        here = machine()
        self.load_before: float = here["load_before"]
        found = environment({"data_hash": None, "split_hash": None}, {}, None)
        self.content: dict[str, Any] = {
            "benchmark": name,
            "command": shlex.join(["python", "-m", f"experiments.speed.{name}", *argv]),
            "settings": self.settings,
            "hardware": here,
            "commit": found["commit"],
            "versions": {"python": found["python"], **found["versions"]},
            "rows": [],
            "measured": {},
        }
        if self.path.exists() and not arguments.fresh:
            self._go_on()

    @property
    def path(self) -> Path:
        """The JSON file."""
        return self.folder / f"{self.name}.json"

    def _go_on(self) -> None:
        """Take over what the file holds: measurements, and where and from what they were made."""
        old = json.loads(self.path.read_text())
        settings = json.loads(json.dumps(self.settings, default=str))
        other = sorted(
            key
            for key in {*settings, *old["settings"]}
            if settings.get(key) != old["settings"].get(key)
        )
        if other:
            raise ValueError(
                f"{self.path.name} holds results of other settings ({', '.join(other)}); "
                "--fresh starts over, --output FOLDER keeps both"
            )
        self.content = old

    def measure(self, key: str, make: Callable[[], Row]) -> Row:
        """One raw measurement, JSON-able: read back where it is there already, made otherwise."""
        if key not in self.content["measured"]:
            self.content["measured"][key] = make()
            hardware = self.content["hardware"]  # of a run in several goes: the busiest
            hardware["load_before"] = max(hardware["load_before"], self.load_before)
            self.save()
        found: Row = self.content["measured"][key]
        return found

    def write_rows(self, rows: list[Row]) -> None:
        """The rows as they stand, to the file."""
        self.content["rows"] = rows
        self.save()

    def save(self) -> None:
        """Write the JSON file so that no reader ever sees half of it."""
        write_json(self.path, self.content)

    def show(self, columns: Columns, caption: str) -> None:
        """Print the table of the rows and write it as Markdown."""
        lines = [[text(row) for text in columns.values()] for row in self.content["rows"]]
        table = Table(title=self.name, caption=caption)
        for heading in columns:
            left = heading == next(iter(columns))
            table.add_column(heading, justify="left" if left else "right")
        for line in lines:
            table.add_row(*line)
        console.print(table)
        text = "\n".join(
            [
                f"`{self.content['command']}`",
                "",
                one_line(self.content["hardware"], self.content["versions"]),
                "",
                *markdown_table(list(columns), lines),
                "",
                caption,
                "",
            ]
        )
        write_text(self.folder / f"{self.name}.md", text)

    def draw(self, figure: Figure) -> None:
        """Write the plot beside the JSON file."""
        save_figure(figure, self.folder / f"{self.name}.png")


def machine() -> dict[str, Any]:
    """Processor, what it can do, cores in use, memory, GPU, and how busy it is."""
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count())
    return hardware() | {
        "cpu_features": _cpu_features(),
        "cores_usable": len(cores),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load_before": round(os.getloadavg()[0], 2),  # above 0.3: something else was running
    }


def _cpu_features() -> list[str]:
    info = Path("/proc/cpuinfo")
    flags = info.read_text().split() if info.exists() else []
    return [feature for feature in CPU_FEATURES if feature in flags]


def one_line(hardware: Mapping[str, Any], versions: Mapping[str, str]) -> str:
    """The machine in a sentence."""
    where = ", ".join(hardware["gpu"]) if hardware["gpu"] else "no GPU"
    features = " ".join(hardware["cpu_features"]) or "no features known"
    return (
        f"{hardware['processor']} ({features}), {hardware['cores_usable']} cores, "
        f"{hardware['torch_threads']} threads, {hardware['memory_gb']} GB, {where}; "
        f"torch {versions['torch']}, transformers {versions['transformers']}; "
        f"load before the run {hardware['load_before']}"
    )


def markdown_table(headings: Sequence[str], lines: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table, the first column to the left, the others to the right."""
    rules = [":--", *["--:"] * (len(headings) - 1)]
    return ["| " + " | ".join(cells) + " |" for cells in (headings, rules, *lines)]


def number(key: str, form: str = ".3g", unit: str = "") -> Callable[[Row], str]:
    """A column that shows a number of the row, or a dash where it has none."""
    return lambda row: "–" if row.get(key) is None else f"{row[key]:{form}}{unit}"


def draw_bars(
    panels: Mapping[str, Sequence[Row]], value: str, label: str, ratio: str, reference: str
) -> Figure:
    """Horizontal bars, a panel a heading, each with its value and its ratio to the reference.

    Args:
        panels: Heading -> rows with `variant`.
        value: Key of a bar's length.
        label: Of the axis.
        ratio: Key of the ratio; none is shown where a row lacks it.
        reference: What the variants of the reference are called, as a prefix; drawn in orange.
    """
    tallest = max(map(len, panels.values()))
    size = (1.6 + 4.6 * len(panels), 1.2 + 0.36 * tallest)
    figure = Figure(figsize=size, layout="constrained")
    for axes, (heading, rows) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        tidy(axes, heading, grid="x")
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        lengths = [row[value] for row in rows]
        colours = [ORANGE if row["variant"].startswith(reference) else BLUE for row in rows]
        axes.barh(range(len(rows)), lengths, color=colours, height=0.62)
        axes.set_yticks(range(len(rows)), [row["variant"] for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlim(0, 1.32 * max(lengths))
        axes.set_xlabel(label, color=GREY)
        for height, row in enumerate(rows):
            text = f" {row[value]:.3g}" + (f"  ×{row[ratio]:.3g}" if row.get(ratio) else "")
            axes.text(row[value], height, text, va="center", fontsize=8.5, color=INK)
    return figure
