"""What a supervised title costs: a row's last alone, every item in place, every item in branches.

    python -m experiments.speed.targets                 # full size, resumable
    python -m experiments.speed.targets --quick
    python -m experiments.speed.targets --model tiny    # seconds

The same rows in every variant, on the fast path and on the plain one (`fast=false`): padded
prompts, one for each branch. Equality comes first: the loss and every LoRA gradient.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor
from tqdm import tqdm

from experiments.speed.floor import seconds_of
from experiments.speed.record import (
    Columns,
    Record,
    Row,
    add_arguments,
    add_workload_arguments,
    draw_bars,
    number,
    parse,
)
from experiments.speed.train import TOLERANCE
from experiments.speed.train_variants import SMALL, stir_adapters
from experiments.speed.workload import Workload
from hatllm.config import Config
from hatllm.data.datamodule import TrainingBatches
from hatllm.data.prompt import Batch
from hatllm.training.lightning_module import Recommender

FORMS = {
    "last": ["data.train_targets=last"],
    "in place": ["data.train_targets=every", "data.target_form=in_place"],
    "branches": ["data.train_targets=every", "data.target_form=branches"],
}
PATHS = {"plain ": "fast=false", "": "fast=true"}
QUICK = {"steps": 1, "dtype": ["float32"]}


def main(argv: Sequence[str]) -> None:
    """Run the benchmark with a command line."""
    arguments = parse(parser(), argv, QUICK)
    record = Record("targets", arguments, argv)
    rows: list[Row] = []
    for dtype in arguments.dtype:
        bench = Bench(arguments, dtype)
        parts = {
            (path, form): [
                record.measure(
                    f"{dtype}/{path}{form}/{step}",
                    lambda b=bench, p=path, f=form, s=step: b.measured(p, f, s),
                )
                for step in tqdm(range(arguments.steps), desc=f"{path}{form}, {dtype}")
            ]
            for form in FORMS
            for path in PATHS
        }
        rows += _rows(dtype, parts)
        record.write_rows(rows)
    record.show(COLUMNS, CAPTION)
    panels = {f"{d}, supervised titles a second": [r for r in rows if r["dtype"] == d]
              for d in arguments.dtype}  # fmt: skip
    label = "higher is better; × = times today's one title a row"
    record.draw(draw_bars(panels, "titles_per_s", label, "ratio_to_last", "plain"))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m experiments.speed.targets")
    add_arguments(parser)
    add_workload_arguments(parser)
    parser.add_argument("--steps", type=int, default=5, help="batches checked and timed")
    parser.add_argument(
        "--dtype", nargs="+", choices=("float32", "bfloat16"), default=["float32"],
        help="of the frozen weights; adapters are always float32",
    )  # fmt: skip
    return parser


class Bench:
    """All variants over the same rows, with the same adapters."""

    def __init__(self, arguments: argparse.Namespace, dtype: str) -> None:
        self.workload = Workload(
            arguments, dtype, "scale=laptop", "mask=hatllm", "loss=msl", "model.tuning=lora",
            "model.lora.dropout=0.0",
        )  # fmt: skip
        self.device = arguments.device
        self.examples = self.workload.rows("train", arguments.steps * SMALL)

    @cached_property
    def lm(self) -> Any:
        """The model, with adapters that are not 0, so that no gradient is 0 by construction."""
        lm = self.workload.lm.train()
        stir_adapters(lm.model)
        return lm

    @cached_property
    def optimizer(self) -> torch.optim.Optimizer:
        """Its learning rate is 0, so that every variant sees the same weights."""
        tuned = [p for p in self.lm.parameters() if p.requires_grad]
        return torch.optim.AdamW(tuned, lr=0.0, weight_decay=0.0)

    def measured(self, path: str, form: str, step: int) -> Row:
        """One batch: a step that is timed after one that is not, and how far it is from plain."""
        config = self.workload.config(*FORMS[form], PATHS[path])
        rows = np.arange(step * SMALL, (step + 1) * SMALL)
        batch = TrainingBatches(self.examples, self.workload.book, config).batch(rows)
        batch = batch.to(self.device)
        loss, gradients = self._gradients(config, batch)
        row: Row = {"rows": SMALL, "titles": len(batch.title_item_J)}
        if not path:
            plain = self.workload.config(*FORMS[form], PATHS["plain "])
            expected, theirs = self._gradients(plain, batch)
            row["loss"] = abs(loss - expected) / abs(expected)
            row["gradient"] = max(
                float((ours - other).abs().max() / other.abs().max())
                for ours, other in zip(gradients, theirs, strict=True)
            )
        row["seconds"] = seconds_of(lambda: self._step(config, batch), self.device)
        return row

    def _loss(self, config: Config, batch: Batch) -> Tensor:
        catalogue = self.workload.parts.catalogue
        recommender = Recommender(self.lm, catalogue, config, 1, pl.DataFrame())
        loss: Tensor = recommender.title_loss(batch)
        return loss

    def _gradients(self, config: Config, batch: Batch) -> tuple[float, list[Tensor]]:
        loss = self._loss(config, batch)
        loss.backward()
        found = [p.grad.clone() for p in self.lm.parameters() if p.grad is not None]
        self.optimizer.zero_grad(set_to_none=True)
        return float(loss.detach()), found

    def _step(self, config: Config, batch: Batch) -> None:
        self._loss(config, batch).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def _rows(dtype: str, parts: dict[tuple[str, str], list[Row]]) -> list[Row]:
    # The median step, because a step that was disturbed is no step of the variant's.
    rates = {
        name: statistics.median(part["titles"] / part["seconds"] for part in measured)
        for name, measured in parts.items()
    }
    found = []
    for (path, form), measured in parts.items():
        titles = sum(part["titles"] for part in measured) / sum(part["rows"] for part in measured)
        found.append(
            {
                "variant": f"{path}{form}",
                "dtype": dtype,
                "steps": len(measured),
                "titles_per_row": titles,
                "rows_per_s": rates[path, form] / titles,
                "titles_per_s": rates[path, form],
                "ratio_to_last": rates[path, form] / rates["", "last"],
                "ratio_to_plain": rates[path, form] / rates["plain ", form],
                "tolerance": TOLERANCE,
                "max_relative_loss_difference": max(part.get("loss", 0.0) for part in measured),
                "max_relative_gradient_difference": max(
                    part.get("gradient", 0.0) for part in measured
                ),
            }
        )
    return found


def _equality_text(row: Row) -> str:
    if row["variant"].startswith("plain"):
        return "–"
    loss, gradient = (row[f"max_relative_{what}_difference"] for what in ("loss", "gradient"))
    return f"{loss:.1e}, {gradient:.1e} ({row['steps']} batches)"


COLUMNS: Columns = {
    "variant": lambda row: row["variant"],
    "dtype": lambda row: row["dtype"],
    "titles/row": number("titles_per_row", ".2f"),
    "rows/s": number("rows_per_s", ".2f"),
    "titles/s": number("titles_per_s", ".2f"),
    "× last": number("ratio_to_last", ".2f"),
    "× plain": number("ratio_to_plain", ".2f"),
    "largest relative Δ: loss, gradient": _equality_text,
}
CAPTION = (
    "mask=hatllm, loss=msl, LoRA, 8 rows a batch. titles/s: titles whose loss is taken, a second "
    "of a step (forward, backward, AdamW). × last: against the fast path with one title a row. × "
    "plain: against padded prompts, one for each branch, fast=false."
)

if __name__ == "__main__":
    main(sys.argv[1:])
