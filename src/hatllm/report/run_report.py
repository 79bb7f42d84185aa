"""``report.md`` and ``curves.png`` of one finished run folder."""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
from omegaconf import OmegaConf

from hatllm.report.curves import draw_curves
from hatllm.report.evaluation import SLICES, uniform_guess
from hatllm.report.examples import describe_examples, pick_examples
from hatllm.report.figures import save_figure
from hatllm.whole_files import write_text

NUM_EXAMPLES = 3
HIGHER, LOWER = "↑", "↓"
RANKING_METRICS = ("HR@1", "HR@5", "HR@10", "NDCG@5", "NDCG@10", "MRR@10", "item_NDCG@10")
MAIN_METRICS = (*RANKING_METRICS, "trie_NLL", "vocab_NLL")
COUNTS = ("coverage@10", "ambiguous_title_rate", "unseen_target_share", "num_examples", "num_users")
DASH = "–"


def write_run_report(folder: Path) -> Path:
    """Write the report of a run from the files it left behind.

    Reads ``config.yaml``, ``metrics.json`` and ``predictions.parquet``; ``environment.json``,
    ``run.json``, ``curves.csv``, ``examples.parquet`` and ``items.parquet`` where they are there.

    Args:
        folder: A finished run.

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
    metrics = json.loads((folder / "metrics.json").read_text())
    environment = _optional_json(folder / "environment.json")
    label = str(_optional_json(folder / "run.json").get("label", "test"))
    sections = [
        f"# Run {folder.resolve().name}",
        _what_ran({str(key): value for key, value in config.items()}),
        _main_table(metrics, label, uniform_guess(folder)),
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


def format_value(name: str, value: float | None, error: float | None = None) -> str:
    """A metric with as many digits as it deserves, ``± error`` behind it; a dash for None."""
    if value is None:
        return DASH
    if name.startswith("num_") or name.endswith("count"):
        return f"{value:,.0f}"
    digits = 3 if name.endswith("NLL") else 4
    text = f"{value:.{digits}f}"
    return text if error is None else f"{text} ± {error:.{digits}f}"


def arrow(name: str) -> str:
    """The metric's name with the direction that is better."""
    return f"{name} {LOWER if name.endswith('NLL') else HIGHER}"


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


def _main_table(metrics: Mapping[str, dict[str, float]], label: str, guess: str | None) -> str:
    """The run's metrics with standard errors, beside popularity and the valid split."""
    columns = {label: metrics["test"]}
    columns |= {name: metrics[name] for name in ("popularity", "valid") if metrics.get(name)}
    names = [name for name in MAIN_METRICS if any(name in column for column in columns.values())]
    rows = [
        [arrow(name)]
        + [
            format_value(name, column.get(name), column.get(f"{name}_se"))
            for column in columns.values()
        ]
        for name in names
    ]
    rows += [
        [name] + [format_value(name, column.get(name)) for column in columns.values()]
        for name in COUNTS
        if name in metrics["test"]
    ]
    heads = [f"{label} (test)", *list(columns)[1:]]
    nll = "NLL in nats a title" + (f", {guess}" if guess else "")
    note = f"± is the standard error over users; {nll}; by title unless named item_."
    return f"## Metrics\n\n{markdown_table(['', *heads], rows)}\n\n{note}"


def _slices_table(metrics: Mapping[str, dict[str, float]]) -> str:
    """Test metrics by the popularity of the target in train."""
    names = ("count", "HR@10", "NDCG@10", "trie_NLL")
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
    note = "Not a sample: users whose target was found come first. `*` marks the true next item."
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
