"""``report.md`` and ``curves.png`` of one finished run folder."""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
from omegaconf import OmegaConf

from hatllm.config import main_cut_off
from hatllm.figures.curves import draw_curves
from hatllm.figures.saving import save_figure
from hatllm.files import write_text
from hatllm.metrics.from_predictions import NLL_COLUMNS, SLICES, uniform_guess
from hatllm.tables.example_users import describe_examples, pick_examples
from hatllm.tables.numbers import (
    OVER_USERS,
    arrow,
    cut_offs_of,
    format_value,
    no_hits_note,
    sentences,
    users_without_a_hit,
)

NUM_EXAMPLES = 3
COUNTS = ("coverage", "ambiguous_title_rate", "unseen_target_share", "num_examples", "num_users")


def write_run_report(folder: Path, label: str) -> Path:
    """Write the report of a run from the files it left behind.

    Reads ``config.yaml``, ``metrics.json`` and ``predictions.parquet``; ``environment.json``,
    ``curves.csv``, ``examples.parquet`` and ``items.parquet`` where they are there.

    Args:
        folder: A finished run.
        label: What tables call it.

    Returns:
        The path of ``report.md``; ``curves.png`` stands beside it if there are curves.

    Raises:
        ValueError: If a file that the report cannot do without is missing.
    """
    for name in ("config.yaml", "metrics.json", "predictions.parquet"):
        if not (folder / name).exists():
            raise ValueError(f"{folder} has no {name}: the run is not finished")
    config = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    assert isinstance(config, dict)
    settings = {str(key): value for key, value in config.items()}
    metrics = json.loads((folder / "metrics.json").read_text())
    environment = _optional_json(folder / "environment.json")
    sections = [
        f"# Run {folder.resolve().name}",
        _what_ran(settings),
        _main_table(metrics, label, _notes(metrics, settings, uniform_guess(folder))),
        _merged_titles(environment),
        _slices_table(metrics),
        _curves_section(folder, environment.get("exported")),
        _examples_section(folder, label),
        _environment_section(environment),
        f"## Make it again\n\n```\n{_command(folder, environment)}\n```",
    ]
    path = folder / "report.md"
    write_text(path, "\n\n".join(section for section in sections if section) + "\n")
    return path


def markdown_table(head: list[str], rows: list[list[str]], numbers: bool = True) -> str:
    """A GitHub table, first column left, the others right if they hold numbers."""
    marks = [":--", *["--:" if numbers else ":--"] * (len(head) - 1)]
    lines = [head, marks, *[[cell.replace("|", "\\|") for cell in row] for row in rows]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _what_ran(config: Mapping[str, Any]) -> str:
    """One line: model, mask, loss, decoder, data, scale, seed."""
    names = {
        group: (config.get(group) or {}).get("name")
        for group in ("model", "mask", "loss", "decode", "data")
    }
    settings = f"scale {config.get('scale')}, seed {config.get('seed')}"
    if (config.get("model") or {}).get("kind", "llm") != "llm":
        return f"**{names['model']}** on {names['data']}: {settings}."
    return (
        f"**{names['model']}** with mask **{names['mask']}** on {names['data']}: "
        f"loss {names['loss']}, decode {names['decode']}, {settings}."
    )


def _main_table(metrics: Mapping[str, dict[str, float]], label: str, notes: str) -> str:
    """The run's metrics with standard errors, beside popularity and the valid split."""
    columns = {f"{label}, test": metrics["test"]}
    for split, name in (("popularity", "popularity baseline, test"), ("valid", f"{label}, valid")):
        columns |= {name: metrics[split]} if metrics.get(split) else {}
    rows = [
        [name if name.startswith(COUNTS) else arrow(name)]
        + [
            format_value(name, column.get(name), column.get(f"{name}_se"))
            for column in columns.values()
        ]
        for name in _measured(metrics["test"])
    ]
    return f"## Metrics\n\n{markdown_table(['', *columns], rows)}\n\n{notes}"


def _measured(test: Mapping[str, float]) -> list[str]:
    """The rows of the main table that the run has, in their order."""
    cut_offs = cut_offs_of(test)
    main_k = main_cut_off(cut_offs)
    names = [f"HR@{k}" for k in cut_offs]
    names += [f"NDCG@{k}" for k in cut_offs if k > 1]  # at 1 it is HR@1
    names += [
        f"MRR@{main_k}",
        f"item_NDCG@{main_k}",
        *NLL_COLUMNS,
        f"coverage@{main_k}",
        *COUNTS[1:],
    ]
    return [name for name in names if name in test]


def _notes(
    metrics: Mapping[str, dict[str, float]], config: Mapping[str, Any], guess: str | None
) -> str:
    """What must be known to read the main table."""
    top_k = config["decode"]["top_k"]
    too_long = [f"@{k}" for k in config["metrics"]["cut_offs"] if k > top_k]
    notes = [OVER_USERS, no_hits_note(users_without_a_hit(metrics, metrics["test"]))]
    nll = "NLL in nats a title" + (f", {guess}" if guess else "")
    notes.append(f"{nll}; by title unless named item_")
    if too_long:
        notes.append(f"Not measured: {', '.join(too_long)}, of lists of {top_k} (decode.top_k)")
    return sentences(notes)


def _merged_titles(environment: Mapping[str, Any]) -> str:
    """What the ranks of titles that the tokenizer cannot tell apart are; empty without such."""
    counts = environment.get("titles") or {}
    if not counts.get("merged"):
        return ""
    return (
        f"{counts['merged']:,} of {counts['titles']:,} titles have the tokens of another title: "
        "such titles take consecutive ranks, in an order blind to the target, and share the "
        "probability of their tokens."
    )


def _slices_table(metrics: Mapping[str, dict[str, float]]) -> str:
    """Test metrics by the popularity of the target in train."""
    k = main_cut_off(cut_offs_of(metrics["test"]))
    names = ("count", f"HR@{k}", f"NDCG@{k}", "trie_NLL")
    rows = [
        [slice_name]
        + [format_value(name, metrics["test"].get(f"{slice_name}/{name}")) for name in names]
        for slice_name in SLICES
    ]
    note = (
        "Unseen targets never occur in train; head, mid and tail each hold a third of all "
        "train interactions, the most popular items first."
    )
    table = markdown_table(["target", "examples", *names[1:]], rows)
    return f"## By popularity of the target\n\n{table}\n\n{note}"


def _curves_section(folder: Path, exported: Mapping[str, Any] | None) -> str:
    """Draw the curves beside the report; an empty string if there are none."""
    path = folder / "curves.csv"
    if not path.exists():
        return ""
    figure = draw_curves(pl.read_csv(path, infer_schema_length=None))
    if figure is None:
        return ""
    save_figure(figure, folder / "curves.png")
    text = "## Training\n\n![loss and validation curves](curves.png)"
    return text if exported is None else f"{text}\n\n{_why_this_step(exported)}"


def _why_this_step(exported: Mapping[str, Any]) -> str:
    """Which step's weights answer, see `best.exported`."""
    of = f"step {exported['step']} of {exported['of_steps']}"
    return f"The answers are those of {of}: {exported['why']}."


def _examples_section(folder: Path, label: str) -> str:
    """Example users, where the run saved its examples and its catalogue."""
    if not all((folder / name).exists() for name in ("examples.parquet", "items.parquet")):
        return ""
    predictions = pl.read_parquet(folder / "predictions.parquet")
    text = describe_examples(
        pick_examples([predictions], NUM_EXAMPLES),
        pl.read_parquet(folder / "examples.parquet"),
        pl.read_parquet(folder / "items.parquet"),
        {label: predictions},
        shown=label,
    )
    note = (
        "Not a sample: users whose target was found come first. `*` marks the true next item; its "
        "rank is – where it is not among the answers."
    )
    return f"## Example users\n\n{note}\n\n```\n{text}\n```"


def _environment_section(environment: Mapping[str, Any]) -> str:
    """Commit, hardware, versions, hashes and seconds, one row each."""
    if not environment:
        return ""
    elsewhere = ("command", "exported")
    rows = [
        [str(key), _inline(value)] for key, value in environment.items() if key not in elsewhere
    ]
    return f"## Environment\n\n{markdown_table(['', 'value'], rows, numbers=False)}"


def _inline(value: object) -> str:
    """A nested value on one line."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_inline(inner)}" for key, inner in value.items())
    if isinstance(value, list):
        return ", ".join(_inline(inner) for inner in value)
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def _command(folder: Path, environment: Mapping[str, Any]) -> str:
    """The recorded command, or the run's resolved config given back to run.py."""
    recorded = environment.get("command")
    if isinstance(recorded, list):
        return shlex.join(str(part) for part in recorded)
    path = shlex.quote(str(folder.resolve()))
    return str(recorded or f"python run.py --config-path {path} --config-name config")


def _optional_json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text())) if path.exists() else {}
