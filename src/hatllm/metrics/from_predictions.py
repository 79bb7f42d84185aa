"""From the predictions table to the numbers of one run.

The main metrics identify an answer by its title; those named ``item_`` identify it by item id. All
of them are means over examples, each example counted once, targets that were not found included.
"""

import math
from collections.abc import Sequence

import polars as pl
import torch
from torch import Tensor

from hatllm.config import main_cut_off
from hatllm.data.train_interactions import item_counts
from hatllm.metrics.ranking import discounted_gains, hits, reciprocal_ranks, standard_error

SLICES = ("unseen", "tail", "mid", "head")
NLL_COLUMNS = {"trie_NLL": "target_trie_log_prob", "vocab_NLL": "target_vocab_log_prob"}


def evaluate_predictions(
    predictions: pl.DataFrame,
    items: pl.DataFrame,
    train_interactions: pl.DataFrame,
    cut_offs: Sequence[int],
) -> dict[str, float]:
    """Every metric of one split of one run, flat.

    Where fewer than K titles were found for a user, there are fewer answers to hit with. What
    cannot be measured (NLL of a model without log-probabilities, anything of an empty slice, the
    standard error of one user) is absent, never 0 or NaN.

    Args:
        predictions: One row an example (`hatllm.decode.predict`); one that repeats an
            example_id is dropped.
        items: The catalogue: item_id, title.
        train_interactions: What train holds, each interaction once: item_id.
        cut_offs: K of HR@K, NDCG@K and MRR@K, none above the number of titles that were asked for
            (``decode.top_k``): of a list of four, HR@10 would be HR@4 under a wrong name.

    Returns:
        ``HR@K``, ``NDCG@K``, ``MRR@K`` by title and ``item_HR@K``, ... by item id, in [0, 1];
        ``trie_NLL``, ``vocab_NLL`` in nats a title; each with its standard error over users as
        ``NAME_se``; ``SLICE/count`` and ``SLICE/HR@K``, ``SLICE/NDCG@K``, ``SLICE/trie_NLL`` for
        the slices of :func:`target_slices`; ``coverage@K``, the share of the catalogue's titles
        that somebody is recommended; ``ambiguous_title_rate`` and ``unseen_target_share`` over
        examples; ``num_examples`` and ``num_users``. The K of slices and coverage is
        :func:`hatllm.config.main_cut_off`.

    Raises:
        ValueError: If there are no predictions, or a log-probability is missing or not finite.
    """
    main_k = main_cut_off(cut_offs)
    values = example_metrics(predictions, cut_offs)
    predictions = _each_example_once(predictions)
    slices = target_slices(predictions["target_item"], train_interactions)
    main = [f"{kind}@{k}" for k in cut_offs for kind in ("HR", "NDCG", "MRR")]
    nlls = [name for name in NLL_COLUMNS if name in values.columns]
    metrics = _means_and_errors(values, [*main, *(f"item_{name}" for name in main), *nlls])
    metrics |= _slice_metrics(values, slices, main_k)
    answers = predictions["top_items"].list.head(main_k).explode().drop_nulls()
    metrics[f"coverage@{main_k}"] = answers.n_unique() / items["title"].n_unique()
    metrics["ambiguous_title_rate"] = float(predictions["ambiguous"].cast(pl.Float64).sum())
    metrics["ambiguous_title_rate"] /= len(predictions)
    metrics["unseen_target_share"] = metrics["unseen/count"] / len(predictions)
    metrics["num_examples"] = float(len(predictions))
    metrics["num_users"] = float(predictions["user_id"].n_unique())
    return metrics


def example_metrics(predictions: pl.DataFrame, cut_offs: Sequence[int]) -> pl.DataFrame:
    """The metrics of every single example, the numbers that all means and tests start from.

    Args:
        predictions: One row an example; rows that repeat an example_id are dropped.
        cut_offs: K of HR@K, NDCG@K and MRR@K.

    Returns:
        example_id, user_id, then ``HR@K``, ``NDCG@K``, ``MRR@K``, their ``item_`` twins, and
        ``trie_NLL``, ``vocab_NLL`` where the model has them; one row an example, by example_id.

    Raises:
        ValueError: As :func:`evaluate_predictions`.
    """
    predictions = _each_example_once(predictions)
    columns: dict[str, Tensor] = {}
    for prefix, column in (("", "target_rank"), ("item_", "target_item_rank")):
        rank_B = _ranks(predictions, column)
        for k in cut_offs:
            columns[f"{prefix}HR@{k}"] = hits(rank_B, k)
            columns[f"{prefix}NDCG@{k}"] = discounted_gains(rank_B, k)
            columns[f"{prefix}MRR@{k}"] = reciprocal_ranks(rank_B, k)
    values = predictions.select("example_id", "user_id").with_columns(
        pl.Series(name, column_B.numpy()) for name, column_B in columns.items()
    )
    nlls = [_negated(predictions, column, name) for name, column in NLL_COLUMNS.items()]
    return values.with_columns(nll for nll in nlls if nll is not None)


def ranks_and_nlls(predictions: pl.DataFrame) -> tuple[Tensor, dict[str, Tensor]]:
    """What a validation measures.

    Args:
        predictions: One row an example; rows that repeat an example_id are dropped.

    Returns:
        Rank of each target by title, 0 = not found, shape (B,); and by name the NLL that the model
        has, shape (B,), nats a title; by example_id.

    Raises:
        ValueError: As :func:`evaluate_predictions`.
    """
    predictions = _each_example_once(predictions)
    nlls = {name: _negated(predictions, column, name) for name, column in NLL_COLUMNS.items()}
    known = {name: _tensor(nll) for name, nll in nlls.items() if nll is not None}
    return _ranks(predictions, "target_rank"), known


def target_slices(targets: pl.Series, train_interactions: pl.DataFrame) -> pl.Series:
    """The popularity slice of each target: ``unseen``, ``tail``, ``mid`` or ``head``.

    The popularity of an item is how many train interactions it has; an unseen item has none. The
    others, most popular first, are cut so that head holds the first third of all these
    interactions, mid the second and tail the last; items of equal popularity stay together, in the
    slice in which the first of them begins.

    Args:
        targets: Item ids.
        train_interactions: What train holds, each interaction once: item_id.

    Returns:
        The slices' names, in the order of ``targets``.
    """
    counts = item_counts(train_interactions["item_id"])
    by_count = (
        counts.group_by("count").agg(total=pl.col("count").sum()).sort("count", descending=True)
    )
    share_before = (pl.col("total").cum_sum() - pl.col("total")) / pl.col("total").sum()
    by_count = by_count.select("count", slice=_third(share_before))
    item_slices = counts.join(by_count, on="count").select("item_id", "slice")
    joined = (
        targets.cast(pl.Int64)
        .to_frame("item_id")
        .join(item_slices, on="item_id", how="left", maintain_order="left")
    )
    return joined["slice"].fill_null("unseen")


def _third(share_before: pl.Expr) -> pl.Expr:
    """The slice that begins at a cumulative share of train interactions."""
    return (
        pl.when(share_before < 1 / 3)
        .then(pl.lit("head"))
        .when(share_before < 2 / 3)
        .then(pl.lit("mid"))
        .otherwise(pl.lit("tail"))
    )


def _each_example_once(predictions: pl.DataFrame) -> pl.DataFrame:
    """Rows by example_id, the first of those that a distributed sampler repeated."""
    if predictions.is_empty():
        raise ValueError("predictions has no rows: there is nothing to evaluate")
    once = predictions.unique("example_id", keep="first", maintain_order=True)
    return once.sort("example_id")  # so that float sums do not depend on the processes' order


def _ranks(predictions: pl.DataFrame, column: str) -> Tensor:
    """Ranks of the targets, 0 = not found. Shape (B,), int64."""
    return _tensor(predictions[column].cast(pl.Int64).fill_null(0))


def _negated(predictions: pl.DataFrame, column: str, name: str) -> pl.Series | None:
    """Minus a log-probability column; None where the model has none, an error where it has gaps."""
    if column not in predictions.columns or predictions[column].is_null().all():
        return None
    log_prob = predictions[column].cast(pl.Float64)
    bad = predictions.filter(~log_prob.is_finite().fill_null(False))
    if len(bad):
        raise ValueError(
            f"predictions.{column} is missing or not finite for {len(bad)} of {len(predictions)} "
            f"examples, first example_id={bad['example_id'][0]}: a mean over the rest would not "
            "be comparable"
        )
    return (-log_prob).alias(name)


def _means_and_errors(values: pl.DataFrame, names: list[str]) -> dict[str, float]:
    """Each metric's mean over examples and, for two or more users, its standard error."""
    user_id_B = _tensor(values["user_id"])
    metrics: dict[str, float] = {}
    for name in names:
        value_B = _tensor(values[name])
        metrics[name] = float(value_B.mean())
        error = float(standard_error(value_B, user_id_B))
        if not math.isnan(error):
            metrics[f"{name}_se"] = error
    return metrics


def _slice_metrics(values: pl.DataFrame, slices: pl.Series, k: int) -> dict[str, float]:
    """Count, HR@k, NDCG@k and trie_NLL within each popularity slice of the targets."""
    names = [f"HR@{k}", f"NDCG@{k}", "trie_NLL"]
    metrics: dict[str, float] = {}
    for name in SLICES:
        rows = values.filter(slices == name)
        metrics[f"{name}/count"] = float(len(rows))
        for metric in names:
            if len(rows) and metric in values.columns:
                metrics[f"{name}/{metric}"] = float(_tensor(rows[metric]).mean())
    return metrics


def _tensor(column: pl.Series) -> Tensor:
    return torch.from_numpy(column.to_numpy(writable=True))
