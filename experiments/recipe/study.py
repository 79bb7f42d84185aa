"""Each recipe of `conf/experiment/recipe.yaml` for the same seconds, judged on valid rows.

    python -m experiments.recipe.study --seconds 100                       # every recipe
    python -m experiments.recipe.study --seconds 300 --only lora64 full    # the best, longer
    python -m experiments.recipe.study --data ml100k

A budget is the processor time of one thread inside training steps, so that what else runs on the
machine counts little; validations are not in it. The learning rate falls to 0 at its end, whatever
number of steps that is. What is in the table already is not run again.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from omegaconf import OmegaConf
from rich.console import Console
from torch import Tensor

from experiments.speed.workload import CONF, composed
from hatllm.config import Config
from hatllm.data.datamodule import Examples, IntArray, TrainingBatches, micro_batches
from hatllm.decode.predict import predict
from hatllm.files import write_csv
from hatllm.metrics.ranking import discounted_gains
from hatllm.training.assemble import assemble
from hatllm.training.lightning_module import Recommender

RESULTS = Path(__file__).parent / "results"
KEYS = ("data", "recipe", "words", "dtype", "budget", "valid_rows")  # what a curve belongs to
# What the cells share stands in their file: mask and scale. All train rows, in a seeded order.
THE_REST = ("experiment=recipe", "task=train", "data.train_rows=null", "num_threads=1")
EVALUATION_ROWS = 16  # valid rows of a forward pass
LONG_RUN = 10**6  # steps: the budget ends a study, not a number of steps

console = Console()


def main(argv: Sequence[str]) -> None:
    """Train the recipes that the table does not have yet."""
    arguments = _parser().parse_args(argv)
    torch.set_num_threads(1)
    for recipe, words in recipes().items():
        if arguments.only and recipe not in arguments.only:
            continue
        words = [*words, *arguments.set]
        config = composed(
            *THE_REST, *words, f"data={arguments.data}", f"data.valid_rows={arguments.valid_rows}"
        )
        told = {
            "data": arguments.data, "recipe": recipe, "words": " ".join(words),
            "dtype": config.model.dtype, "budget": arguments.seconds,
            "valid_rows": arguments.valid_rows,
        }  # fmt: skip
        if is_there(arguments.output, told):
            continue
        points = list(curve_of(config, arguments.seconds, arguments.points, arguments.rank))
        keep(arguments.output, [told | point for point in points])
        console.print(recipe, points[-1])


def recipes(path: Path = CONF / "experiment" / "recipe.yaml") -> dict[str, list[str]]:
    """The settings of each recipe by its label."""
    cells: Any = OmegaConf.to_container(OmegaConf.load(path).experiment.cells)
    return dict(cells)


def curve_of(
    config: Config,
    seconds: float,
    num_points: int,
    rank: bool,
    clock: Callable[[], float] = time.process_time,
) -> Iterator[dict[str, float]]:
    """Train for a budget, measuring on the way.

    Args:
        config: The recipe.
        seconds: The budget.
        num_points: Validations, the last at the end of the budget.
        rank: Whether the last validation decodes, for NDCG@10.
        clock: Seconds of the training steps are taken from it.

    Yields:
        ``seconds``, ``step``, ``titles`` (supervised so far), ``train_loss`` (since the point
        before, nats a title), ``trie_NLL`` and, from the last, ``NDCG@10``.
    """
    training = Training(config)
    yield {"seconds": 0.0, "step": 0, "titles": 0} | {"trie_NLL": training.valid_nll()}
    spent, step, titles, losses, point = 0.0, 0, 0, [], 1
    while spent < seconds:
        start = clock()
        loss, num_titles = training.step(step, 1 - spent / seconds)
        spent, step, titles = spent + clock() - start, step + 1, titles + num_titles
        losses.append(loss)
        if spent >= seconds * point / num_points:
            found = {"seconds": round(spent, 1), "step": step, "titles": titles}
            found |= {"train_loss": float(np.mean(losses)), "trie_NLL": training.valid_nll()}
            if rank and spent >= seconds:
                found["NDCG@10"] = training.valid_ndcg()
            yield found
            losses, point = [], int(spent / seconds * num_points) + 1


class Training:
    """A recipe's model, rows and optimizer."""

    def __init__(self, config: Config) -> None:
        """Load everything."""
        torch.manual_seed(config.seed)
        parts = assemble(config)
        self.config, self.parts, splits = config, parts, parts.dataset.splits
        self.book = parts.catalogue.book
        self.module = Recommender(
            parts.load_model(config), parts.catalogue, config, LONG_RUN, splits["valid"]
        )
        train = Examples.of(splits["train"], config.data.max_history_items)
        self.valid = Examples.of(splits["valid"], config.data.max_history_items)
        self.batches = TrainingBatches(train, self.book, config)
        self.tuned = [p for p in self.module.parameters() if p.requires_grad]
        self.optimizer: Any = self.module.configure_optimizers()["optimizer"]
        self.rows = self._rows(train)

    def _rows(self, train: Examples) -> Iterator[IntArray]:
        """Rows of each micro-batch, epoch after epoch."""
        lengths, done = train.prompt_lengths(self.book, with_target=True), [0]
        order = micro_batches(
            train, lengths, self.config.trainer, self.config.seed, 0, 1, lambda: done[0]
        )
        while True:
            for rows in order:
                yield np.array(rows)
            done[0] += order.steps_per_epoch

    def step(self, step: int, left: float) -> tuple[float, int]:
        """One optimizer step.

        Args:
            step: Steps before it.
            left: Share of the budget that is left, which the learning rate follows.

        Returns:
            Its loss (nats a title) and its number of supervised titles.
        """
        trainer = self.config.trainer
        rate = trainer.learning_rate * left * min(1.0, (step + 1) / max(1, trainer.warmup_steps))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.module.train()
        passes = trainer.global_batch_size // trainer.rows_a_pass
        total, titles = 0.0, 0
        for _ in range(passes):
            batch = self.batches.batch(next(self.rows))
            loss = self.module.title_loss(batch) / passes
            loss.backward()
            total, titles = total + float(loss.detach()), titles + len(batch.title_weight_J)
        if trainer.gradient_clip:
            torch.nn.utils.clip_grad_norm_(self.tuned, trainer.gradient_clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return total / self.config.loss.tau, titles

    @torch.no_grad()
    def valid_nll(self) -> float:
        """Nats a title over the legal tokens, at the temperature that is trained."""
        self.module.eval()
        order = np.argsort(self.valid.prompt_lengths(self.book, with_target=True))
        total = 0.0
        for start in range(0, len(order), EVALUATION_ROWS):
            rows = order[start : start + EVALUATION_ROWS]
            batch = self.valid.batch(self.book, rows, self.config.mask.target_is_item, True)
            loss: Tensor = self.module.title_loss(batch)
            total += float(loss) * len(rows)
        return total / len(order) / self.config.loss.tau

    def valid_ndcg(self) -> float:
        """NDCG@10 of the valid rows, by title."""
        self.module.eval()
        found = predict(
            self.module.lm, self.parts.catalogue, self.module.valid, self.config, "valid"
        )
        ranks = torch.tensor(found["target_rank"].fill_null(0).to_list())
        return float(discounted_gains(ranks, 10).mean())


def is_there(path: Path, told: dict[str, Any]) -> bool:
    """Whether the table has this curve."""
    if not path.exists():
        return False
    table = pl.read_csv(path)
    return len(table.filter([pl.col(key) == told[key] for key in KEYS])) > 0


def keep(path: Path, rows: list[dict[str, Any]]) -> None:
    """Append rows to the table."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pl.DataFrame(rows)
    if path.exists():
        table = pl.concat([pl.read_csv(path), table], how="diagonal_relaxed")
    write_csv(path, table)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seconds", type=float, default=100.0, help="the budget of a recipe")
    parser.add_argument("--points", type=int, default=2, help="validations on the way")
    parser.add_argument("--data", default="msl_toys", help="a choice of conf/data")
    parser.add_argument("--valid-rows", type=int, default=64)
    parser.add_argument("--rank", action="store_true", help="decode at the end, for NDCG@10")
    parser.add_argument("--only", nargs="*", default=[], metavar="RECIPE")
    parser.add_argument("--set", action="append", default=[], metavar="SETTING=VALUE")
    parser.add_argument("--output", type=Path, default=RESULTS / "curves.csv")
    return parser


if __name__ == "__main__":
    main(sys.argv[1:])
