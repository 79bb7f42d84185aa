"""Decoders of the same finished runs side by side, from what `task=evaluate` left in their folders.

    python run.py task=evaluate task.run_folder=outputs/RUN decode=generate data.test_rows=500
    python experiments/paper/main/decoders.py --output decoders.md outputs/RUN [outputs/RUN ...]

Rows: every label of the runs under every decoder, the run's own predictions cut to the rows that
were evaluated, over the seeds that were evaluated with that decoder. Differences are paired by
example over the seeds that both have, with 95 % intervals over users.
"""

import argparse
import shlex
from collections.abc import Mapping
from pathlib import Path

import polars as pl

from hatllm.metrics.from_predictions import example_metrics
from hatllm.metrics.uncertainty import summarize_differences
from hatllm.runs.run_files import (
    EVALUATIONS,
    METRICS_FILE,
    read_environment,
    read_identity,
    read_predictions,
)
from hatllm.tables.numbers import MEANS, arrow, columns_of, format_difference, format_row
from hatllm.tables.paired_arms import numbers_of, paired_examples
from hatllm.tables.writers import markdown_table

METRICS = ("HR@5", "HR@10", "NDCG@10")
OWN = "the run's own"

Tables = dict[tuple[str, str], dict[int, pl.DataFrame]]  # (label, decoder) -> seed -> predictions


def read_runs(runs: list[Path]) -> Tables:
    """Predictions of the runs and of their evaluations, all cut to the rows of the smallest.

    Raises:
        ValueError: If a run is not finished or has no evaluation, or rows differ.
    """
    found: Tables = {}
    for run in runs:
        identity = read_identity(run, "label", "seed")
        label, seed = identity["label"], identity["seed"]
        found.setdefault((label, OWN), {})[seed] = read_predictions(run)
        evaluations = sorted(run.glob(f"{EVALUATIONS}/*/{METRICS_FILE}"))
        if not evaluations:
            raise ValueError(f"{run} has no evaluations/: run task=evaluate on it first")
        for path in evaluations:
            decoder = _decoder(path.parent)
            found.setdefault((label, decoder), {})[seed] = read_predictions(path.parent)
    tables = [table for by_seed in found.values() for table in by_seed.values()]
    rows = min(tables, key=len).select("example_id")
    cut = {
        key: {seed: table.join(rows, on="example_id", how="semi") for seed, table in seeds.items()}
        for key, seeds in found.items()
    }
    if any(len(table) < len(rows) for seeds in cut.values() for table in seeds.values()):
        raise ValueError("the evaluations answered different rows: give them one data.test_rows")
    return cut


def _decoder(evaluation: Path) -> str:
    """The words of the evaluation's command that name its decoder."""
    command = read_environment(evaluation)["command"]
    return " ".join(word for word in shlex.split(command) if word.startswith("decode"))


def table_of(tables: Tables) -> str:
    """One row a label and decoder: metrics, and how many titles stand in first place."""
    rows = []
    for (label, decoder), by_seed in sorted(tables.items(), key=lambda entry: entry[0]):
        values = {seed: example_metrics(table, (5, 10)) for seed, table in by_seed.items()}
        numbers = numbers_of(values, METRICS)
        cells = [label, decoder]
        cells += [format_row(columns_of(name, numbers[name]), name) for name in METRICS]
        firsts = [table["top_items"].list.first().n_unique() for table in by_seed.values()]
        rows.append([*cells, f"{sum(firsts) / len(firsts):.0f}", str(len(by_seed))])
    head = ["masks", "decoder", *map(arrow, METRICS), "first titles", "seeds"]
    return markdown_table(head, rows)


def differences_of(tables: Tables) -> str:
    """Each decoder against the run's own, and under each decoder the labels against the first."""
    values = {
        key: {seed: example_metrics(table, (5, 10)) for seed, table in by_seed.items()}
        for key, by_seed in tables.items()
    }
    first = min(label for label, _ in values)
    pairs = [((label, decoder), (label, OWN)) for label, decoder in values if decoder != OWN]
    pairs += [
        ((label, decoder), (first, decoder))
        for label, decoder in values
        if label != first and (first, decoder) in values
    ]
    rows = [
        [f"{one[0]}, {one[1]}", f"{other[0]}, {other[1]}", *cells]
        for one, other in sorted(pairs)
        if (cells := _differences(values[one], values[other]))
    ]
    return markdown_table(["", "minus", "HR@10", "NDCG@10", "seeds"], rows)


def _differences(
    one: Mapping[int, pl.DataFrame], other: Mapping[int, pl.DataFrame]
) -> list[str] | None:
    cells = []
    for metric in ("HR@10", "NDCG@10"):
        examples = paired_examples(metric, one, other)
        if examples is None:
            return None
        found = summarize_differences(examples)
        cells.append(format_difference(metric, found))
    return [*cells, str(len(one.keys() & other.keys()))]


def main() -> None:
    """Print both tables and write them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, help="finished runs with evaluations")
    parser.add_argument("--output", type=Path, help="Markdown file to write")
    args = parser.parse_args()
    try:
        tables = read_runs(args.runs)
    except ValueError as error:
        parser.error(str(error))
    one = next(iter(next(iter(tables.values())).values()))
    size = f"{len(one):,} rows of {one['user_id'].n_unique():,} users"
    text = f"{size}.\n\n{table_of(tables)}\n\n{MEANS}.\n\n{differences_of(tables)}\n"
    print(text)
    if args.output is not None:
        args.output.write_text(text)


if __name__ == "__main__":
    main()
