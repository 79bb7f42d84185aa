"""Decoding, variants side by side: transformers' `generate`, our plain path, the fast paths.

    python -m experiments.speed.decode                  # full size, resumable
    python -m experiments.speed.decode --quick          # minutes
    python -m experiments.speed.decode --model tiny     # seconds

Equality comes first: `causal/vocab` against `generate`, everything else against the plain path.
Then each batch of users is searched by every variant in turn, so that a machine that slows down
slows all of them. Timed is the beam search from token ids to titles; tokenising, making the batch
and scoring the target are not.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence

import torch
from tqdm import tqdm

from experiments.speed.decode_variants import FAST, FIELD, PLAIN, VARIANTS, Bench
from experiments.speed.equality import compare_answers, joined
from experiments.speed.floor import Sizes, counted, matrix_rates, seconds_of
from experiments.speed.memory import in_own_process, peak_above_start
from experiments.speed.record import (
    Columns,
    Record,
    Row,
    add_arguments,
    add_workload_arguments,
    console,
    draw_bars,
    number,
    parse,
)
from experiments.speed.workload import mean_keys
from hatllm.data.prompt import Batch

# Whose work is the floor of a variant that does more than it needs to.
NEEDS_OF = {FIELD: "causal/vocab"} | {name: name.removeprefix("plain ") for name in PLAIN}
TOLERANCE = {FIELD: 1e-3, "plain": 1e-4}  # nats, whole title
QUICK = {
    "users": 8, "check_users": 4, "plain_users": 4, "other_users": 1, "repeats": 1, "memory": False,
}  # fmt: skip


def main(argv: Sequence[str]) -> None:
    """Run the benchmark with a command line."""
    arguments = parse(parser(), argv, QUICK)
    if arguments.memory_of is not None:
        print(_memory_json(arguments))
        return
    record = Record("decode", arguments, argv)
    rows: list[Row] = []
    for dtype in arguments.dtype:
        bench = Bench(arguments, dtype)
        rates = record.measure(
            f"{dtype}/matrix rates", lambda b=bench: matrix_rates(b.dtype, b.device, 40)
        )
        equality = _equality(bench, record, arguments, exact=dtype == "float32")
        times = _times(bench, record, arguments)
        memory = _memory(record, arguments, argv, dtype) if arguments.memory else {}
        rows += _rows(bench, times, rates["best"], equality, memory)
        record.write_rows(rows)
        bench.close()
    record.show(COLUMNS, CAPTION)
    panels = {f"{d}, seconds a user": [r for r in rows if r["dtype"] == d] for d in arguments.dtype}
    label = "lower is better; × = times as fast as generate"
    record.draw(draw_bars(panels, "seconds_per_user", label, "ratio_to_generate", FIELD))
    _name_differences(rows)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m experiments.speed.decode")
    add_arguments(parser)
    add_workload_arguments(parser)
    parser.add_argument("--users", type=int, default=32, help="users timed")
    parser.add_argument("--check-users", type=int, default=200, help="compared with generate")
    parser.add_argument(
        "--plain-users", type=int, default=1000, help="compared with the plain path"
    )
    parser.add_argument(
        "--other-users", type=int, default=16, help="of the other masks, and in other precisions"
    )
    parser.add_argument("--rows-per-batch", type=int, default=8, help="users of a batch")
    parser.add_argument("--repeats", type=int, default=5, help="timings of a fast path; the median")
    parser.add_argument(
        "--dtype", nargs="+", choices=("float32", "bfloat16"), default=["float32"],
        help="of the weights; equality at full size in float32 only",
    )  # fmt: skip
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="leave it out")
    parser.add_argument("--memory-of", choices=VARIANTS, help=argparse.SUPPRESS)
    return parser


# --- Equality ------------------------------------------------------------------------------------


def _equality(
    bench: Bench, record: Record, arguments: argparse.Namespace, exact: bool
) -> dict[str, Row]:
    """The comparison of every fast variant, by its name."""
    found = {}
    num_users = arguments.check_users if exact else arguments.other_users
    found["causal/vocab"] = _compared(bench, record, FIELD, ["causal/vocab"], num_users, exact)[0]
    num_users = arguments.plain_users if exact else arguments.other_users
    segments = [name for name in FAST if name.startswith("hatllm_segments")]
    plain = "plain hatllm_segments/trie"
    found |= zip(segments, _compared(bench, record, plain, segments, num_users, exact), strict=True)
    for name in ("causal/trie", "hatllm/trie"):
        num_users = arguments.other_users
        found[name] = _compared(bench, record, f"plain {name}", [name], num_users, exact)[0]
    return found


def _compared(
    bench: Bench, record: Record, reference: str, names: list[str], num_users: int, exact: bool
) -> list[Row]:
    """Each of the named variants against the reference, batch by batch."""
    tolerance = TOLERANCE["plain" if reference.startswith("plain") else reference]
    parts: dict[str, list[Row]] = {name: [] for name in names}
    label = f"{reference}, {bench.dtype}"
    for place, batch in enumerate(tqdm(bench.batches(num_users), desc=label, unit="batch")):

        def compare(batch: Batch = batch) -> Row:
            theirs, users = bench.answers(reference, batch), batch.example_id_B.tolist()
            compared = {}
            for name in names:
                ours = bench.answers(name, batch)
                compared[name] = compare_answers(ours, theirs, users, tolerance)
                if exact and reference == FIELD and compared[name]["differing"]:
                    _explain(bench, name, batch, compared[name]["differing"])
            return compared

        key = f"{bench.dtype}/equality/{reference}/{place}"
        for name, part in record.measure(key, compare).items():
            parts[name].append(part)
    return [{"to": reference, "tolerance": tolerance, **joined(parts[name])} for name in names]


def _explain(bench: Bench, name: str, batch: Batch, differing: list[Row]) -> None:
    """Say of each differing user whether float64 settles it: then rounding was the reason."""
    bench.workload.lm.double()
    bench.field.model.double()
    kept, bench.scorers = bench.scorers, {}
    try:
        ours, theirs = bench.answers(name, batch), bench.answers(FIELD, batch)
    finally:
        bench.workload.lm.float()
        bench.field.model.float()
        bench.scorers = kept
    users = batch.example_id_B.tolist()
    again = compare_answers(ours, theirs, users, TOLERANCE[FIELD])
    still = {entry["user"] for entry in again["differing"]}
    for entry in differing:
        entry["same_in_float64"] = entry["user"] not in still


def _name_differences(rows: list[Row]) -> None:
    for row in rows:
        for entry in row["equality"].get("differing", []) if row["equality"] else []:
            console.print(f"{row['variant']} ({row['dtype']}) differs: {entry}")


# --- Time ----------------------------------------------------------------------------------------


def _times(bench: Bench, record: Record, arguments: argparse.Namespace) -> dict[str, list[Row]]:
    """Seconds and work of every variant on every batch; a batch goes through all variants."""
    batches = bench.batches(arguments.users)
    times: dict[str, list[Row]] = {name: [] for name in VARIANTS}
    with tqdm(total=len(batches) * len(VARIANTS), desc=f"times, {bench.dtype}") as bar:
        for place, batch in enumerate(batches):
            for name in VARIANTS:
                key = f"{bench.dtype}/times/{name}/{place}"
                repeats = arguments.repeats if name in FAST else 1
                times[name].append(
                    record.measure(key, lambda n=name, b=batch, r=repeats: _timed(bench, n, b, r))
                )
                bar.update()
    return times


def _timed(bench: Bench, name: str, batch: Batch, repeats: int) -> Row:
    """Time one batch; fast variants get a first pass that counts and warms, and is not timed."""
    if name != FIELD:
        with bench.ready(name):
            pass
    with counted(bench.backbone(name)) as work:
        seconds = [seconds_of(lambda: bench.search(name, batch), bench.device)]
    if name in FAST:
        seconds = [
            seconds_of(lambda: bench.search(name, batch), bench.device) for _ in range(repeats)
        ]
    layers, num_prefix = bench.layers_run(name), len(bench.workload.book.prefix)
    tokens = work.layer_tokens / layers
    row = {
        "users": batch.num_rows,
        "seconds": seconds,
        "tokens": tokens,
        "layers_run": layers,
        "setup_s": bench.setup_s.get(name),
    }
    if name in FAST:
        own = int(batch.valid_BL.sum()) - num_prefix * batch.num_rows
        keys = mean_keys(batch, num_prefix, max(0, round(tokens - own)))
        row["gflop"] = Sizes.of(bench.backbone(name)).forward_flops(work, keys) / 1e9
    return row


def _rows(
    bench: Bench,
    times: dict[str, list[Row]],
    rate: float,
    equality: dict[str, Row],
    memory: dict[str, Row],
) -> list[Row]:
    seconds = {n: sum(statistics.median(t["seconds"]) for t in times[n]) for n in VARIANTS}
    users = sum(t["users"] for t in times[FIELD])
    rows = []
    for name in VARIANTS:
        gflop = sum(t["gflop"] for t in times[NEEDS_OF.get(name, name)])
        setup = [t["setup_s"] for t in times[name] if t["setup_s"] is not None]
        rows.append(
            {
                "variant": name,
                "dtype": bench.dtype,
                "users": users,
                "users_per_s": users / seconds[name],
                "seconds_per_user": seconds[name] / users,
                "ratio_to_generate": seconds[FIELD] / seconds[name],
                "gflop_per_user": gflop / users,
                "matrix_gflop_per_s": rate,
                # Nothing was counted where the layers are not called as modules.
                "share_of_floor": gflop / rate / seconds[name] if gflop else None,
                "tokens_per_user": sum(t["tokens"] for t in times[name]) / users,
                "layers_run": times[name][0]["layers_run"],
                "setup_s": max(setup, default=None),
                "extra_memory_mb": memory.get(name, {}).get("extra_mb"),
                "equality": equality.get(name),
            }
        )
    return rows


# --- Memory --------------------------------------------------------------------------------------


def _memory(
    record: Record, arguments: argparse.Namespace, argv: Sequence[str], dtype: str
) -> dict[str, Row]:
    found = {}
    for name in tqdm(VARIANTS, desc=f"memory, {dtype}", unit="process"):
        words = ["--memory-of", name, *argv, "--dtype", dtype]
        found[name] = record.measure(
            f"{dtype}/memory/{name}", lambda w=words: in_own_process("decode", w)
        )
    return found


def _memory_json(arguments: argparse.Namespace) -> str:
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    bench, name = Bench(arguments, arguments.dtype[0]), arguments.memory_of
    batch = bench.batches(arguments.rows_per_batch)[0]
    if name == FIELD:
        assert bench.field
    else:
        with bench.ready(name):
            pass
    found = peak_above_start(lambda: bench.search(name, batch), bench.device)
    bench.close()
    return json.dumps(found)


# --- Table ---------------------------------------------------------------------------------------


def _equality_text(row: Row) -> str:
    found = row["equality"]
    if not found or not found["users"]:
        return "–"
    return (
        f"{found['same_top']}/{found['users']} as {found['to'].split()[0]}, "
        f"{found['max_abs_difference']:.1e}"
    )


COLUMNS: Columns = {
    "variant": lambda row: row["variant"],
    "dtype": lambda row: row["dtype"],
    "users/s": number("users_per_s"),
    "s/user": number("seconds_per_user"),
    "× generate": number("ratio_to_generate"),
    "of the floor": number("share_of_floor", ".0%"),
    "tokens/user": number("tokens_per_user", ".0f"),
    "extra MB": number("extra_memory_mb", ".0f"),
    "set-up s": number("setup_s", ".1f"),
    "same top 10, largest Δ log-prob": _equality_text,
}
CAPTION = (
    "of the floor: needed operations over the measured matrix-product rate, by the time taken; "
    "generate and plain paths are held against what the fast path needs. tokens/user: tokens "
    "through the layers that run. extra MB: peak above the loaded model, one batch, a process of "
    "its own. set-up: once for a model (constant prefix, states of the catalogue)."
)

if __name__ == "__main__":
    main(sys.argv[1:])
