"""What data weigh in tokens: lengths of titles and prompts, and the size of the item trie."""

import time
from pathlib import Path

import numpy as np
import polars as pl
from rich.table import Table

from hatllm.config import Config
from hatllm.data.datamodule import Examples
from hatllm.data.prepare import Dataset, cache_root
from hatllm.data.prompt import build_prompt_book
from hatllm.decode.catalogue import Catalogue
from hatllm.decode.titles_alike import TitleCounts
from hatllm.files import write_json
from hatllm.memory import peak_memory_mb
from hatllm.model.backbone import load_tokenizer
from hatllm.training.assemble import told_titles


def write_token_counts(config: Config, dataset: Dataset, folder: Path, data_s: float) -> Table:
    """Tokenise the titles, write ``tokens.json``, and show the prompts' lengths.

    Args:
        config: The run; the tokenizer is the backbone's.
        dataset: Its prepared examples.
        folder: Where to write.
        data_s: Seconds that data and report took.

    Returns:
        The table for the terminal.
    """
    start = time.perf_counter()
    tokenizer = load_tokenizer(config.model, cache_root(config))
    items = dataset.items
    book = build_prompt_book(
        tokenizer, config.data.prompt, items["item_id"].to_list(), items["title"].to_list()
    )
    catalogue = Catalogue.of(book)
    told = told_titles(catalogue, dataset, tokenizer.unk_token_id)
    counts = token_counts(catalogue, told, dataset.splits, config.data.max_history_items)
    counts["seconds"] = {
        "data and report": round(data_s, 2),
        "tokenise": round(time.perf_counter() - start, 2),
    }
    counts["peak_memory_mb"] = round(peak_memory_mb())
    write_json(folder / "tokens.json", counts)
    return _token_table(counts, config)


def token_counts(
    catalogue: Catalogue,
    told: TitleCounts,
    splits: dict[str, pl.DataFrame],
    max_history_items: int,
) -> dict[str, object]:
    """Lengths of titles and prompts, and the size of the item trie.

    Args:
        catalogue: The tokenised titles and their trie.
        told: How many titles there are, and are not told apart.
        splits: Examples by split.
        max_history_items: Newest items that enter a prompt.

    Returns:
        Token counts, JSON-able.
    """
    book, trie = catalogue.book, catalogue.trie
    lengths = {}
    for name, frame in splits.items():
        tokens = Examples.of(frame, max_history_items).prompt_lengths(book, with_target=True)
        lengths[name] = {
            "rows": len(tokens),
            "tokens": int(tokens.sum()),
            "mean": round(float(tokens.mean()), 1),
            "p99": int(np.percentile(tokens, 99)),
            "max": int(tokens.max()),
        }
    return {
        "prefix_tokens": len(book.prefix),
        "title_tokens_mean": round(float(book.target.length.mean()), 2),
        "title_tokens_max": int(book.target.length.max()),
        "trie_nodes": trie.num_nodes,
        "trie_branching_nodes": int(trie.is_branching_N.sum()),
        "titles": told.titles,
        "titles_with_tokens_of_another": told.merged,
        "titles_with_unknown_tokens": told.unknown,
        "prompts": lengths,
    }


def _token_table(counts: dict[str, object], config: Config) -> Table:
    table = Table(title=f"tokens of {config.model.name}, prompt and title together")
    for column in ("split", "rows", "tokens", "mean", "p99", "max"):
        table.add_column(column, justify="left" if column == "split" else "right")
    prompts = counts["prompts"]
    assert isinstance(prompts, dict)
    for split, values in prompts.items():
        table.add_row(split, *(f"{values[c]:,}" for c in ("rows", "tokens", "mean", "p99", "max")))
    assert isinstance(counts["seconds"], dict)
    seconds = ", ".join(f"{step} {value} s" for step, value in counts["seconds"].items())
    table.caption = (
        f"{counts['titles']} titles, {counts['trie_nodes']} trie nodes of which "
        f"{counts['trie_branching_nodes']} branch; {seconds}; "
        f"peak memory {counts['peak_memory_mb']} MB"
    )
    return table
