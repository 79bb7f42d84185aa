"""Tables a terminal shows."""

from rich.table import Table

from hatllm.metrics.from_predictions import NLL_COLUMNS
from hatllm.tables.numbers import (
    OVER_USERS,
    cut_offs_of,
    format_value,
    no_hits_note,
    ranking_metrics,
    sentences,
    users_without_a_hit,
)


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
        cells = (format_value(name, v.get(name), v.get(f"{name}_se")) for v in metrics.values())
        table.add_row(name, *cells)
    return table
