"""What a beam loses of the proven top ten, decoder by decoder, user by user, of a finished run.

    python -m experiments.paper.beam.measure outputs/RUN [outputs/RUN ...] --users 200

`decode=exact` proves each user's ten most probable titles. Every other decoder is held against
them: which of the ten it misses, at which token the beam let go of each, where the target stands.
A user is a line of `outputs/RUN/beam/records.jsonl`, written as it comes: a command that was
stopped goes on there. Then the tables and the figure are made (`losses.py`, `draw.py`).

Dimension key: B users of a batch, M questions, N trie nodes.
"""

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from experiments.paper.beam.draw import write_figure
from experiments.paper.beam.losses import write_tables
from experiments.paper.beam.records import EXACT, fell_at, path_kinds
from experiments.speed.workload import composed
from hatllm.config import Config, DecodeConfig
from hatllm.data.datamodule import Examples, IntArray
from hatllm.data.prepare import cache_root
from hatllm.decode.beam import beam_search
from hatllm.decode.exact import exact_search
from hatllm.decode.scorer import Scorer, Scorers, build_scorers
from hatllm.decode.titles_alike import ranked_titles, ranks_of
from hatllm.files import write_text
from hatllm.model.backbone import load_tokenizer
from hatllm.model.masked_lm import MaskedLM
from hatllm.runs.begin import check_data_unchanged
from hatllm.runs.folder import finished_config, load_config
from hatllm.runs.run_files import read_identity
from hatllm.training.assemble import Parts, assemble, load_tuned

# The words of each decoder; its normalisation is the run's where they do not say.
DECODERS: Mapping[str, tuple[str, ...]] = {
    EXACT: ("decode=exact",),
    "beam 10": ("decode=beam", "decode.beam_width=10"),
    "beam 20": ("decode=beam", "decode.beam_width=20"),
    "beam 40": ("decode=beam", "decode.beam_width=40"),
    "generate": ("decode=generate",),
    "temperature 1": ("decode=beam", "decode.temperature=1"),
    f"{EXACT}, temperature 1": ("decode=exact", "decode.temperature=1"),
}

console = Console()


class Watch:
    """Sees every continuation that a beam weighs; as `Candidates` of whom all are alive."""

    def __init__(self, num_users: int, num_nodes: int) -> None:
        self.weighed_BN = torch.zeros(num_users, num_nodes, dtype=torch.bool)

    def alive(self, user_M: Tensor, node_M: Tensor) -> Tensor:
        """Note the nodes; all may answer."""
        self.weighed_BN[user_M.cpu(), node_M.cpu()] = True
        return torch.ones_like(node_M, dtype=torch.bool)


class Measurement:
    """A finished run under several decoders."""

    def __init__(self, config: Config, parts: Parts, lm: MaskedLM, tokens: Any) -> None:
        """Compose the decoders.

        Args:
            config: The run's settings.
            parts: Its data and catalogue.
            lm: Its model.
            tokens: From token ids to their texts.
        """
        self.parts, self.lm, self.tokens = parts, lm, tokens
        self.examples = Examples.of(parts.dataset.splits["test"], config.data.max_history_items)
        self.configs = {
            name: replace(config, decode=_decode(words, config)) for name, words in DECODERS.items()
        }
        lengths = self.examples.prompt_lengths(parts.catalogue.book, False)
        self.scorers: Scorers = build_scorers(lm, parts.catalogue, self.configs[EXACT], lengths)

    def rows_of(self, num_users: int) -> IntArray:
        """Rows of the split, evenly spread."""
        count = min(num_users, len(self.examples))
        return np.linspace(0, len(self.examples) - 1, count).astype(np.int64)

    def records(self, rows: IntArray, is_timed: bool) -> list[dict[str, Any]]:
        """What each decoder finds for a batch of rows.

        Args:
            rows: Of the split.
            is_timed: Whether every decoder reads the prompts itself, for its seconds; else all use
                the states of the first one, and no seconds are taken.
        """
        found = [self._row(row) for row in rows.tolist()]
        targets = [record["target_item"] for record in found]
        scorer: Scorer | None = None
        proven: list[list[int]] = []
        for name, config in self.configs.items():
            start = time.process_time()  # of all threads: what else runs counts little
            if scorer is None or is_timed:
                scorer = self._scorer(rows)
            parts = self._answers(scorer, config, targets, proven)
            seconds = (time.process_time() - start) / len(rows)
            proven = proven or [part["leaves"] for part in parts]
            for record, part in zip(found, parts, strict=True):
                record["decoders"][name] = {**part, "seconds": seconds if is_timed else None}
        for record, leaves in zip(found, proven, strict=True):
            record["kinds"] = path_kinds(self.parts.catalogue.trie, leaves, self.tokens)
        return found

    def _row(self, row: int) -> dict[str, Any]:
        """Whose record it is."""
        return {
            "example_id": int(self.examples.example_id_G[row]),
            "user_id": int(self.parts.dataset.splits["test"]["user_id"][row]),
            "target_item": int(self.examples.target_G[row]),
            "decoders": {},
        }

    def _scorer(self, rows: IntArray) -> Scorer:
        target_is_item = self.lm.schedule.target_is_item
        batch = self.examples.batch(self.parts.catalogue.book, rows, target_is_item, False)
        return self.scorers.of(batch.to(self.lm.output_embedding_VD.device))

    def _answers(
        self, scorer: Scorer, config: Config, targets: Sequence[int], proven: list[list[int]]
    ) -> list[dict[str, Any]]:
        """Of each user the leaves, best first, the target's rank, what is proven or what fell."""
        self.lm.trie_temperature, self.lm.vocab_temperature = config.temperatures
        watch = Watch(scorer.num_users, scorer.trie.num_nodes)
        if config.decode.name == "exact":
            answers, certificate = exact_search(scorer, config.decode)
        else:
            answers = beam_search(scorer, config.decode, candidates=watch)  # type: ignore[arg-type]
        parts: list[dict[str, Any]] = []
        for user, target in enumerate(targets):
            leaves = [leaf for leaf in answers.leaf_BW[user].tolist() if leaf >= 0]
            titles = ranked_titles(self.parts.catalogue, answers, user, config.decode.top_k)
            ranks = ranks_of(target, titles)
            parts.append({"leaves": leaves, "target_rank": None if ranks is None else ranks[0]})
            if config.decode.name == "exact":
                parts[-1]["is_proven"] = bool(certificate.exact_B[user])
                parts[-1]["scored"] = int(certificate.expanded_B[user])
            else:
                weighed_N = watch.weighed_BN[user]
                parts[-1]["fell"] = fell_at(scorer.trie, weighed_N, proven[user], leaves)
        return parts


def _decode(words: Sequence[str], run: Config) -> DecodeConfig:
    """The decoder of some words, as a run of its own would compose it."""
    words = [*words, f"decode.top_k={run.decode.top_k}", "model.dtype=float32"]
    if "decode=generate" not in words:
        words.append(f"decode.normalize={run.decode.normalize}")
    return composed(*words).decode


def measured(
    measurement: Measurement,
    path: Path,
    num_users: int,
    num_timed: int,
    batch_size: int,
    limit: int | None = None,
) -> list[dict[str, Any]]:
    """Measure the rows that the file does not have yet, and return the records of all.

    Args:
        measurement: The run.
        path: One JSON line a user.
        num_users: Rows, evenly spread over the split.
        num_timed: How many of them are timed; the next ones, where fewer are so far.
        batch_size: Users searched together.
        limit: At most so many now; None = all that are left.
    """
    rows = measurement.rows_of(num_users)
    order = np.random.default_rng(0).permutation(len(rows))  # timed users are like all others
    done = {record["example_id"]: record for record in read_records(path)}
    left = [row for row in rows[order] if int(measurement.examples.example_id_G[row]) not in done]
    num_timed = max(0, num_timed - sum(map(_is_timed, done.values())))
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without a line that was cut off, which the next one would go on.
    write_text(path, "".join(json.dumps(record) + "\n" for record in done.values()))
    with path.open("a") as file:
        for batch, is_timed in _batches(left[:limit], num_timed, batch_size):
            start = time.perf_counter()
            for record in measurement.records(np.array(batch), is_timed):
                done[record["example_id"]] = record
                file.write(json.dumps(record) + "\n")
            file.flush()
            console.print(
                f"{len(done)} of {len(rows)} users, {time.perf_counter() - start:.0f} s for "
                f"{len(batch)}{' (timed)' if is_timed else ''}"
            )
    wanted = {int(example) for example in measurement.examples.example_id_G[rows]}
    return [record for example, record in done.items() if example in wanted]


def _is_timed(record: dict[str, Any]) -> bool:
    return record["decoders"][EXACT]["seconds"] is not None


def _batches(
    rows: Sequence[int], num_timed: int, batch_size: int
) -> Iterator[tuple[Sequence[int], bool]]:
    for part, is_timed in ((rows[:num_timed], True), (rows[num_timed:], False)):
        for start in range(0, len(part), batch_size):
            yield part[start : start + batch_size], is_timed


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a file, none where there is none; a line that was cut off is left out.

    Raises:
        ValueError: If they are of other decoders.
    """
    records = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue  # the process was killed while it wrote
    if any(list(record["decoders"]) != list(DECODERS) for record in records):
        raise ValueError(f"{path} has records of other decoders; --fresh measures anew")
    return records


def load(folder: Path, num_threads: int) -> Measurement:
    """A finished LLM run, in float32 on the CPU.

    Raises:
        ValueError: If the folder holds none, or its data have changed.
    """
    config = finished_config(folder)
    assert config is not None
    if config.model.kind != "llm":
        raise ValueError(f"{folder} is a run of model={config.model.name}; give an LLM's")
    config.task.run_folder, config.num_threads = str(folder), num_threads
    config.model.dtype, config.trainer.accelerator = "float32", "cpu"
    config.decode.assistant_run = None
    check_data_unchanged(config, folder)
    parts = assemble(config, finished=folder)
    tokens = load_tokenizer(config.model, cache_root(config)).convert_ids_to_tokens
    return Measurement(config, parts, load_tuned(parts, config), tokens)


@torch.inference_mode()
def _labels(folders: Sequence[Path]) -> dict[Path, str]:
    """What each run is called: its label, or its folder's name where another has that label."""
    for folder in folders:
        load_config(folder, "run")  # refuses by name what is no finished run
    label = {folder: str(read_identity(folder, "label")["label"]) for folder in folders}
    often = Counter(label.values())
    return {f: name if often[name] == 1 else f.resolve().name for f, name in label.items()}


def main(argv: Sequence[str]) -> None:
    """Measure the runs, and write tables and figure of all users so far."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, help="folders of finished LLM runs")
    parser.add_argument("--users", type=int, default=200, help="test rows, evenly spread")
    parser.add_argument("--timed", type=int, default=16, help="of these the timed ones")
    parser.add_argument("--limit", type=int, help="measure at most so many more users now")
    parser.add_argument("--tables", action="store_true", help="only tables and figure, no model")
    parser.add_argument("--batch", type=int, default=8, help="users searched together")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--fresh", action="store_true", help="forget what was measured before")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args(argv)
    found = {}
    try:
        labels = _labels(arguments.runs)
        for folder in arguments.runs:
            path = folder / "beam" / "records.jsonl"
            if arguments.fresh:
                path.unlink(missing_ok=True)
            label = labels[folder]
            found[label] = read_records(path) if arguments.tables else measured(
                load(folder, arguments.threads), path, arguments.users, arguments.timed,
                arguments.batch, arguments.limit,
            )  # fmt: skip
            if not found[label]:
                raise ValueError(f"{path} has no records yet; leave --tables out")
        write_tables(found, arguments.output)
    except ValueError as error:
        parser.error(str(error))
    write_figure(found, arguments.output / "beam.png")
    console.print(f"tables and figure: {arguments.output}")


if __name__ == "__main__":
    main(sys.argv[1:])
