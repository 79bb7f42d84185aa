"""The data report's picture: history lengths, item popularity, rows over time."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure

from hatllm.data.prepare import Dataset
from hatllm.data.split import SPLITS
from hatllm.files import written_whole

COLORS = {"train": "#4878a8", "valid": "#e0a030", "test": "#b04a4a"}
INK = "#333333"
TIME_BINS = 48
OLDEST_SHOWN = 0.01  # quantile
SECONDS_A_DAY = 86_400
LAST_DAY = 365 * 8000  # since 1970; later times are no dates


def draw_data_report(dataset: Dataset, path: Path) -> None:
    """Draw the three panels into a PNG file."""
    figure = Figure(figsize=(13, 3.9), layout="constrained")
    history, popularity, time = figure.subplots(1, 3)
    _draw_history_lengths(history, dataset.splits)
    _draw_popularity(popularity, dataset)
    _draw_rows_over_time(time, dataset.splits)
    for axes in (history, popularity, time):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors=INK, labelsize=9)
        axes.title.set(fontsize=11, color=INK)
    figure.suptitle(dataset.name.replace("$", r"\$"), fontsize=13, color=INK)
    with written_whole(path) as partial:
        figure.savefig(partial, format="png", dpi=120)


def _draw_history_lengths(axes: Any, splits: dict[str, pl.DataFrame]) -> None:
    width = 0.8 / len(SPLITS)
    for place, name in enumerate(SPLITS):
        lengths = splits[name]["history"].list.len().to_numpy()
        values, counts = np.unique(lengths, return_counts=True)
        shares = counts / max(len(lengths), 1)
        label = f"{name} ({len(lengths):,} rows)"
        axes.bar(values + (place - 1) * width, shares, width, color=COLORS[name], label=label)
    axes.set(title="History length", xlabel="items in the history", ylabel="share of the split")
    longest = max(rows["history"].list.len().to_numpy().max(initial=1) for rows in splits.values())
    axes.set_xlim(0.4, longest + 0.6)
    axes.set_ylim(0, 1.3 * axes.get_ylim()[1])  # room for the legend
    axes.set_yticks([share for share in axes.get_yticks() if share <= 1])
    axes.xaxis.get_major_locator().set_params(integer=True, steps=[1, 2, 5, 10])
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.legend(frameon=False, fontsize=9, loc="upper left")


def _draw_popularity(axes: Any, dataset: Dataset) -> None:
    curves = (
        ("interactions", dataset.train_interactions["item_id"], COLORS["train"], "--"),
        ("targets", dataset.full_train["target"], COLORS["train"], "-"),
    )
    for label, items, color, style in curves:
        counts = np.sort(items.value_counts()["count"].to_numpy())[::-1]
        ranks = np.arange(1, len(counts) + 1)
        label = f"{label} ({len(counts):,} items)"
        axes.loglog(ranks, counts, style, color=color, label=label)
    axes.set(title="Item popularity in train", xlabel="rank of the item", ylabel="occurrences")
    axes.legend(frameon=False, fontsize=9)


def _draw_rows_over_time(axes: Any, splits: dict[str, pl.DataFrame]) -> None:
    """The newest 99 % of the rows: a few early ones would push the rest into a corner."""
    days = {name: splits[name]["timestamp"].to_numpy() / SECONDS_A_DAY for name in SPLITS}
    every = np.concatenate(list(days.values()))
    first, last = np.quantile(every, OLDEST_SHOWN), every.max()
    axes.hist(
        [days[name] for name in SPLITS],
        bins=np.linspace(first, max(last, first + 1), TIME_BINS + 1),
        stacked=True,
        color=[COLORS[name] for name in SPLITS],
        label=SPLITS,
    )
    if last < LAST_DAY:
        locator = AutoDateLocator(minticks=3, maxticks=7)
        axes.xaxis.set(major_locator=locator, major_formatter=ConciseDateFormatter(locator))
    axes.set(title="Rows over time (newest 99 %)", xlabel="time of the target", ylabel="rows")
    axes.legend(frameon=False, fontsize=9, title="stacked", title_fontsize=9)
