"""Training steps, variants side by side: a plain fine-tuning loop and the fast path.

    python -m experiments.speed.train                   # full size, resumable
    python -m experiments.speed.train --quick           # minutes
    python -m experiments.speed.train --model tiny      # seconds

The plain loop: padded full prompts, logits of the whole vocabulary at all positions, MSL through a
mask as wide as the vocabulary; for `causal` a transformers model that HatLLM never touched.
Equality comes first: the loss and every LoRA gradient. Timed is a step: forward, backward, AdamW.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace

import torch
from tqdm import tqdm

from experiments.speed.floor import Sizes, counted, matrix_rates, seconds_of
from experiments.speed.memory import in_own_process, peak_above_start
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
from experiments.speed.train_variants import FAST, VARIANTS, Bench, Variant
from experiments.speed.workload import mean_keys
from hatllm.data.prompt import Batch

TOLERANCE = 1e-4  # relative, float32
QUICK = {
    "steps": 1, "check_batches": 1, "large_batches": 1, "large_rows": 16, "dtype": ["float32"],
    "memory": False,
}  # fmt: skip


def main(argv: Sequence[str]) -> None:
    """Run the benchmark with a command line."""
    arguments = parse(parser(), argv, QUICK)
    if arguments.memory_of is not None:
        print(_memory_json(arguments))
        return
    record = Record("train", arguments, argv)
    rows: list[Row] = []
    for dtype in arguments.dtype:
        bench = Bench(arguments, dtype)
        rates = record.measure(
            f"{dtype}/matrix rates", lambda b=bench: matrix_rates(b.workload.dtype, b.device, 40)
        )
        equality = {v.name: _equality(bench, record, v, arguments) for v in FAST}
        times = _times(bench, record, arguments)
        memory = _memory(record, argv, dtype) if arguments.memory else {}
        rows += _rows(dtype, times, rates["best"], equality, memory)
        record.write_rows(rows)
    record.show(COLUMNS, CAPTION)
    panels = {f"{d}, rows a second": [r for r in rows if r["dtype"] == d] for d in arguments.dtype}
    label = "higher is better; × = times the plain loop's"
    record.draw(draw_bars(panels, "rows_per_s", label, "ratio_to_plain", "plain"))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m experiments.speed.train")
    add_arguments(parser)
    add_workload_arguments(parser)
    parser.add_argument("--steps", type=int, default=10, help="batches timed")
    parser.add_argument(
        "--check-batches", type=int, default=10, help="batches checked for equality"
    )
    parser.add_argument(
        "--large-batches", type=int, default=3, help="large ones: checked and timed"
    )
    parser.add_argument("--large-rows", type=int, default=64, help="rows of a large batch")
    parser.add_argument(
        "--dtype", nargs="+", choices=("float32", "bfloat16"), default=["float32", "bfloat16"],
        help="of the frozen weights; adapters are always float32",
    )  # fmt: skip
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="leave it out")
    parser.add_argument("--memory-of", choices=list(VARIANTS), help=argparse.SUPPRESS)
    return parser


# --- Equality ------------------------------------------------------------------------------------


def _equality(bench: Bench, record: Record, variant: Variant, arguments: argparse.Namespace) -> Row:
    """Largest relative differences of loss and gradients over some batches."""
    if variant.is_large:
        pairs = [([whole], small) for whole, small in bench.large_batches(arguments.large_batches)]
    else:
        pairs = [([batch], [batch]) for batch in bench.batches(arguments.check_batches)]
    parts = []
    for place, (ours, theirs) in enumerate(tqdm(pairs, desc=f"equality, {variant.name}")):
        key = f"{bench.workload.dtype}/equality/{variant.name}/{place}"
        parts.append(
            record.measure(
                key, lambda p=place, o=ours, t=theirs: _compared(bench, variant, p, o, t)
            )
        )
    worst = max(parts, key=lambda part: part["gradient"])
    return {
        "to": variant.plain.name,
        "batches": len(parts),
        "tolerance": TOLERANCE,
        "tensors": parts[0]["tensors"],
        "max_relative_loss_difference": max(part["loss"] for part in parts),
        "max_relative_gradient_difference": worst["gradient"],
        "worst_tensor": worst["worst_tensor"],
    }


def _compared(
    bench: Bench, variant: Variant, place: int, ours: Sequence[Batch], theirs: Sequence[Batch]
) -> Row:
    """A gradient's difference is relative to the largest entry of its tensor."""
    our_loss, our_gradients = bench.gradients(variant, ours)
    their_loss, their_gradients = bench.gradients_once(variant.plain, place, theirs)
    names = {name: _short(name) for name in our_gradients}
    other = {_short(name): gradient for name, gradient in their_gradients.items()}
    if sorted(names.values()) != sorted(other):
        raise RuntimeError(f"{variant.name} and its plain loop tune different adapters")
    differences = {
        short: float((our_gradients[name] - other[short]).abs().max() / other[short].abs().max())
        for name, short in names.items()
    }
    worst = max(differences, key=differences.__getitem__)
    return {
        "loss": abs(our_loss - their_loss) / abs(their_loss),
        "gradient": differences[worst],
        "worst_tensor": worst,
        "tensors": len(differences),
    }


def _short(name: str) -> str:
    """A parameter's name from its layer on."""
    return name[name.index("layers.") :] if "layers." in name else name


# --- Time ----------------------------------------------------------------------------------------


def _times(bench: Bench, record: Record, arguments: argparse.Namespace) -> dict[str, list[Row]]:
    """Seconds and work of every variant; a batch goes through all variants in turn."""
    times: dict[str, list[Row]] = {name: [] for name in VARIANTS}
    dtype = bench.workload.dtype
    for place, batch in enumerate(tqdm(bench.batches(arguments.steps), desc=f"steps, {dtype}")):
        for name, variant in VARIANTS.items():
            if not variant.is_large:
                key = f"{dtype}/times/{name}/{place}"
                times[name].append(
                    record.measure(key, lambda v=variant, b=batch: _timed(bench, v, [b]))
                )
    large = bench.large_batches(arguments.large_batches)
    for place, (whole, small) in enumerate(tqdm(large, desc=f"large steps, {dtype}")):
        for name, variant in VARIANTS.items():
            if variant.is_large:
                batches = small[:2] if variant.is_plain else [whole]
                key = f"{dtype}/times/{name}/{place}"
                times[name].append(
                    record.measure(key, lambda v=variant, b=batches: _timed(bench, v, b))
                )
    return times


def _timed(bench: Bench, variant: Variant, batches: Sequence[Batch]) -> Row:
    """Time some steps; those of a fast path after one that counts and warms and is not timed."""
    assert bench.lm is not None
    backbone = bench.backbone(variant)

    def timed() -> list[float]:
        return [
            seconds_of(lambda b=batch: bench.step(variant, b), bench.device) for batch in batches
        ]

    with counted(backbone) as work:
        seconds = timed()
    if not variant.is_plain:
        seconds = timed()
    num_rows = sum(batch.num_rows for batch in batches)
    num_prefix = len(bench.workload.book.prefix)
    row = {
        "rows": num_rows,
        "seconds": seconds,
        "tokens_per_row": work.layer_tokens / len(backbone.get_decoder().layers) / num_rows,
    }  # fmt: skip
    if not variant.is_plain:
        keys = mean_keys(batches[0], num_prefix, 0)
        row["gflop"] = Sizes.of(backbone).training_flops(work, keys) / 1e9
    return row


def _rows(
    dtype: str,
    times: dict[str, list[Row]],
    rate: float,
    equality: dict[str, Row],
    memory: dict[str, Row],
) -> list[Row]:
    def rate_of(name: str) -> float:
        # The median step, because a step that was disturbed is no step of the variant's.
        each = [sum(t["seconds"]) / t["rows"] for t in times[name]]
        return 1 / statistics.median(each)

    rows = []
    for name, variant in VARIANTS.items():
        fast = replace(variant, is_plain=False, is_compiled=False).name
        gflop_per_row = sum(t["gflop"] for t in times[fast]) / sum(t["rows"] for t in times[fast])
        extra, plain_extra = (memory.get(n, {}).get("extra_mb") for n in (name, variant.plain.name))
        rows.append(
            {
                "variant": name,
                "dtype": dtype,
                "steps": sum(len(t["seconds"]) for t in times[name]),
                "rows_per_batch": times[name][0]["rows"] // len(times[name][0]["seconds"]),
                "rows_per_s": rate_of(name),
                "ratio_to_plain": rate_of(name) / rate_of(variant.plain.name),
                "gflop_per_row": gflop_per_row,
                "matrix_gflop_per_s": rate,
                "share_of_floor": gflop_per_row / rate * rate_of(name) if gflop_per_row else None,
                "tokens_per_row": statistics.mean(t["tokens_per_row"] for t in times[name]),
                "extra_memory_mb": extra,
                "memory_ratio_to_plain": extra / plain_extra if extra and plain_extra else None,
                "equality": equality.get(name),
            }
        )
    return rows


# --- Memory --------------------------------------------------------------------------------------


def _memory(record: Record, argv: Sequence[str], dtype: str) -> dict[str, Row]:
    found = {}
    for name in tqdm(VARIANTS, desc=f"memory, {dtype}", unit="process"):
        words = ["--memory-of", name, *argv, "--dtype", dtype]
        found[name] = record.measure(
            f"{dtype}/memory/{name}", lambda w=words: in_own_process("train", w)
        )
    return found


def _memory_json(arguments: argparse.Namespace) -> str:
    """Two steps of one variant, the second with the optimizer's state already there."""
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    bench, variant = Bench(arguments, arguments.dtype[0]), VARIANTS[arguments.memory_of]
    if variant.is_large:
        whole, small = bench.large_batches(1)[0]
        batches = small[:2] if variant.is_plain else [whole, whole]
    else:
        batches = bench.batches(2)
    assert bench.model(variant) is not None and bench.field_trie
    if variant.is_compiled:
        bench.step(variant, bench.batches(1)[0])  # compiling needs memory of its own, once

    def steps() -> None:
        for batch in batches:
            bench.step(variant, batch)

    return json.dumps(peak_above_start(steps, bench.device))


# --- Table ---------------------------------------------------------------------------------------


def _equality_text(row: Row) -> str:
    found = row["equality"]
    if not found:
        return "–"
    loss, gradient = (found[f"max_relative_{what}_difference"] for what in ("loss", "gradient"))
    return f"{loss:.1e}, {gradient:.1e} ({found['batches']} batches)"


COLUMNS: Columns = {
    "variant": lambda row: row["variant"],
    "dtype": lambda row: row["dtype"],
    "rows/batch": number("rows_per_batch", "d"),
    "rows/s": number("rows_per_s"),
    "× plain": number("ratio_to_plain", ".2f"),
    "of the floor": number("share_of_floor", ".0%"),
    "tokens/row": number("tokens_per_row", ".0f"),
    "extra MB": number("extra_memory_mb", ".0f"),
    "memory ÷ plain": number("memory_ratio_to_plain", ".2f"),
    "largest relative Δ: loss, gradient": _equality_text,
}
CAPTION = (
    "of the floor: needed operations (forward, and input gradients) over the measured "
    "matrix-product rate, by the time taken; a plain loop is held against what the fast path "
    "needs. tokens/row: through the layers, averaged over layers, padding included where a loop "
    "has it. extra MB: peak of two steps above the loaded model, a process of its own. large: rows "
    "sorted by user; its plain loop takes the same rows 8 at a time. compile: the layers through "
    "torch.compile (model.compile=true)."
)

if __name__ == "__main__":
    main(sys.argv[1:])
