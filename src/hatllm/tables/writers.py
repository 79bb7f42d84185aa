"""Comparisons written down: Markdown, LaTeX (booktabs), CSV and the terminal.

All of them take the same cells (:func:`arm_texts`), so that they say one thing: behind ± and in
bold stands what :mod:`hatllm.tables.numbers` has for every table.
"""

from collections.abc import Sequence
from pathlib import Path

import polars as pl
from rich.table import Table
from rich.text import Text

from hatllm.config import main_cut_off
from hatllm.figures.comparison_plot import draw_comparison
from hatllm.figures.saving import save_figure
from hatllm.files import write_csv, write_text
from hatllm.metrics.slices import SLICES_EXPLAINED
from hatllm.tables.comparison import Arm, Comparison
from hatllm.tables.numbers import (
    BOLD,
    DASH,
    MEANS,
    arrow,
    columns_of,
    format_difference,
    format_value,
    missing_note,
    nll_note,
    no_hits_note,
    sentences,
)
from hatllm.tables.paired_arms import Tested
from hatllm.tables.published import METRICS as PUBLISHED_METRICS
from hatllm.tables.published import NOTE as PUBLISHED_NOTE
from hatllm.tables.published import published_on
from hatllm.tables.slice_tables import (
    UNCOPIED_NOTE,
    difference_cells,
    frame_cells,
    numbers_cells,
    slices_frame,
    slices_note,
)

MISSING = "missing"
PAIRED = (
    "Δ: paired difference to the arm named in 'against' on the same examples and seeds (an arm "
    "that has no seed: to the average over all seeds), 95 % bootstrap interval over users, p of "
    "Wilcoxon's signed-rank test over users after Holm's correction over the arms of the table; * "
    "below 0.05, with an interval that leaves 0 out. Both are over users: how far another seed "
    "would move the difference is not in them. Gain: of NDCG, relative to the arm in 'against'"
)
LATEX_SIGNS = {"_": r"\_", "%": r"\%", "±": r"$\pm$", "Δ": r"$\Delta$", "–": "--", "&": r"\&",
               "#": r"\#", "*": "$^*$", "<": "$<$", "↑": r"$\uparrow$",
               "↓": r"$\downarrow$"}  # fmt: skip


def write_comparison(comparison: Comparison, folder: Path) -> Path:
    """Write ``table.md``, ``table.tex``, ``table.csv``, ``slices.csv`` and ``comparison.png``.

    Args:
        comparison: Output of :mod:`hatllm.tables.comparison`.
        folder: Made if it is not there.

    Returns:
        The path of ``table.md``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "table.md"
    parts = [*_markdown_block(comparison), legend([comparison]), f"{SLICES_EXPLAINED}."]
    write_text(path, "\n\n".join(parts) + "\n")
    write_text(folder / "table.tex", latex([comparison]))
    write_csv(folder / "table.csv", comparison_frame([comparison]))
    write_csv(folder / "slices.csv", slices_frame([comparison]))
    save_figure(draw_comparison(comparison), folder / "comparison.png")
    return path


def write_slices(comparisons: Sequence[Comparison], folder: Path) -> None:
    """Write ``slices.md`` and ``slices.csv``: every arm within every slice of every data set."""
    frame = slices_frame(comparisons)
    write_csv(folder / "slices.csv", frame)
    write_text(folder / "slices.md", f"{markdown_table(*frame_cells(frame))}\n\n{slices_note()}\n")


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]], numbers: bool = True) -> str:
    """A GitHub table, first column left, the others right if they hold numbers."""
    marks = [":--", *["--:" if numbers else ":--"] * (len(head) - 1)]
    lines = [head, marks, *[[cell.replace("|", "\\|") for cell in row] for row in rows]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def markdown(
    comparisons: Sequence[Comparison],
    published: pl.DataFrame | None = None,
    facts: Sequence[str] = (),
) -> str:
    """One section a data set.

    Args:
        comparisons: One a data set.
        published: Output of `read_published`; None = not shown.
        facts: Lines on what the table was made with.

    Returns:
        Markdown.
    """
    parts = []
    for block in comparisons:
        parts += [f"## {block.data}", *_markdown_block(block)]
        if theirs := published_on(published, block.data):
            names = ("method", *PUBLISHED_METRICS, "source")
            table = markdown_table(
                ["", *names[1:]], [[row[name] for name in names] for row in theirs]
            )
            parts += [f"### Published on {block.data}", PUBLISHED_NOTE, table]
    parts += [
        legend(comparisons),
        slices_note(),
        *(["\n".join(f"- {fact}" for fact in facts)] if facts else []),
    ]
    return "\n\n".join(parts) + "\n"


def latex(comparisons: Sequence[Comparison], published: pl.DataFrame | None = None) -> str:
    """One booktabs table a data set, to be read into a paper's own file."""
    return "\n".join(_latex_block(block, published) for block in comparisons)


def comparison_frame(comparisons: Sequence[Comparison]) -> pl.DataFrame:
    """Every number in a column of its own, one row a data set and arm; null where there is none."""
    records = [_record(block, arm) for block in comparisons for arm in block.arms]
    return pl.DataFrame(records, infer_schema_length=None)


def rich_table(comparison: Comparison) -> Table:
    """The main columns for a terminal 80 wide: ``rich.print(rich_table(comparison))``.

    A cell holds, one below the other, the mean, its standard error over users, and the standard
    deviation over seeds; a difference holds its mean and the bounds of its interval.
    """
    table = Table(
        title=f"{comparison.num_examples} test examples of {comparison.num_users} users",
        caption=Text(f"{notes(comparison)} {legend([comparison])}"),  # labels are no markup
        caption_justify="left",
        show_lines=True,
    )
    metrics = (f"HR@{main_cut_off(comparison.cut_offs)}", *comparison.tested_metrics)
    shown = {"", *map(arrow, metrics), *map("Δ {}".format, comparison.tested_metrics), "seeds"}
    heads = _heads(comparison)
    columns = [number for number, head in enumerate(heads) if head in shown]
    for column in columns:
        text = Text(heads[column].replace("Δ ", "Δ\n"))
        table.add_column(text, justify="right" if column else "left", overflow="fold")
    for arm in comparison.arms:
        cells = arm_texts(comparison, arm)
        texts = [(_stacked(cells[n][0]) if n else cells[n][0], cells[n][1]) for n in columns]
        table.add_row(*(Text(text, style="bold" if best else "") for text, best in texts))
    return table


def rich_differences(comparison: Comparison) -> Table | None:
    """The differences where copying is impossible, for a terminal; None = nothing is compared."""
    head, rows = difference_cells(comparison)
    if not rows:
        return None
    table = Table(title="Where copying is impossible", caption=f"{UNCOPIED_NOTE}.")
    table.caption_justify = "left"
    for number, text in enumerate(["", "slice", *head[4:]]):
        table.add_column(Text(text), justify="left" if number < 2 else "right", overflow="fold")
    for arm, against, name, count, *texts in rows:
        # Two to a cell: so the names stay whole on 80 columns.
        pairs = [f"{arm}\n- {against}", f"{name}\n{count} examples", *map(_stacked, texts)]
        table.add_row(*map(Text, pairs))
    return table


def arm_texts(comparison: Comparison, arm: Arm) -> list[tuple[str, bool]]:
    """The cells of one arm, each with whether it is the clear best of its column."""
    cells = [(arm.label, False)]
    for metric in comparison.metrics:
        number, text = arm.numbers.get(metric), DASH
        if number is not None:
            text = format_value(metric, number.mean, number.standard_error, number.std)
        cells.append((text, comparison.best.get(metric) == arm.label))
    if not arm.seeds:
        cells[1] = (MISSING, False)
    if comparison.is_paired:
        gain = comparison.gain(arm)
        cells += [(arm.compared_with or DASH, False)]
        cells += [(DASH if gain is None else f"{100 * gain:+.1f} %", False)]
        cells += [(_tested_text(m, arm.tests.get(m)), False) for m in comparison.tested_metrics]
    return [*cells, (arm.seeds_text, False)]


def notes(comparison: Comparison) -> str:
    """What the numbers of this data set need beside the legend."""
    num_users = [
        comparison.num_users
        for arm in comparison.arms
        if any(n.mean == 0 for name, n in arm.numbers.items() if name.startswith("HR@"))
    ]
    size = f"{comparison.num_examples:,} examples of {comparison.num_users:,} users"
    return sentences(
        [
            *(f"Warning: {warning}" for warning in comparison.warnings),
            nll_note([comparison.guess] if comparison.guess else []),
            no_hits_note(num_users),
            missing_note(comparison.short),
            f"Split {comparison.split_hash}, {size}",
        ]
    )


def legend(comparisons: Sequence[Comparison]) -> str:
    """What stands in the cells of every data set's table."""
    paired = PAIRED if any(block.is_paired for block in comparisons) else ""
    return sentences([MEANS, BOLD, paired])


def _heads(comparison: Comparison) -> list[str]:
    differences = [f"Δ {metric}" for metric in comparison.tested_metrics]
    paired = ["against", "gain", *differences] if comparison.is_paired else []
    return ["", *map(arrow, comparison.metrics), *paired, "seeds"]


def _tested_text(metric: str, tested: Tested | None) -> str:
    if tested is None:
        return DASH
    p = "p < 0.001" if tested.corrected < 0.001 else f"p = {tested.corrected:.3f}"
    star = " *" if tested.holds else ""
    return f"{format_difference(metric, tested.difference)}, {p}{star}"


def _markdown_block(block: Comparison) -> list[str]:
    """The table of one data set and its notes, then its slices."""
    rows = [
        [f"**{text}**" if best else text for text, best in arm_texts(block, arm)]
        for arm in block.arms
    ]
    head, differences = difference_cells(block)
    uncopied = ["Where copying is impossible:", markdown_table(head, differences)]
    by_slice = ["By slice:", markdown_table(*numbers_cells(block))]
    return [
        markdown_table(_heads(block), rows),
        notes(block),
        *([*uncopied, f"{UNCOPIED_NOTE}."] if differences else []),
        *by_slice,
    ]


def _record(block: Comparison, arm: Arm) -> dict[str, object]:
    """One row of the CSV file."""
    record: dict[str, object] = {"data": block.data, "label": arm.label}
    for metric in block.metrics:
        record |= columns_of(metric, arm.numbers.get(metric))
        record[f"{metric}_best"] = block.best.get(metric) == arm.label
    record |= {"compared_with": arm.compared_with, "gain": block.gain(arm)}
    for metric in block.tested_metrics:
        tested = arm.tests.get(metric)
        difference = tested and tested.difference
        record |= {
            f"{metric}_difference": difference and difference.mean,
            f"{metric}_difference_low": difference and difference.low,
            f"{metric}_difference_high": difference and difference.high,
            f"{metric}_p_wilcoxon": tested and tested.p_value,
            f"{metric}_p_holm": tested and tested.corrected,
            f"{metric}_p_sign_flip": difference and difference.p_value,
        }
    record |= {"num_seeds": len(arm.seeds), "num_planned": arm.num_planned}
    record |= {"num_users": block.num_users, "num_examples": block.num_examples}
    return record | {"split_hash": block.split_hash}


def _stacked(text: str) -> str:
    """The parts of a cell on lines of their own; of a difference without its p value."""
    if "]" in text:
        star = " *" if text.endswith("*") else ""
        text = text[: text.index("]") + 1].replace(" [", f"{star} [")
    for mark in (" ±", " (", " [", ", "):
        text = text.replace(mark, "\n" + mark.strip(" ,"))
    return text


def _latex_block(block: Comparison, published: pl.DataFrame | None) -> str:
    """A complete table environment."""
    heads = _heads(block)
    lines = [
        f"% {block.data or 'runs'}, split {block.split_hash}",
        "\\begin{table}",
        f"\\begin{{tabular}}{{l{'r' * (len(heads) - 1)}}}",
        "\\toprule",
        _latex_row(["Arm", *heads[1:]]),
        "\\midrule",
    ]
    for arm in block.arms:
        cells = [(_latex(text), best) for text, best in arm_texts(block, arm)]
        texts = [f"\\textbf{{{text}}}" if best else text for text, best in cells]
        lines.append(" & ".join(texts) + r" \\")
    if theirs := published_on(published, block.data):
        title = "\\emph{Published: other backbone, scale and choice of the epoch}"
        lines += ["\\midrule", f"\\multicolumn{{{len(heads)}}}{{l}}{{{title}}} \\\\"]
    for row in theirs:
        numbers = [row.get(metric, DASH) for metric in block.metrics]
        rest = [DASH] * (len(heads) - 1 - len(numbers))
        lines.append(_latex_row([row["method"], *numbers, *rest]))
    told = " ".join([*([f"{block.data}."] if block.data else []), notes(block), legend([block])])
    lines += ["\\bottomrule", "\\end{tabular}", f"\\caption{{{_latex(told)}}}", "\\end{table}", ""]
    return "\n".join(lines)


def _latex_row(texts: Sequence[str]) -> str:
    return " & ".join(map(_latex, texts)) + r" \\"


def _latex(text: str) -> str:
    """Text with LaTeX's special characters written out."""
    return "".join(LATEX_SIGNS.get(sign, sign) for sign in text)
