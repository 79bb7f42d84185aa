"""Where the time of a training step and of a decoded batch goes, by kind of operation.

    python -m experiments.speed.profile                 # about two minutes
    python -m experiments.speed.profile --model tiny    # seconds

The same models and batches as `train` and `decode`, one batch each, under torch.profiler; shares
are of the operations' own time, so they add up to one.
"""

import argparse
import sys
from collections.abc import Callable, Sequence

from matplotlib.figure import Figure
from torch.profiler import ProfilerActivity, profile

from experiments.speed import decode, train
from experiments.speed.record import (
    Columns,
    Record,
    Row,
    add_arguments,
    add_workload_arguments,
    number,
    parse,
)
from hatllm.figures.saving import BLUE, FAINT, GREY, ORANGE, tidy

KINDS = {  # kind -> how its operations' names begin, the first that fits
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm"),
    "attention": ("aten::_scaled_dot_product",),
    "compiled, elementwise": ("## Call CompiledFxGraph", "Torch-Compiled", "triton"),
    "copies": ("aten::copy_", "aten::cat", "aten::index", "aten::fill_", "aten::gather",
               "aten::scatter", "aten::constant_pad", "aten::zero_"),
    "elementwise": ("aten::mul", "aten::add", "aten::silu", "aten::pow", "aten::mean", "aten::sum",
                    "aten::rsqrt", "aten::neg", "aten::div", "aten::_log_softmax", "aten::_to_copy",
                    "aten::sub", "aten::exp"),
}  # fmt: skip
REST = "the rest"  # autograd, views, Python
COLOURS = (BLUE, ORANGE, "#5b9a68", "#8d7cb8", "#c9a227", FAINT)


def main(argv: Sequence[str]) -> None:
    """Run the benchmark with a command line."""
    arguments = parse(_parser(), argv, {})
    record = Record("profile", arguments, argv)
    rows = [
        {"variant": name, **record.measure(name, lambda w=work: _profiled(w()))}
        for name, work in _works(arguments).items()
    ]
    record.write_rows(rows)
    record.show(COLUMNS, CAPTION)
    record.draw(_figure(rows))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments.speed.profile")
    add_arguments(parser)
    add_workload_arguments(parser)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    return parser


def _works(arguments: argparse.Namespace) -> dict[str, Callable[[], Callable[[], object]]]:
    """Variant -> what makes the piece of work that is profiled."""
    words = ["--model", arguments.model, "--data", arguments.data, "--seed", str(arguments.seed)]
    words += [word for setting in arguments.set for word in ("--set", setting)]
    words += ["--device", arguments.device, "--dtype", arguments.dtype]

    def step(name: str) -> Callable[[], object]:
        bench = train.Bench(train.parser().parse_args(words), arguments.dtype)
        batch = bench.batches(1)[0]
        return lambda: bench.step(train.VARIANTS[name], batch)

    def batch_of_users(name: str) -> Callable[[], object]:
        bench = decode.Bench(decode.parser().parse_args(words), arguments.dtype)
        batch = bench.batches(bench.size)[0]
        return lambda: bench.search(name, batch)

    works: dict[str, Callable[[], Callable[[], object]]] = {}
    for name in ("plain hatllm", "hatllm", "hatllm+compile"):
        works[f"train {name}"] = lambda n=name: step(n)  # type: ignore[misc]
    for name in ("causal/vocab", "hatllm/trie"):
        works[f"decode {name}"] = lambda n=name: batch_of_users(n)  # type: ignore[misc]
    return works


def _profiled(work: Callable[[], object]) -> Row:
    """Shares of the operations' own time by kind, and the rate of the matrix products."""
    work()  # what is made once is made
    work()
    activities = [ProfilerActivity.CPU]
    with profile(activities=activities, with_flops=True) as found:
        work()
    seconds: dict[str, float] = dict.fromkeys([*KINDS, REST], 0.0)
    flops = 0
    for operation in found.key_averages():
        kind = _kind(operation.key)
        seconds[kind] += operation.self_cpu_time_total / 1e6
        flops += operation.flops if kind == "matrix products" else 0
    total = sum(seconds.values())
    return {
        "seconds": total,
        "shares": {kind: value / total for kind, value in seconds.items()},
        "product_gflop_per_s": flops / 1e9 / seconds["matrix products"],
    }


def _kind(operation: str) -> str:
    return next((kind for kind, names in KINDS.items() if operation.startswith(names)), REST)


def _figure(rows: Sequence[Row]) -> Figure:
    figure = Figure(figsize=(8.4, 1.4 + 0.42 * len(rows)), layout="constrained")
    axes = figure.subplots()
    tidy(axes, "Where the time goes")
    left = [0.0] * len(rows)
    for kind, colour in zip([*KINDS, REST], COLOURS, strict=True):
        widths = [row["shares"][kind] for row in rows]
        axes.barh(range(len(rows)), widths, left=left, color=colour, height=0.62, label=kind)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.set_yticks(range(len(rows)), [row["variant"] for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    axes.set_xlabel("share of the operations' own time", color=GREY)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8.5)
    return figure


COLUMNS: Columns = {
    "variant": lambda row: row["variant"],
    "seconds": number("seconds"),
    **{
        kind: (lambda row, kind=kind: f"{row['shares'][kind]:.0%}")  # type: ignore[misc]
        for kind in [*KINDS, REST]
    },
    "products, GFLOP/s": number("product_gflop_per_s", ".0f"),
}
CAPTION = (
    "One batch of 8 rows or users. seconds: under the profiler, which slows it a little. compiled: "
    "norms, rotary positions, SwiGLU and residuals of model.compile=true."
)

if __name__ == "__main__":
    main(sys.argv[1:])
