"""Finished run folders with chosen predictions."""

import json
from pathlib import Path

import numpy as np
import polars as pl
from frames import predictions_frame

from hatllm.metrics.from_predictions import evaluate_predictions
from hatllm.metrics.slices import example_slices

NUM_ITEMS = 30
ITEMS = pl.DataFrame(
    {
        "item_id": list(range(NUM_ITEMS)),
        "title": [f"Title {chr(65 + i % 26)}{i} | with a bar" for i in range(NUM_ITEMS)],
    }
)
CONFIG = """\
model: {name: smollm2_135m, kind: llm}
mask: {name: hatllm}
loss: {name: msl}
decode: {name: beam, top_k: 10}
metrics: {cut_offs: [1, 5, 10]}
data: {name: toys}
scale: laptop
seed: 1
"""
ENVIRONMENT = {
    "command": "python run.py data=toys seed=1",
    "commit": "0123abc",
    "versions": {"torch": "2.11", "polars": "1.30"},
    "seconds": {"train": 12.34, "evaluate": 5.0},
}


def make_run(
    folder: Path,
    label: str = "hatllm",
    seed: int = 1,
    split_hash: str = "5f2c",
    skill: float = 0.3,
    num_examples: int = 200,
    has_nll: bool = True,
    kind: str = "llm",
    top_k: int = 10,
) -> Path:
    """Write a finished run whose targets are found with probability ``skill``."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng([seed, len(label)])
    ranks, log_probs = drawn_answers(generator, skill, num_examples)
    examples = drawn_examples(generator, num_examples)
    predictions = predictions_frame(
        [rank if rank is not None and rank <= top_k else None for rank in ranks],
        log_probs if has_nll else None,
        target_item=examples["target"].to_list(),
        top_items=[generator.permutation(NUM_ITEMS)[:top_k].tolist() for _ in range(num_examples)],
        top_log_probs=[np.linspace(-1, -9, top_k).tolist()] * num_examples,
    )
    popular = predictions_frame([None] * (num_examples - 1) + [3])
    cut_offs = [k for k in (1, 5, 10) if k <= top_k]
    metrics = {
        "test": evaluate_predictions(predictions, ITEMS, examples, cut_offs),
        "popularity": evaluate_predictions(popular, ITEMS, examples, (1, 5, 10)),
    }
    identity = {"label": label, "seed": seed, "config_hash": "c0", "split_hash": split_hash}
    config = CONFIG.replace("kind: llm", f"kind: {kind}").replace("top_k: 10", f"top_k: {top_k}")
    (folder / "config.yaml").write_text(config)
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "environment.json").write_text(json.dumps(ENVIRONMENT | {"split_hash": split_hash}))
    (folder / "run.json").write_text(json.dumps(identity | {"seconds": {"train": 12.34}}))
    predictions.write_parquet(folder / "predictions.parquet")
    examples.write_parquet(folder / "examples.parquet")
    ITEMS.write_parquet(folder / "items.parquet")
    curves_frame(generator).write_csv(folder / "curves.csv")
    return folder


def drawn_answers(
    generator: np.random.Generator, skill: float, num_examples: int
) -> tuple[list[int | None], list[float]]:
    """Rank of each target, found with probability ``skill``, and its log-probability."""
    shared = np.random.default_rng(0).random(num_examples)  # hard for one arm, hard for all
    found = 0.8 * shared + 0.2 * generator.random(num_examples) < skill
    ranks = [
        int(rank) if hit else None
        for rank, hit in zip(generator.integers(1, 11, num_examples), found, strict=True)
    ]
    log_probs = -4 - 3 * shared + skill + 0.2 * generator.normal(size=num_examples)
    return ranks, log_probs.tolist()


def drawn_examples(generator: np.random.Generator, num_examples: int) -> pl.DataFrame:
    """Targets with histories, and their slices."""
    targets = generator.integers(NUM_ITEMS, size=num_examples).tolist()
    histories = generator.integers(NUM_ITEMS - 4, size=(num_examples, 12)).tolist()
    examples = pl.DataFrame(
        {"example_id": list(range(num_examples)), "history": histories, "target": targets}
    )
    train = pl.concat(
        [
            examples.select(user_id="example_id", item_id="history").explode("item_id"),
            examples.select(user_id="example_id", item_id=pl.col("history").list.first()),
        ]
    )
    return examples.join(example_slices(examples, ITEMS, train), on="example_id")


def curves_frame(generator: np.random.Generator) -> pl.DataFrame:
    """A noisy falling loss with a validation every 25 steps."""
    steps = np.arange(1, 401)
    loss = 2 + 3 * np.exp(-steps / 90) + 0.25 * generator.normal(size=400)
    validated = steps % 25 == 0
    ndcg = np.where(
        validated, 0.03 * (1 - np.exp(-steps / 120)) + 0.001 * generator.normal(size=400), np.nan
    )
    nll = np.where(validated, 5 + 2 * np.exp(-steps / 80) + (steps / 400) ** 4, np.nan)
    frame = pl.DataFrame(
        {"step": steps, "train/loss": loss, "val/NDCG@10": ndcg, "val/trie_NLL": nll}
    )
    return frame.with_columns(pl.col("val/NDCG@10", "val/trie_NLL").fill_nan(None))
