"""What a sampled loss of the id models costs, plainly and by torch's sparse kernels.

    python -m experiments.speed.sampled                 # a minute, resumable
    python -m experiments.speed.sampled --quick

Dot products of random states with the rows of sampled items, and their gradients, at the sizes of
`model=sasrec` (one sampled item) and `model=sasrec_ss` (256). Equality comes with every timing.
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from experiments.speed.floor import seconds_of
from experiments.speed.record import Columns, Record, Row, add_arguments, draw_bars, number, parse
from hatllm.baselines.next_item_loss import ChosenDots, plain_dots

Dots = Callable[[Tensor, Tensor, Tensor], Tensor]
WAYS: dict[str, Dots] = {"plain": plain_dots, "sparse": ChosenDots.apply}
STATES, SIZE = 1024, 64
QUICK = {"repeats": 2, "items": [10_000]}


def main(argv: Sequence[str]) -> None:
    """Run the benchmark with a command line."""
    arguments = parse(parser(), argv, QUICK)
    record = Record("sampled", arguments, argv)
    rows: list[Row] = []
    for items in arguments.items:
        for negatives in arguments.negatives:
            measured = record.measure(
                f"{items}/{negatives}",
                lambda i=items, n=negatives: _measured(i, n, arguments.repeats),
            )
            rows += _rows(items, negatives, measured)
            record.write_rows(rows)
    record.show(COLUMNS, CAPTION)
    panels = {
        f"{items:,} items": [row for row in rows if row["items"] == items]
        for items in arguments.items
    }
    label = "seconds a batch, lower is better; × = times as fast as plain"
    record.draw(draw_bars(panels, "seconds", label, "ratio_to_plain", "plain"))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m experiments.speed.sampled")
    add_arguments(parser)
    parser.add_argument("--items", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--negatives", type=int, nargs="+", default=[1, 256], help="a state")
    parser.add_argument("--repeats", type=int, default=7, help="of which the median counts")
    return parser


def _measured(num_items: int, num_negatives: int, repeats: int) -> Row:
    """Seconds of each way, and how far its numbers are from the plain ones."""
    generator = torch.Generator().manual_seed(1)
    state_MD = torch.randn(STATES, SIZE, generator=generator).requires_grad_()
    weight_ID = torch.randn(num_items, SIZE, generator=generator).requires_grad_()
    size = (STATES, 1 + num_negatives)
    item_MC = torch.randint(num_items, size, generator=generator)
    slope_MC = torch.randn(size, generator=generator)

    def once(dots: Dots) -> list[Tensor]:
        dot_MC = dots(state_MD, weight_ID, item_MC)
        return [dot_MC.detach(), *torch.autograd.grad(dot_MC, (state_MD, weight_ID), slope_MC)]

    expected, found = (once(dots) for dots in WAYS.values())
    pairs = zip(found, expected, strict=True)
    row: Row = {
        "difference": max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs),
    }
    for name, dots in WAYS.items():
        times = [seconds_of(lambda d=dots: once(d), "cpu") for _ in range(repeats)]
        row[name] = statistics.median(times)
    return row


def _rows(items: int, negatives: int, measured: Row) -> list[Row]:
    return [
        {
            "variant": f"{name}, {negatives} sampled",
            "items": items,
            "seconds": measured[name],
            "ratio_to_plain": measured["plain"] / measured[name],
            "difference": measured["difference"] if name != "plain" else None,
        }
        for name in WAYS
    ]


COLUMNS: Columns = {
    "variant": lambda row: row["variant"],
    "items": lambda row: f"{row['items']:,}",
    "seconds": number("seconds", ".4f"),
    "× plain": number("ratio_to_plain", ".1f"),
    "largest relative Δ": number("difference", ".1e"),
}
CAPTION = (
    f"{STATES} states of {SIZE} numbers, forward and backward, float32; the median. Δ: of dot "
    "products and both gradients, relative to the largest."
)

if __name__ == "__main__":
    main(sys.argv[1:])
