"""The results of an experiment as Markdown, LaTeX (booktabs) and CSV, one block a data set."""

import math
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from hatllm.tables.experiment_results import Arm, Results, Tested
from hatllm.tables.numbers import (
    BOLD,
    DASH,
    OVER_SEEDS,
    OVER_USERS,
    arrow,
    format_value,
    missing_note,
    no_hits_note,
    sentences,
)
from hatllm.tables.run_report import markdown_table

MISSING = "missing"
PUBLISHED_METRICS = ("HR@5", "HR@10", "NDCG@5", "NDCG@10")
LEGEND = (
    f"Means over seeds; {OVER_USERS}, {OVER_SEEDS}. Gain: of NDCG, relative to the arm named in "
    "'against'. Δ: paired difference to it on the same examples and seeds (an arm that has no "
    "seed: to the average over all seeds), 95 % bootstrap interval over users, p of Wilcoxon's "
    "signed-rank test over users after Holm's correction over the arms of the table; * below 0.05, "
    "with an interval that leaves 0 out. Both are over users: how far another seed would move the "
    f"difference is not in them. {BOLD}. NLL in nats a title."
)
PUBLISHED_NOTE = (
    "Published numbers, for orientation only: another backbone (LLaMA3-8B for the LLM arms), "
    "another scale, epochs picked on the test set; not comparable with ours number by number."
)


def markdown_results(
    results: Sequence[Results], published: pl.DataFrame | None, facts: Sequence[str]
) -> str:
    """One section a data set.

    Args:
        results: One table a data set.
        published: Output of :func:`read_published`; None = not shown.
        facts: Lines on what the table was made with.

    Returns:
        Markdown.
    """
    parts = []
    for block in results:
        head = ["", *map(arrow, block.metrics), "against", "gain",
                *(f"Δ {metric}" for metric in block.tested_metrics), "seeds"]  # fmt: skip
        rows = [_texts(block, arm, "**{}**") for arm in block.arms]
        parts += [f"## {block.data}", markdown_table(head, rows)]
        parts += [f"Warning: {warning}." for warning in block.warnings]
        parts += [notes] if (notes := _notes(block)) else []
        parts.append(f"Split {block.split_hash}.")
        if published is not None and len(theirs := _published_of(published, block.data)):
            parts += [f"### Published on {block.data}", PUBLISHED_NOTE, _published_table(theirs)]
    return "\n\n".join([*parts, LEGEND, "\n".join(f"- {fact}" for fact in facts)]) + "\n"


def latex_results(results: Sequence[Results], published: pl.DataFrame | None) -> str:
    """One booktabs table a data set, to be read into a paper's own file."""
    return "\n".join(_latex_block(block, published) for block in results)


def results_frame(results: Sequence[Results]) -> pl.DataFrame:
    """Every number in a column of its own, one row a data set and arm; null where there is none."""
    records = []
    for block in results:
        for arm in block.arms:
            record: dict[str, object] = {"data": block.data, "label": arm.label}
            for metric in block.metrics:
                cell = None if arm.row is None else arm.row.cells.get(metric)
                record[metric] = cell and cell.mean
                record[f"{metric}_se"] = cell and _finite(cell.standard_error)
                record[f"{metric}_std_over_seeds"] = cell and _finite(cell.std)
                record[f"{metric}_best"] = block.best.get(metric) == arm.label
            record |= {"compared_with": arm.compared_with, "gain": block.gain(arm)}
            for metric in block.tested_metrics:
                tested = arm.tests.get(metric)
                difference = tested and tested.difference
                for field in ("mean", "low", "high"):
                    name = f"{metric}_difference" + ("" if field == "mean" else f"_{field}")
                    record[name] = difference and getattr(difference, field)
                record[f"{metric}_p_wilcoxon"] = tested and tested.p_value
                record[f"{metric}_p_holm"] = tested and tested.corrected
            record |= {"num_seeds": len(arm.row.seeds) if arm.row else 0}
            records.append(record | {"num_planned": arm.num_planned, "split": block.split_hash})
    return pl.DataFrame(records, infer_schema_length=None)


def read_published(path: Path) -> pl.DataFrame:
    """Published numbers.

    Args:
        path: CSV with the columns data, method, source and those of ``PUBLISHED_METRICS``.

    Raises:
        ValueError: If there is no such file or a column is missing.
    """
    if not path.exists():
        raise ValueError(f"experiment.published={str(path)!r}: no such file; null shows none")
    table = pl.read_csv(path)
    missing = [c for c in ("data", "method", "source", *PUBLISHED_METRICS) if c not in table]
    if missing:
        raise ValueError(f"experiment.published={str(path)!r} has no column {missing[0]!r}")
    return table


def _texts(block: Results, arm: Arm, bold: str) -> list[str]:
    """The cells of one arm; ``bold`` marks what is clearly best."""
    if arm.row is None:
        blanks = [DASH] * (len(block.metrics) + 2 + len(block.tested_metrics))
        return [arm.label, MISSING, *blanks[1:], f"0 of {arm.num_planned}"]
    texts = [arm.label]
    for metric in block.metrics:
        cell = arm.row.cells.get(metric)
        text = DASH
        if cell is not None:
            text = format_value(metric, cell.mean, cell.standard_error, cell.std)
        texts.append(bold.format(text) if block.best.get(metric) == arm.label else text)
    gain = block.gain(arm)
    texts += [arm.compared_with or DASH, DASH if gain is None else f"{100 * gain:+.1f} %"]
    texts += [_tested_text(metric, arm.tests.get(metric)) for metric in block.tested_metrics]
    there = len(arm.row.seeds)
    return [*texts, str(there) if there == arm.num_planned else f"{there} of {arm.num_planned}"]


def _notes(block: Results) -> str:
    """What the numbers of this data set need beside the legend."""
    rows = [arm.row for arm in block.arms if arm.row is not None]
    no_hits = [
        row.num_users
        for row in rows
        if any(cell.mean == 0 for name, cell in row.cells.items() if name.startswith("HR@"))
    ]
    guess = f"trie_NLL: {block.guess} nats" if block.guess else ""
    return sentences([guess, no_hits_note(no_hits), missing_note(block.short)])


def _tested_text(metric: str, tested: Tested | None) -> str:
    if tested is None:
        return DASH
    digits = 3 if metric.endswith("NLL") else 4
    mean, low, high = (
        f"{value:+.{digits}f}"
        for value in (tested.difference.mean, tested.difference.low, tested.difference.high)
    )
    return f"{mean} [{low}, {high}], {_p_text(tested)}"


def _p_text(tested: Tested) -> str:
    text = "p < 0.001" if tested.corrected < 0.001 else f"p = {tested.corrected:.3f}"
    return f"{text} *" if tested.holds else text


def _latex_block(block: Results, published: pl.DataFrame | None) -> str:
    """A complete table environment."""
    tested = [f"$\\Delta$ {_latex(metric)}" for metric in block.tested_metrics]
    heads = ["Arm", *map(_latex, block.metrics), "Against", "Gain", *tested, "Seeds"]
    lines = [
        f"% {block.data}, split {block.split_hash}",
        *(f"% warning: {warning}" for warning in block.warnings),
        "\\begin{table}",
        f"\\begin{{tabular}}{{l{'r' * (len(heads) - 1)}}}",
        "\\toprule",
        " & ".join(heads) + r" \\",
        "\\midrule",
    ]
    for arm in block.arms:
        label, *texts = _texts(block, arm, "BOLD{}")
        lines.append(" & ".join([_latex(label), *map(_latex_cell, texts)]) + r" \\")
    theirs = None if published is None else _published_of(published, block.data)
    if theirs is not None and len(theirs):
        width = len(heads)
        lines += ["\\midrule", f"\\multicolumn{{{width}}}{{l}}{{\\emph{{Published: other backbone, "
                  "scale and choice of the epoch}} \\\\"]  # fmt: skip
        for row in theirs.iter_rows(named=True):
            numbers = [
                _latex(_number(row[metric])) if metric in PUBLISHED_METRICS else "--"
                for metric in block.metrics
            ]
            rest = ["--"] * (width - 1 - len(numbers))
            lines.append(" & ".join([_latex(row["method"]), *numbers, *rest]) + r" \\")
    notes = [_notes(block), LEGEND]
    caption = f"{_latex(block.data)}. {_latex(' '.join(note for note in notes if note))}"
    lines += ["\\bottomrule", "\\end{tabular}", f"\\caption{{{caption}}}", "\\end{table}", ""]
    return "\n".join(lines)


def _latex_cell(text: str) -> str:
    bold = text.startswith("BOLD")
    cell = _latex(text.removeprefix("BOLD"))
    return f"\\textbf{{{cell}}}" if bold else cell


def _latex(text: str) -> str:
    """Text with LaTeX's special characters written out."""
    signs = {"_": r"\_", "%": r"\%", "±": r"$\pm$", "Δ": r"$\Delta$", "–": "--", "&": r"\&",
             "#": r"\#", "*": "$^*$", "<": "$<$"}  # fmt: skip
    return "".join(signs.get(sign, sign) for sign in text)


def _published_of(published: pl.DataFrame, data: str) -> pl.DataFrame:
    return published.filter(pl.col("data") == data)


def _published_table(theirs: pl.DataFrame) -> str:
    rows = [
        [row["method"], *(_number(row[metric]) for metric in PUBLISHED_METRICS), row["source"]]
        for row in theirs.iter_rows(named=True)
    ]
    return markdown_table(["", *PUBLISHED_METRICS, "source"], rows)


def _number(value: float | None) -> str:
    return DASH if value is None else f"{value:.4f}"


def _finite(value: float) -> float | None:
    return None if math.isnan(value) else value
