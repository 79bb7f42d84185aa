"""What choices behind published numbers are worth: rows to learn from, epoch, candidates.

Where MSL publishes no valid split, a run holds the last tenth of train out to choose its epoch. The
authors train on these rows too, the ones nearest to the test rows in time, and read their numbers
at the epoch that is best on the test rows. Many codes also leave the items of the history out of
the ranking. This trains finished runs once more, same settings and seed, and says what each is
worth.

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
RANKINGS = ("all items", "items not in the history")
Metrics = dict[str, float]


def epochs_of(run: Path) -> tuple[int, int]:
    """From 1: the epoch with the highest valid NDCG@10, and the last, as the run's curve has it."""
    valid = pl.read_csv(run / "curves.csv").sort("step")["val/NDCG@10"].drop_nulls()
    return int(valid.arg_max() or 0) + 1, len(valid)


def metrics_by_epoch(config: Config, rows: str, num_epochs: int) -> list[dict[str, Metrics]]:
    """Test metrics after each epoch of a training, for each of RANKINGS.

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
    found: list[dict[str, Metrics]] = []

    def ask(state: dict[str, Any]) -> None:
        batches = list(scores(model, asked, settings.batch_size))
        score_RN, target_R = (torch.cat(part) for part in zip(*batches, strict=True))
        new_RN = without_history(score_RN, asked.history_RL, target_R)
        ranks = (target_ranks(some_RN, target_R, index)[0] for some_RN in (score_RN, new_RN))
        found.append(dict(zip(RANKINGS, map(metrics_of, ranks), strict=True)))

    fit(model, train, few, index, settings, lambda metrics, step: None, save=ask)
    return found


def without_history(score_RN: Tensor, history_RL: Tensor, target_R: Tensor) -> Tensor:
    """The scores with the items of the history below all others; the target keeps its own.

    Args:
        score_RN: Finite scores of all items. Shape (R, N).
        history_RL: Item numbers, padded with N. Shape (R, L), int64.
        target_R: Item numbers. Shape (R,), int64.
    """
    target_R1 = target_R[:, None]
    lowest = float(score_RN.min()) - 1.0
    padded = torch.cat([score_RN, score_RN.new_zeros(len(score_RN), 1)], dim=1)
    padded.scatter_(1, history_RL, lowest)
    padded.scatter_(1, target_R1, score_RN.gather(1, target_R1))
    return padded[:, :-1]


def metrics_of(rank_R: Tensor) -> Metrics:
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
        picked = max(range(len(found)), key=lambda at: found[at][RANKINGS[0]]["NDCG@10"])
        lines = {f"the run, epoch {epoch}": json.loads((run / "metrics.json").read_text())["test"]}
        for ranking in RANKINGS:
            lines[f"{args.rows}, epoch {epoch}, {ranking}"] = found[epoch - 1][ranking]
        for ranking in RANKINGS:
            chosen = f"epoch {picked + 1} of {len(found)}, chosen on test"
            lines[f"{args.rows}, {chosen}, {ranking}"] = found[picked][ranking]
        for name, metrics in lines.items():
            numbers = "  ".join(f"{metric} {metrics[metric]:.4f}" for metric in METRICS)
            print(f"{run.name}: {name}: {numbers}", flush=True)


if __name__ == "__main__":
    main()
