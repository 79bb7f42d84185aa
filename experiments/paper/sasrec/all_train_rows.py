"""A sequence model on every published train row, and with its epoch chosen on the test rows.

Where MSL publishes no valid split, a run holds the last tenth of train out to choose its epoch. The
authors train on these rows too, the ones nearest to the test rows in time, and read their numbers
at the epoch that is best on the test rows. This says what both are worth: same settings and seed.

    python experiments/paper/sasrec/all_train_rows.py outputs/RUN [outputs/RUN ...]
"""

import argparse
import json
from pathlib import Path
from typing import Any

import polars as pl
import torch
from omegaconf import OmegaConf
from torch import Tensor

from hatllm.baselines.fit import build_sequence_model, fit, scores
from hatllm.baselines.ranking import TitleIndex, target_ranks
from hatllm.baselines.sequences import sequences_of
from hatllm.config import Config
from hatllm.metrics import hit_rate, ndcg
from hatllm.tasks.assemble import load_dataset
from hatllm.tasks.run_folder import load_config

METRICS = ("HR@5", "HR@10", "NDCG@5", "NDCG@10")


def best_epoch(run: Path) -> int:
    """From 1: the epoch with the highest valid NDCG@10, as the run's curve has it."""
    valid = pl.read_csv(run / "curves.csv").sort("step")["val/NDCG@10"].drop_nulls()
    return int(valid.arg_max() or 0) + 1


def metrics_by_epoch(config: Config, num_epochs: int) -> list[dict[str, float]]:
    """Test metrics after each epoch of a training on train and valid together."""
    dataset = load_dataset(config)
    settings, length = config.model.sequence, config.data.max_history_items
    assert settings is not None
    settings.max_epochs, settings.patience = num_epochs, None
    valid, test = dataset.splits["valid"], dataset.splits["test"]
    rows = pl.concat([dataset.full_train, valid.select(dataset.full_train.columns)])
    index = TitleIndex.of(dataset.items)
    train, few, asked = (
        sequences_of(frame, index.item_id_N, length) for frame in (rows, valid.head(1), test)
    )
    model = build_sequence_model(config.model.kind, len(index.item_id_N), length, settings)
    found: list[dict[str, float]] = []

    def ask(state: dict[str, Any]) -> None:
        ranks = [
            target_ranks(score_BN, target_B, index)[0]
            for score_BN, target_B in scores(model, asked, settings.batch_size)
        ]
        found.append(metrics_of(torch.cat(ranks)))

    fit(model, train, few, index, settings, lambda metrics, step: None, save=ask)
    return found


def metrics_of(rank_R: Tensor) -> dict[str, float]:
    """HR and NDCG at 5 and 10 of ranks from 1. Shape (R,), int64."""
    return {f"HR@{k}": float(hit_rate(rank_R, k)) for k in (5, 10)} | {
        f"NDCG@{k}": float(ndcg(rank_R, k)) for k in (5, 10)
    }


def main() -> None:
    """Train, and print a line of metrics for each run and for its counterparts."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, help="finished runs of model=sasrec and such")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for run in args.runs:
        config = OmegaConf.to_object(load_config(run))
        assert isinstance(config, Config)
        epoch = best_epoch(run)
        torch.manual_seed(config.seed)
        found = metrics_by_epoch(config, epoch)
        picked = max(range(epoch), key=lambda at: found[at]["NDCG@10"])
        lines = {
            f"train, epoch {epoch}": json.loads((run / "metrics.json").read_text())["test"],
            f"train and valid, epoch {epoch}": found[-1],
            f"train and valid, epoch {picked + 1}, chosen on test": found[picked],
        }
        for name, metrics in lines.items():
            numbers = "  ".join(f"{metric} {metrics[metric]:.4f}" for metric in METRICS)
            print(f"{run.name}: {name}: {numbers}", flush=True)


if __name__ == "__main__":
    main()
