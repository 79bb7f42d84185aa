"""The popularity baseline: everybody is recommended the most frequent titles of train.

The user's own history stays in the list unless the run excludes it, as for the LLM arms.
"""

from typing import Any

import polars as pl

from hatllm.baselines.ranks_of_scores import predictions_table
from hatllm.metrics.tie_order import scrambled

# Additive smoothing: added to every title's count, so that an unseen one has a probability. From
# 0.01 to 10,000, four a decade.
PSEUDO_COUNTS = tuple(10 ** (quarter / 4) for quarter in range(-8, 17))


def ranked_predictions(
    ranked: pl.DataFrame, examples: pl.DataFrame, top_k: int, exclude_history: bool = False
) -> pl.DataFrame:
    """Recommend the ``top_k`` most popular titles to every example.

    Items that share a title make one answer with the sum of their counts.

    Args:
        ranked: As `rank_titles` gives it.
        examples: Examples to answer: example_id, user_id, history, target.
        top_k: Titles answered for each example, at least 1.
        exclude_history: Whether the titles of an example's whole history are no answers.

    Returns:
        The predictions table, one row an example. ``target_trie_log_prob`` is that of the target's
        title among all titles; ``target_vocab_log_prob`` is null.

    Raises:
        ValueError: If ``top_k`` is below 1 or a target is not among the ranked items.
    """
    if top_k < 1:
        raise ValueError(f"top_k={top_k} must be at least 1")
    _refuse_unknown_targets(ranked, examples)
    left = (_without_history if exclude_history else _same_for_all)(ranked, examples, top_k)
    rows = examples.select(
        pl.col("example_id", "user_id", "target").cast(pl.Int64), "history"
    ).join(ranked, left_on="target", right_on="item_id", how="left", maintain_order="left")
    rows = pl.concat([rows, left.drop("example_id")], how="horizontal")
    rows = rows.with_columns(
        pl.col("rank") - pl.col("titles_gone"), pl.col("item_rank") - pl.col("items_gone")
    )
    is_left = ~pl.col("is_gone")
    rows = rows.with_columns(
        target_item="target",
        target_rank=pl.when(is_left).then("rank"),
        target_item_rank=pl.when(is_left).then("item_rank"),
        target_trie_log_prob="log_prob",
        history_length=pl.col("history").list.len(),
    )
    return predictions_table(rows, top_k)


def _refuse_unknown_targets(ranked: pl.DataFrame, examples: pl.DataFrame) -> None:
    missing = examples.filter(~pl.col("target").is_in(ranked["item_id"].implode()))
    if len(missing):
        raise ValueError(
            f"examples.target={missing['target'][0]} is not an item_id of the catalogue"
        )


def _same_for_all(ranked: pl.DataFrame, examples: pl.DataFrame, top_k: int) -> pl.DataFrame:
    """As `_without_history`, where nothing is gone."""
    first = ranked.filter(pl.col("rank") <= top_k)
    first = first.unique("rank", keep="first", maintain_order=True)
    return examples.select(
        pl.col("example_id").cast(pl.Int64),
        top_items=pl.lit(first["item_id"].implode()).first(),
        top_log_probs=pl.lit(first["log_prob"].implode()).first(),
        titles_gone=pl.lit(0),
        items_gone=pl.lit(0),
        is_gone=pl.lit(False),
    )


def _without_history(ranked: pl.DataFrame, examples: pl.DataFrame, top_k: int) -> pl.DataFrame:
    """What each example is answered, and what is gone above its target.

    Returns:
        example_id, top_items, top_log_probs, titles_gone and items_gone (before the target),
        is_gone (the target itself), in the examples' order.
    """
    first = ranked.unique("rank", keep="first", maintain_order=True)
    items, log_probs = first["item_id"].to_list(), first["log_prob"].to_list()
    rank_of = dict(ranked.select("item_id", "rank").iter_rows())
    num_items = dict(ranked.group_by("rank").len().iter_rows())
    rows = []
    for example, history, target in examples.select("example_id", "history", "target").iter_rows():
        gone, own = {rank_of[item] for item in history}, rank_of[target]
        # Of the first top_k + len(gone) titles at least top_k are left, where there are as many.
        left = [r for r in range(1, min(top_k + len(gone), len(items)) + 1) if r not in gone]
        above = [rank for rank in gone if rank < own]
        rows.append((
            example, [items[r - 1] for r in left[:top_k]], [log_probs[r - 1] for r in left[:top_k]],
            len(above), sum(num_items[rank] for rank in above), own in gone,
        ))  # fmt: skip
    schema: dict[str, Any] = {
        "example_id": pl.Int64, "top_items": pl.List(pl.Int64),
        "top_log_probs": pl.List(pl.Float64), "titles_gone": pl.Int64, "items_gone": pl.Int64,
        "is_gone": pl.Boolean,
    }  # fmt: skip
    return pl.DataFrame(rows, schema=schema, orient="row")


def rank_titles(counts: pl.DataFrame, valid: pl.DataFrame, items: pl.DataFrame) -> pl.DataFrame:
    """All items of the catalogue, their titles ranked by popularity.

    Titles of equal popularity (all unseen ones among them) are ordered by a hash of their lowest
    item id: stable, blind to the test set, and unlike the plain id unrelated to the order in which
    items first appeared, which would leak what comes late.

    Args:
        counts: How often each item stands in train: item_id, count; others never do.
        valid: Examples that choose the pseudo-count of PSEUDO_COUNTS: target.
        items: The catalogue: item_id, title.

    Returns:
        item_id, rank (of the title, from 1), item_rank (from 1, titles expanded into their items in
        ascending id order), log_prob (of the title: its count and a pseudo-count, normalised),
        ambiguous; best first.
    """
    items = items.select(pl.col("item_id").cast(pl.Int64), "title")
    counted = items.join(
        counts.select(pl.col("item_id").cast(pl.Int64), "count"),
        on="item_id", how="left", maintain_order="left",
    )  # fmt: skip
    titles = counted.group_by("title").agg(
        count=pl.col("count").fill_null(0).sum(),
        first_item=pl.col("item_id").min(),
        ambiguous=pl.len() > 1,
    )
    titles = titles.with_columns(tie=scrambled(titles["first_item"])).sort(
        ["count", "tie", "first_item"], descending=[True, False, False]
    )
    titles = titles.with_columns(rank=pl.int_range(1, pl.len() + 1))
    ranked = items.join(titles, on="title").sort("rank", "item_id")
    targets = valid.select(item_id=pl.col("target").cast(pl.Int64)).join(ranked, on="item_id")
    pseudo_count = _best_pseudo_count(titles["count"], targets["count"])
    total = int(titles["count"].sum()) + pseudo_count * len(titles)
    ranked = ranked.with_columns(
        item_rank=pl.int_range(1, pl.len() + 1),
        log_prob=((pl.col("count") + pseudo_count) / total).log(),
    )
    return ranked.select("item_id", "rank", "item_rank", "log_prob", "ambiguous")


def _best_pseudo_count(counts: pl.Series, of_targets: pl.Series) -> float:
    """The pseudo-count under which the targets of valid are likeliest; 1 where there are none."""
    if of_targets.is_empty():
        return 1.0

    total = int(counts.sum())
    nlls = of_targets.to_frame("count").select(
        (-((pl.col("count") + more) / (total + more * len(counts))).log().sum()).alias(str(more))
        for more in PSEUDO_COUNTS
    )
    return min(zip(nlls.row(0), PSEUDO_COUNTS, strict=True))[1]
