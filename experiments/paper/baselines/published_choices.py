"""What choices behind published numbers are worth: rows to learn from, epoch, candidates.

Where MSL publishes no valid split, a run holds the last tenth of train out to choose its epoch. The
authors train on these rows too, the ones nearest to the test rows in time, and read their numbers
at the epoch that is best on the test rows. Many codes also leave the items of the history out of
the ranking. This trains finished runs once more, same settings and seed, and says what each is
worth.

    python experiments/paper/baselines/published_choices.py outputs/RUN [outputs/RUN ...]

`--rows train` leaves the held-out rows out; `--rows none` trains nothing and ranks with the weights
that the run has kept, in seconds. `--epochs 200` trains on where the run stopped early.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import polars as pl
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file
from torch import Tensor

from hatllm.baselines.ranks_of_scores import TitleIndex, target_ranks
from hatllm.baselines.sequences import Sequences, sequences_of
from hatllm.config import Config
from hatllm.data.prepare import load_dataset
from hatllm.metrics.rank_metrics import NDCG, HitRate
from hatllm.runs.folder import load_config
from hatllm.runs.run_files import WEIGHTS_FILE
from hatllm.training.baseline_run import all_of_train
from hatllm.training.id_model import Keeping, SequenceModel, build_sequence_model, fit, scores

METRICS = ("HR@5", "HR@10", "NDCG@5", "NDCG@10")
ROWS = ("train and valid", "train", "none")
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
        rows: What to train on, one of ROWS but none.
        num_epochs: How long.
    """
    dataset = load_dataset(config)
    settings, length = config.model.sequence, config.data.max_history_items
    assert settings is not None
    settings.max_epochs, settings.patience = num_epochs, None
    valid, test = dataset.splits["valid"], dataset.splits["test"]
    frame = all_of_train(config, dataset)
    if rows == "train and valid":
        frame = pl.concat([frame, valid.select(frame.columns)])
    index = TitleIndex.of(dataset.items)
    train, few, asked = (
        sequences_of(part, index.item_id_I, length) for part in (frame, valid.head(1), test)
    )
    model = build_sequence_model(config.model.kind, len(index.item_id_I), length, settings)
    found: list[dict[str, Metrics]] = []

    def ask(state: dict[str, Any]) -> None:
        found.append(metrics_by_ranking(model, asked, index, settings.batch_size))

    fit(model, train, few, index, settings, lambda metrics, step: None, Keeping(save=ask))
    return found


def metrics_of_weights(config: Config, weights: Path) -> dict[str, Metrics]:
    """Test metrics of a finished run's weights, for each of RANKINGS."""
    dataset = load_dataset(config)
    settings, length = config.model.sequence, config.data.max_history_items
    assert settings is not None
    index = TitleIndex.of(dataset.items)
    model = build_sequence_model(config.model.kind, len(index.item_id_I), length, settings)
    model.load_state_dict(load_file(weights))
    asked = sequences_of(dataset.splits["test"], index.item_id_I, length)
    return metrics_by_ranking(model, asked, index, settings.batch_size)


def metrics_by_ranking(
    model: SequenceModel, asked: Sequences, index: TitleIndex, batch_size: int
) -> dict[str, Metrics]:
    """Metrics over the rows asked, for each of RANKINGS."""
    batches = list(scores(model, asked, batch_size))
    score_RN, target_G = (torch.cat(part) for part in zip(*batches, strict=True))
    new_RN = without_history(score_RN, asked.history_GL, target_G)
    ranks = (target_ranks(some_RN, target_G, index)[0] for some_RN in (score_RN, new_RN))
    return dict(zip(RANKINGS, map(metrics_of, ranks), strict=True))


def without_history(score_RN: Tensor, history_GL: Tensor, target_G: Tensor) -> Tensor:
    """The scores with the items of the history below all others; the target keeps its own.

    Args:
        score_RN: Finite scores of all items. Shape (R, N).
        history_GL: Item numbers, padded with N. Shape (R, L), int64.
        target_G: Item numbers. Shape (R,), int64.
    """
    target_R1 = target_G[:, None]
    lowest = float(score_RN.min()) - 1.0
    padded = torch.cat([score_RN, score_RN.new_zeros(len(score_RN), 1)], dim=1)
    padded.scatter_(1, history_GL, lowest)
    padded.scatter_(1, target_R1, score_RN.gather(1, target_R1))
    return padded[:, :-1]


def metrics_of(rank_R: Tensor) -> Metrics:
    """HR and NDCG at 5 and 10 of ranks from 1. Shape (R,), int64."""
    return {f"HR@{k}": float(HitRate(k)(rank_R)) for k in (5, 10)} | {
        f"NDCG@{k}": float(NDCG(k)(rank_R)) for k in (5, 10)
    }


def config_of(run: Path) -> Config:
    """The settings of a finished run.

    Raises:
        ValueError: If there is no such run, or its model learns nothing by item id.
    """
    config = OmegaConf.to_object(load_config(run, "runs"))
    assert isinstance(config, Config)
    if config.model.sequence is None:
        raise ValueError(f"runs={str(run)!r}: model={config.model.name} must be sasrec or its like")
    return config


def lines_of(run: Path, rows: str, num_epochs: int | None = None) -> dict[str, Metrics]:
    """What a run and its counterparts reach, by what they are.

    Args:
        run: A finished run.
        rows: One of ROWS.
        num_epochs: How long to train, at least to the run's best epoch; None = on train alone as
            long as the run, else to its best epoch.
    """
    config = config_of(run)
    epoch, last = epochs_of(run)
    own = f"the run, epoch {epoch}"
    if rows == "none":
        found = metrics_of_weights(config, run / WEIGHTS_FILE)
        return {f"{own}, {ranking}": found[ranking] for ranking in RANKINGS}
    torch.manual_seed(config.seed)
    by_epoch = metrics_by_epoch(config, rows, num_epochs or (last if rows == "train" else epoch))
    picked = max(range(len(by_epoch)), key=lambda at: by_epoch[at][RANKINGS[0]]["NDCG@10"])
    chosen = f"epoch {picked + 1} of {len(by_epoch)}, chosen on test"
    lines = {own: json.loads((run / "metrics.json").read_text())["test"]}
    lines |= {f"{rows}, epoch {epoch}, {name}": by_epoch[epoch - 1][name] for name in RANKINGS}
    lines |= {f"{rows}, {chosen}, {name}": by_epoch[picked][name] for name in RANKINGS}
    return lines


def main() -> None:
    """Print a line of metrics for each run and for its counterparts."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, help="finished runs of model=sasrec and such")
    parser.add_argument("--rows", choices=ROWS, default=ROWS[0], help="what to train on")
    parser.add_argument("--epochs", type=int, help="how long; as long as the run, if not given")
    args = parser.parse_args()
    if args.rows == "none" and args.epochs is not None:
        parser.error(
            f"--epochs={args.epochs} must be left out with --rows none, which trains nothing"
        )
    torch.set_num_threads(1)
    try:
        for run in args.runs:
            config_of(run)
            best = epochs_of(run)[0]
            if args.epochs is not None and args.epochs < best:
                raise ValueError(
                    f"--epochs={args.epochs} must be at least {best}, the best of {run}"
                )
    except ValueError as error:
        parser.error(str(error))
    for run in args.runs:
        for name, metrics in lines_of(run, args.rows, args.epochs).items():
            numbers = "  ".join(f"{metric} {metrics[metric]:.4f}" for metric in METRICS)
            print(f"{run.name}: {name}: {numbers}", flush=True)


if __name__ == "__main__":
    main()
