"""Tables a terminal shows."""

from rich.table import Table

SHOWN = ("NDCG@5", "NDCG@10", "HR@5", "HR@10", "trie_NLL", "vocab_NLL")


def metrics_table(metrics: dict[str, dict[str, float]]) -> Table:
    """Validation, test and the popularity floor, each with its standard error over users.

    Args:
        metrics: As in metrics.json: split -> name -> value.

    Returns:
        One column a split.
    """
    table = Table(caption="± standard error over users; NLL in nats a title, lower is better")
    table.add_column("")
    for split, values in metrics.items():
        name = "popularity on test" if split == "popularity" else split
        table.add_column(f"{name}\n{values['num_examples']:.0f} examples", justify="right")
    for name in SHOWN:
        table.add_row(name, *(_cell(values, name) for values in metrics.values()))
    return table


def _cell(values: dict[str, float], name: str) -> str:
    if name not in values:
        return "–"
    digits = 2 if name.endswith("NLL") else 4
    error = values.get(f"{name}_se")
    return f"{values[name]:.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")
