"""SASRec on every published train row, for as many epochs as a finished run found best.

Where MSL publishes no valid split, a run holds the last tenth of train out to choose its epoch. The
authors train on these rows too, and they are the ones nearest to the test rows in time. This says
what they are worth: the same settings and seed, train and valid together, no choice left to make.

    python experiments/paper/sasrec/all_train_rows.py outputs/RUN [outputs/RUN ...]
"""

import argparse
import json
from pathlib import Path
from typing import Any

import polars as pl
import torch
from omegaconf import OmegaConf

from hatllm.baselines.fit import build_sequence_model, fit, scores
from hatllm.baselines.ranking import TitleIndex, target_ranks
from hatllm.baselines.sequences import sequences_of
from hatllm.config import Config
from hatllm.tasks.assemble import load_dataset
from hatllm.tasks.run_folder import load_config

METRICS = ("HR@5", "HR@10", "NDCG@5", "NDCG@10")


def best_epoch(run: Path) -> int:
    """From 1: the epoch with the highest valid NDCG@10, as the run's curve has it."""
    valid = pl.read_csv(run / "curves.csv").sort("step")["val/NDCG@10"].drop_nulls()
    return int(valid.arg_max() or 0) + 1


def ranks_with_all_rows(config: Config, num_epochs: int) -> torch.Tensor:
    """Ranks of the test targets after training on train and valid together, shape (R,)."""
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
    last: dict[str, Any] = {}
    fit(model, train, few, index, settings, lambda metrics, step: None, save=last.update)
    model.load_state_dict(last["weights"])
    batches = scores(model, asked, settings.batch_size)
    return torch.cat([target_ranks(score_BN, target_B, index)[0] for score_BN, target_B in batches])


def main() -> None:
    """Train, and print a line of metrics for each run and for its counterpart."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, help="finished runs of model=sasrec")
    parser.add_argument("--data-root", help="where the tables lie now; default: as in the run")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for run in args.runs:
        config = OmegaConf.to_object(load_config(run))
        assert isinstance(config, Config)
        if args.data_root is not None:
            config.data_root = args.data_root
        num_epochs = best_epoch(run)
        torch.manual_seed(config.seed)
        rank_R = ranks_with_all_rows(config, num_epochs)
        gain_R = 1 / torch.log2(rank_R + 1.0)
        found = {f"HR@{k}": float((rank_R <= k).double().mean()) for k in (5, 10)}
        found |= {f"NDCG@{k}": float((gain_R * (rank_R <= k)).double().mean()) for k in (5, 10)}
        before = json.loads((run / "metrics.json").read_text())["test"]
        for name, metrics in (("train", before), ("train and valid", found)):
            numbers = "  ".join(f"{metric} {metrics[metric]:.4f}" for metric in METRICS)
            print(f"{run.name}, {num_epochs} epochs, {name}: {numbers}", flush=True)


if __name__ == "__main__":
    main()
