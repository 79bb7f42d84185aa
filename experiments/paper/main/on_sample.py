"""Metrics of finished id-based runs on the rows that data.test_rows=N would have kept.

An id-based model answers every test row in seconds and learns from all train rows whatever
`data.test_rows` is, so its predictions, cut to the sample, are those of the smaller run. This sets
runs of paper/baselines beside LLM arms that answered a sample.

    python experiments/paper/main/on_sample.py --test-rows 2000 outputs/RUN [outputs/RUN ...]
"""

import argparse
from dataclasses import replace
from pathlib import Path

import polars as pl
from omegaconf import OmegaConf

from hatllm.config import Config
from hatllm.data.prepare import load_dataset
from hatllm.metrics.from_predictions import example_metrics
from hatllm.runs.folder import load_config

METRICS = ("HR@5", "HR@10", "NDCG@5", "NDCG@10")


def metrics_on_sample(run: Path, test_rows: int) -> dict[str, float]:
    """METRICS of a finished run over the test rows that a sample of this size holds.

    Raises:
        ValueError: If the run did not answer some of them.
    """
    config = OmegaConf.to_object(load_config(run, "runs"))
    assert isinstance(config, Config)
    smaller = replace(config, data=replace(config.data, test_rows=test_rows))
    kept = load_dataset(smaller).splits["test"].select("example_id")
    answered = pl.read_parquet(run / "predictions.parquet").join(kept, on="example_id", how="semi")
    if len(answered) < len(kept):
        raise ValueError(f"{run} answered {len(answered)} of these {len(kept)} rows")
    means = example_metrics(answered, (5, 10)).select(pl.col(*METRICS).mean())
    return means.row(0, named=True)


def main() -> None:
    """Print a line a run, then mean and standard deviation over them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, help="finished runs of one arm, a seed each")
    parser.add_argument("--test-rows", type=int, required=True)
    args = parser.parse_args()
    try:
        found = pl.DataFrame([metrics_on_sample(run, args.test_rows) for run in args.runs])
    except ValueError as error:
        parser.error(str(error))
    for run, metrics in zip(args.runs, found.iter_rows(named=True), strict=True):
        print(run.name, *(f"{name} {metrics[name]:.4f}" for name in METRICS), sep="  ")
    mean, deviation = found.mean().row(0, named=True), found.std().row(0, named=True)
    if len(found) > 1:
        spread = (f"{name} {mean[name]:.4f} ({deviation[name]:.4f})" for name in METRICS)
        print("mean (standard deviation)", *spread, sep="  ")


if __name__ == "__main__":
    main()
