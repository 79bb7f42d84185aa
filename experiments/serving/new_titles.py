"""A million titles: finding one, adding 10,000: python -m experiments.serving.new_titles --run RUN.

The run's catalogue is filled up with titles recombined from its own, by words, so that they have
the lengths of real ones. One process loads the large catalogue, searches in it and adds titles;
another loads the same titles all at once. Both must hold the same trie and answer alike.
Results: new_titles.json and .md in experiments/serving/results.
"""

import argparse
import hashlib
import json
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

import hatllm
from experiments.serving.load import RESULTS
from experiments.speed.memory import peak_above_start
from experiments.speed.record import machine, markdown_table, one_line
from hatllm.data.table_cache import table_hash
from hatllm.files import read_json, write_json, write_text
from hatllm.recommend.answerer import LlmAnswerer
from hatllm.recommend.recommender import Recommender
from hatllm.runs.provenance import environment
from hatllm.runs.run_files import EXAMPLES_FILE, ITEMS_FILE, RUN_FILE

REPEATS = 5  # of a search; the median
NUM_HISTORIES = 4
HEADINGS = ("what", "seconds", "processor seconds", "extra MB")


def main(argv: Sequence[str]) -> None:
    """Measure, print and write."""
    arguments = _parser().parse_args(argv)
    if arguments.of is not None:
        print(json.dumps(_measured(Path(arguments.of), arguments.new)))
        return
    found: dict[str, Any] = {"command": shlex.join(["python", "-m", __spec__.name, *argv])}
    found["hardware"] = machine()
    items = pl.read_parquet(arguments.run / ITEMS_FILE)
    total = arguments.titles + arguments.new
    titles = recombined_titles(items["title"].to_list(), total - items.height, arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        large = _filled_up(arguments.run, items, titles, Path(folder) / "large")
        few = titles[: arguments.titles - items.height]
        small = _filled_up(arguments.run, items, few, Path(folder) / "small")
        (small / "new.json").write_text(json.dumps(titles[len(few) :]))
        found["added"] = _alone(small, arguments.new)
        found["at_once"] = _alone(large, 0)
    found["same"] = found["added"]["digest"] == found["at_once"]["digest"]
    known = environment({"data_hash": None, "split_hash": None}, {}, None)
    found["versions"] = {"python": known["python"], **known["versions"]}
    write_json(RESULTS / "new_titles.json", found)
    text = report(found, arguments)
    write_text(RESULTS / "new_titles.md", text)
    print(text)


def recombined_titles(titles: Sequence[str], num_titles: int, seed: int) -> list[str]:
    """Other titles than the given ones: each begins as one of them and goes on as another does.

    Args:
        titles: Real ones.
        num_titles: How many are wanted.
        seed: Of the recombination.

    Raises:
        ValueError: If so many different titles do not come about.
    """
    words, random = [title.split() for title in titles], np.random.default_rng(seed)
    real, found = {*titles}, dict[str, None]()
    for _ in range(100):
        first_X, second_X = random.integers(0, len(words), (2, num_titles)).tolist()
        for first, second, share in zip(
            first_X, second_X, random.random(num_titles).tolist(), strict=True
        ):
            head, tail = words[first], words[second]
            cut = 1 + int(share * min(len(head), len(tail)))
            title = " ".join([*head[:cut], *tail[cut - 1 :]])
            if title not in real:
                found.setdefault(title)
            if len(found) == num_titles:
                return list(found)
    raise ValueError(f"{num_titles} titles asked for, {len(titles)} real ones give {len(found)}")


def _filled_up(run: Path, items: pl.DataFrame, titles: Sequence[str], folder: Path) -> Path:
    """A copy of the run whose catalogue has these titles too."""
    shutil.copytree(run, folder)
    first = int(items["item_id"].max()) + 1  # type: ignore[arg-type]
    columns = ["item_id", "title", "source_id"]
    more = pl.DataFrame(
        {"item_id": range(first, first + len(titles)), "title": titles, "source_id": titles},
        schema=items.select(columns).schema,
    )
    whole = pl.concat([items.select(columns), more])
    whole.write_parquet(folder / ITEMS_FILE)
    identity = read_json(folder / RUN_FILE) | {"catalogue_hash": table_hash(whole)}
    write_json(folder / RUN_FILE, identity)
    return folder


def _alone(folder: Path, new: int) -> dict[str, Any]:
    """What a process of its own measures."""
    command = [sys.executable, "-m", __spec__.name, "--run", "x", "--of", str(folder)]
    done = subprocess.run(
        [*command, "--new", str(new)], capture_output=True, text=True, check=False,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    if done.returncode != 0:
        raise RuntimeError(done.stderr[-2000:])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _measured(folder: Path, new: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    made: list[Recommender] = []
    parts = {"load": _timed(lambda: made.append(hatllm.load(folder)))}
    (loaded,) = made
    if new:
        titles = json.loads((folder / "new.json").read_text())
        parts["add"] = _timed(lambda: loaded.add_items(titles))
    histories = pl.read_parquet(folder / EXAMPLES_FILE)["history"].head(NUM_HISTORIES).to_list()
    title = dict(loaded.catalogue.select("item_id", "title").iter_rows())
    asked = [[title[item] for item in history] for history in histories]
    answers = [[one.item_id for one in loaded.recommend(history)] for history in asked]
    return {
        "parts": parts, "searches": _searches(loaded), "digest": _digest(loaded, answers),
        "items": loaded.catalogue.height, "tokens": _mean_tokens(loaded),
    }  # fmt: skip


def _searches(loaded: Recommender) -> dict[str, list[float]]:
    """Median seconds and processor seconds of each kind of search."""
    title = loaded.catalogue["title"][loaded.catalogue.height // 2]
    middle = len(title) // 2
    queries = {
        "the beginning of a title": title[:4],
        "a title with a letter wrong": f"{title[:middle]}q{title[middle + 1 :]}",
        "two thirds of a title, from its middle": title[len(title) // 3 :],
        "2,000 characters": (title * 2000)[:2000],
    }
    found = {}
    for name, query in queries.items():
        times = [_timed(lambda q=query: loaded.items(q)) for _ in range(REPEATS)]
        found[name] = [
            statistics.median(time[kind] for time in times) for kind in ("seconds", "processor_s")
        ]
    return found


def _timed(work: Callable[[], Any]) -> dict[str, float]:
    """Seconds by the clock, and of the processor, to which other work adds nothing."""
    spent: dict[str, float] = {}

    def timed() -> None:
        start, processor = time.perf_counter(), time.process_time()
        work()
        spent["seconds"] = time.perf_counter() - start
        spent["processor_s"] = time.process_time() - processor

    return peak_above_start(timed, "cpu") | spent


def _digest(loaded: Recommender, answers: list[list[int]]) -> str:
    """A hash of the trie, the catalogue and some answers."""
    assert isinstance(loaded.answerer, LlmAnswerer)
    trie = vars(loaded.answerer.parts.catalogue.trie)
    arrays = [value.numpy().tobytes() for value in trie.values() if isinstance(value, torch.Tensor)]
    digest = hashlib.sha256(json.dumps([answers, table_hash(loaded.catalogue)]).encode())
    for array in arrays:
        digest.update(array)
    return digest.hexdigest()


def _mean_tokens(loaded: Recommender) -> float:
    assert isinstance(loaded.answerer, LlmAnswerer)
    return float(loaded.answerer.parts.catalogue.book.target.length.mean())


def report(found: dict[str, Any], arguments: argparse.Namespace) -> str:
    """Both tables."""
    added, once = found["added"], found["at_once"]
    rows = [
        (f"load a run with {arguments.titles:,} titles", added["parts"]["load"]),
        (f"add {arguments.new:,} titles to it", added["parts"]["add"]),
        (f"load it with all {once['items']:,} titles", once["parts"]["load"]),
    ]
    lines = [
        [what, f"{row['seconds']:.1f}", f"{row['processor_s']:.1f}", f"{row['extra_mb']:.0f}"]
        for what, row in rows
    ]
    searched = [
        [what, f"{seconds:.2f}", f"{processor:.2f}"]
        for what, (seconds, processor) in added["searches"].items()
    ]
    same = "the same" if found["same"] else "NOT the same"
    return "\n".join(
        [
            f"`{found['command']}`", "", one_line(found["hardware"], found["versions"]), "",
            *markdown_table(HEADINGS, lines), "",
            f"Added or loaded at once: {same} trie, catalogue and answers. A title has "
            f"{added['tokens']:.1f} tokens on average.", "",
            *markdown_table(("search for", "seconds", "processor seconds"), searched), "",
        ]
    )  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True, help="folder of a finished LLM run")
    parser.add_argument("--titles", type=int, default=1_000_000, help="of the large catalogue")
    parser.add_argument("--new", type=int, default=10_000, help="titles added to it")
    parser.add_argument("--seed", type=int, default=1, help="of the recombination")
    parser.add_argument("--of", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    main(sys.argv[1:])
