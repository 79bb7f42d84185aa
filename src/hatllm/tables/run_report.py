"""One run's numbers: on the terminal, and ``report.md`` with ``curves.png`` in its folder."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
from rich.table import Table

from hatllm.config import main_cut_off
from hatllm.data.report import later_notes
from hatllm.data.targets import InPlace
from hatllm.figures.curves import draw_curves
from hatllm.figures.saving import save_figure
from hatllm.files import write_text
from hatllm.metrics.from_predictions import NLL_COLUMNS
from hatllm.metrics.slices import SLICES, SLICES_EXPLAINED
from hatllm.runs.run_files import (
    CONFIG_FILE,
    CURVES_FILE,
    CURVES_PICTURE,
    EXAMPLES_FILE,
    ITEMS_FILE,
    MANIFEST_FILE,
    METRICS_FILE,
    PREDICTIONS_FILE,
    REPORT_FILE,
    check_files,
    read_environment,
    read_manifest,
    read_metrics,
    read_predictions,
    read_settings,
)
from hatllm.tables.example_users import describe_examples, pick_examples
from hatllm.tables.numbers import (
    OVER_USERS,
    arrow,
    cut_offs_of,
    format_row,
    no_hits_note,
    ranking_metrics,
    sentences,
    uniform_guess,
    users_without_a_hit,
)
from hatllm.tables.writers import markdown_table

NUM_EXAMPLES = 3
PRIOR_TEXTS = {"titles": "equal shares of all titles", "popularity": "the shares of popularity"}
COUNTS = ("coverage", "ambiguous_title_rate", "unseen_target_share", "num_examples", "num_users")


def metrics_table(metrics: dict[str, dict[str, float]]) -> Table:
    """Validation, test and the popularity floor, each with its standard error over users.

    Args:
        metrics: As in metrics.json: split -> name -> value.

    Returns:
        One column a split.
    """
    shown = ranking_metrics(cut_offs_of(next(iter(metrics.values()))))
    notes = [OVER_USERS, no_hits_note(users_without_a_hit(metrics, shown))]
    caption = sentences([*notes, "NLL in nats a title, lower is better"])
    table = Table(caption=caption, caption_justify="left")
    table.add_column("")
    for split, values in metrics.items():
        name = "popularity on test" if split == "popularity" else split
        table.add_column(f"{name}\n{values['num_examples']:.0f} examples", justify="right")
    for name in (*shown, *NLL_COLUMNS):
        table.add_row(name, *(format_row(values, name) for values in metrics.values()))
    return table


def write_run_report(folder: Path, label: str) -> Path:
    """Write the report of a run from the files it left behind.

    Reads ``config.yaml``, ``metrics.json`` and ``predictions.parquet``; ``environment.json``,
    ``curves.csv``, ``split_manifest.json``, ``examples.parquet`` and ``items.parquet`` where they
    are there.

    Args:
        folder: A finished run.
        label: What tables call it.

    Returns:
        The path of ``report.md``; ``curves.png`` stands beside it if there are curves.

    Raises:
        ValueError: If a file that the report cannot do without is missing.
    """
    check_files(folder, CONFIG_FILE, METRICS_FILE, PREDICTIONS_FILE)
    settings = read_settings(folder)
    metrics = read_metrics(folder)
    environment = read_environment(folder)
    sections = [
        f"# Run {folder.resolve().name}",
        _what_ran(settings),
        _main_table(metrics, label, _notes(metrics, settings, _nll(folder, environment))),
        _warnings(folder),
        _merged_titles(environment),
        _slices_table(metrics),
        _curves_section(folder, environment.get("exported")),
        _in_place(environment),
        _examples_section(folder, label),
        _environment_section(environment),
        f"## Make it again\n\n```\n{_command(folder, environment)}\n```",
    ]
    path = folder / REPORT_FILE
    write_text(path, "\n\n".join(section for section in sections if section) + "\n")
    return path


def _what_ran(config: Mapping[str, Any]) -> str:
    """One line: model, mask, loss, decoder, data, scale, seed."""
    names = {group: config[group]["name"] for group in ("model", "mask", "loss", "decode", "data")}
    settings = f"scale {config['scale']}, seed {config['seed']}"
    if config["model"]["kind"] != "llm":
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
        + [format_row(column, name) for column in columns.values()]
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


def _notes(metrics: Mapping[str, dict[str, float]], config: Mapping[str, Any], nll: str) -> str:
    """What must be known to read the main table."""
    top_k = config["decode"]["top_k"]
    too_long = [f"@{k}" for k in config["metrics"]["cut_offs"] if k > top_k]
    notes = [OVER_USERS, no_hits_note(users_without_a_hit(metrics, metrics["test"]))]
    notes.append(f"{nll}; by title unless named item_")
    if too_long:
        notes.append(f"Not measured: {', '.join(too_long)}, of lists of {top_k} (decode.top_k)")
    return sentences(notes)


def _nll(folder: Path, environment: Mapping[str, Any]) -> str:
    """What an NLL is of: the temperature it is taken at, and what a uniform guess has."""
    text = "NLL in nats a title"
    if at := environment.get("temperature"):
        text += f", at temperature {at['legal']:g} over the legal tokens"
        text += "" if at["vocabulary"] == at["legal"] else f" and {at['vocabulary']:g} over all"
    if prior := environment.get("prior"):
        text += f", on top of {PRIOR_TEXTS[prior]}"
    guess = uniform_guess(folder)
    return f"{text}, {guess}" if guess else text


def _warnings(folder: Path) -> str:
    """What the numbers cannot be trusted in because of how the data are cut."""
    if not (folder / MANIFEST_FILE).exists():
        return ""
    notes = later_notes(read_manifest(folder))
    return f"**Mind the split**: {sentences(notes)}" if notes else ""


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
    """Test metrics where words and train tell of the target, and where they do not."""
    k = main_cut_off(cut_offs_of(metrics["test"]))
    names = ("count", f"HR@{k}", f"NDCG@{k}", "trie_NLL")
    rows = [
        [slice_name] + [format_row(metrics["test"], f"{slice_name}/{name}") for name in names]
        for slice_name in SLICES
    ]
    table = markdown_table(["target", "examples", *names[1:]], rows)
    return f"## By slice\n\n{table}\n\n{SLICES_EXPLAINED}."


def _curves_section(folder: Path, exported: Mapping[str, Any] | None) -> str:
    """Draw the curves beside the report; an empty string if there are none."""
    path = folder / CURVES_FILE
    if not path.exists():
        return ""
    figure = draw_curves(pl.read_csv(path, infer_schema_length=None))
    if figure is None:
        return ""
    save_figure(figure, folder / CURVES_PICTURE)
    text = f"## Training\n\n![loss and validation curves]({CURVES_PICTURE})"
    return text if exported is None else f"{text}\n\n{_why_this_step(exported)}"


def _in_place(environment: Mapping[str, Any]) -> str:
    """How much of the catalogue the histories could supervise; empty where they did not."""
    counts = environment.get("in_place")
    return "" if counts is None else f"Every item teaches: {InPlace(**counts).note()}."


def _why_this_step(exported: Mapping[str, Any]) -> str:
    """Which step's weights answer, see `hatllm.metrics.best_step.exported`."""
    of = f"step {exported['step']} of {exported['of_steps']}"
    return f"The answers are those of {of}: {exported['why']}."


def _examples_section(folder: Path, label: str) -> str:
    """Example users, where the run saved its examples and its catalogue."""
    if not all((folder / name).exists() for name in (EXAMPLES_FILE, ITEMS_FILE)):
        return ""
    predictions = read_predictions(folder)
    text = describe_examples(
        pick_examples([predictions], NUM_EXAMPLES),
        pl.read_parquet(folder / EXAMPLES_FILE),
        pl.read_parquet(folder / ITEMS_FILE),
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
    elsewhere = ("command", "exported", "temperature", "prior", "in_place")
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
    path = shlex.quote(str(folder.resolve()))
    return str(
        environment.get("command") or f"python run.py --config-path {path} --config-name config"
    )
