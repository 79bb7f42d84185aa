"""What two choices behind the published numbers are worth: the rows to learn from, the epoch.

Where MSL publishes no valid split, a run holds the last tenth of train out to choose its epoch. The
authors train on these rows too, the ones nearest to the test rows in time, and read their numbers
at the epoch that is best on the test rows. This trains finished runs once more, same settings and
seed, and says what either is worth.

    python experiments/paper/baselines/published_choices.py outputs/RUN [outputs/RUN ...]

`--rows train` leaves the held-out rows out.
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
ROWS = ("train and valid", "train")


def epochs_of(run: Path) -> tuple[int, int]:
    """From 1: the epoch with the highest valid NDCG@10, and the last, as the run's curve has it."""
    valid = pl.read_csv(run / "curves.csv").sort("step")["val/NDCG@10"].drop_nulls()
    return int(valid.arg_max() or 0) + 1, len(valid)


def metrics_by_epoch(config: Config, rows: str, num_epochs: int) -> list[dict[str, float]]:
    """Test metrics after each epoch of a training.

    Args:
        config: A run's.
        rows: What to train on, one of ROWS.
        num_epochs: How long.
    """
    dataset = load_dataset(config)
    settings, length = config.model.sequence, config.data.max_history_items
    assert settings is not None
    settings.max_epochs, settings.patience = num_epochs, None
    valid, test = dataset.splits["valid"], dataset.splits["test"]
    frame = dataset.full_train
    if rows == "train and valid":
        frame = pl.concat([frame, valid.select(frame.columns)])
    index = TitleIndex.of(dataset.items)
    train, few, asked = (
        sequences_of(part, index.item_id_N, length) for part in (frame, valid.head(1), test)
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
    parser.add_argument("--rows", choices=ROWS, default=ROWS[0], help="what to train on")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for run in args.runs:
        config = OmegaConf.to_object(load_config(run))
        assert isinstance(config, Config)
        epoch, last = epochs_of(run)
        torch.manual_seed(config.seed)
        # On train alone the run is repeated to its end; else as long as it took to its best epoch.
        found = metrics_by_epoch(config, args.rows, last if args.rows == "train" else epoch)
        picked = max(range(len(found)), key=lambda at: found[at]["NDCG@10"])
        lines = {
            f"the run, epoch {epoch}": json.loads((run / "metrics.json").read_text())["test"],
            f"{args.rows}, epoch {epoch}": found[epoch - 1],
            f"{args.rows}, epoch {picked + 1} of {len(found)}, chosen on test": found[picked],
        }
        for name, metrics in lines.items():
            numbers = "  ".join(f"{metric} {metrics[metric]:.4f}" for metric in METRICS)
            print(f"{run.name}: {name}: {numbers}", flush=True)


if __name__ == "__main__":
    main()
