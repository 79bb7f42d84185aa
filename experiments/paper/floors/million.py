"""What the title rule takes on a catalogue of a million titles.

    python experiments/paper/floors/million.py --titles 1000000 --users 10000

Titles are made up: words by a Zipf law (the r-th most frequent has a share proportional to 1 / r),
about as many a title as in Amazon Toys (there 5 %, median and 95 % are 3, 7 and 13). Histories are
random items. The functions are those of a run of ``model=titles``; reading data and writing files
are left out.
"""

import argparse
import json
import resource
import time

import numpy as np
import polars as pl
from numpy.typing import NDArray

from hatllm.baselines.title_rules import title_rule
from hatllm.config import TitlesConfig

RULE = TitlesConfig("word", 1, 1, 1, 1.0, None)
TOP_K, HISTORY = 10, 10


def made_up_titles(num_titles: int, num_words: int, seed: int) -> list[str]:
    """Titles of words w1, w2, ..., of which w1 is the most frequent.

    Args:
        num_titles: How many.
        num_words: Of the vocabulary.
        seed: Of the draws.
    """
    random = np.random.default_rng(seed)
    share = 1 / np.arange(1, num_words + 1)
    cumulated = np.cumsum(share) / share.sum()
    lengths = np.clip(random.lognormal(np.log(7), 0.45, num_titles).round(), 1, 40).astype(np.int64)
    words = np.searchsorted(cumulated, random.random(lengths.sum())) + 1
    ends = lengths.cumsum()
    return [
        " ".join(f"w{word}" for word in words[end - length : end])
        for length, end in zip(lengths.tolist(), ends.tolist(), strict=True)
    ]


def made_up_users(num_users: int, num_titles: int, seed: int) -> pl.DataFrame:
    """Examples of random items."""
    random = np.random.default_rng(seed)
    rows: NDArray[np.int64] = random.integers(0, num_titles, (num_users, HISTORY + 1))
    return pl.DataFrame(
        {"example_id": range(num_users), "user_id": range(num_users),
         "history": rows[:, :-1].tolist(), "target": rows[:, -1]}
    )  # fmt: skip


def main() -> None:
    """Answer, and print what it took."""
    parser = argparse.ArgumentParser(description="What the title rule takes on many titles.")
    parser.add_argument("--titles", type=int, default=1_000_000)
    parser.add_argument("--words", type=int, default=300_000, help="of the vocabulary")
    parser.add_argument("--users", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    titles = made_up_titles(asked.titles, asked.words, asked.seed)
    items = pl.DataFrame({"item_id": range(asked.titles), "title": titles})
    examples = made_up_users(asked.users, asked.titles, asked.seed)
    before, start, cpu = peak_gib(), time.perf_counter(), time.process_time()
    table = title_rule(items, RULE).predictions(examples, items, TOP_K)
    facts = {
        "titles": asked.titles, "different titles": items["title"].n_unique(),
        "users": asked.users, "wall seconds": round(time.perf_counter() - start, 1),
        "CPU seconds": round(time.process_time() - cpu, 1),
        "peak GiB": round(peak_gib(), 2), "of it before": round(before, 2),
        "answers": table["top_items"].list.len().sum(),
    }  # fmt: skip
    print(json.dumps(facts, indent=1))


def peak_gib() -> float:
    """The most memory that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main()
