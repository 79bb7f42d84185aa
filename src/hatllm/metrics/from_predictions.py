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
from hatllm.metrics.ranking import discounted_gains, hits, reciprocal_ranks, standard_error
from hatllm.metrics.slices import members

NLL_COLUMNS = {"trie_NLL": "target_trie_log_prob", "vocab_NLL": "target_vocab_log_prob"}


def evaluate_predictions(
    predictions: pl.DataFrame, items: pl.DataFrame, slices: pl.DataFrame, cut_offs: Sequence[int]
) -> dict[str, float]:
    """Every metric of one split of one run, flat.

    Where fewer than K titles were found for a user, there are fewer answers to hit with. What
    cannot be measured (NLL of a model without log-probabilities, anything of an empty slice, the
    standard error of one user) is absent, never 0 or NaN.

    Args:
        predictions: One row an example (`hatllm.decode.predict`); one that repeats an
            example_id is dropped.
        items: The catalogue: item_id, title.
        slices: Output of `hatllm.metrics.slices.example_slices` for at least these examples.
        cut_offs: K of HR@K, NDCG@K and MRR@K, none above the number of titles that were asked for
            (``decode.top_k``): of a list of four, HR@10 would be HR@4 under a wrong name.

    Returns:
        ``HR@K``, ``NDCG@K``, ``MRR@K`` by title and ``item_HR@K``, ... by item id, in [0, 1];
        ``trie_NLL``, ``vocab_NLL`` in nats a title; each with its standard error over users as
        ``NAME_se``; ``SLICE/count`` and ``SLICE/HR@K``, ``SLICE/NDCG@K``, ``SLICE/trie_NLL``, with
        errors likewise, for the slices of :mod:`hatllm.metrics.slices`; ``coverage@K``, the share
        of the catalogue's titles that somebody is recommended; ``ambiguous_title_rate`` and
        ``unseen_target_share`` over examples; ``num_examples`` and ``num_users``. The K of slices
        and coverage is :func:`hatllm.config.main_cut_off`.

    Raises:
        ValueError: If there are no predictions, one of them has no slices, or a log-probability is
            missing or not finite.
    """
    main_k = main_cut_off(cut_offs)
    values = example_metrics(predictions, cut_offs)
    predictions = _each_example_once(predictions)
    main = [f"{kind}@{k}" for k in cut_offs for kind in ("HR", "NDCG", "MRR")]
    nlls = [name for name in NLL_COLUMNS if name in values.columns]
    metrics = _means_and_errors(values, [*main, *(f"item_{name}" for name in main), *nlls])
    metrics |= _slice_metrics(values, slices_of(values, slices), main_k)
    return metrics | _shares_and_counts(predictions, items, main_k, metrics["unseen/count"])


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


def slices_of(values: pl.DataFrame, slices: pl.DataFrame) -> pl.DataFrame:
    """The slices of some examples, row by row.

    Args:
        values: example_id, each once.
        slices: Output of `hatllm.metrics.slices.example_slices`.

    Raises:
        ValueError: If an example has none.
    """
    joined = values.select("example_id").join(
        slices, on="example_id", how="left", maintain_order="left"
    )
    missing = joined.filter(pl.col("words").is_null())
    if len(missing):
        raise ValueError(f"example_id={missing['example_id'][0]} of the predictions has no slices")
    return joined


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


def _slice_metrics(values: pl.DataFrame, slices: pl.DataFrame, k: int) -> dict[str, float]:
    """Count, HR@k, NDCG@k and trie_NLL within each slice, each with its error over users."""
    wanted = (f"HR@{k}", f"NDCG@{k}", "trie_NLL")
    names = [name for name in wanted if name in values.columns]
    metrics: dict[str, float] = {}
    for slice_name, is_member in members(slices).items():
        rows = values.filter(is_member)
        metrics[f"{slice_name}/count"] = float(len(rows))
        found = _means_and_errors(rows, names) if len(rows) else {}
        metrics |= {f"{slice_name}/{name}": value for name, value in found.items()}
    return metrics


def _shares_and_counts(
    predictions: pl.DataFrame, items: pl.DataFrame, k: int, num_unseen: float
) -> dict[str, float]:
    """What is no mean of a metric: titles recommended, kinds of targets, examples and users."""
    answers = predictions["top_items"].list.head(k).explode().drop_nulls()
    num_ambiguous = float(predictions["ambiguous"].cast(pl.Float64).sum())
    return {
        f"coverage@{k}": answers.n_unique() / items["title"].n_unique(),
        "ambiguous_title_rate": num_ambiguous / len(predictions),
        "unseen_target_share": num_unseen / len(predictions),
        "num_examples": float(len(predictions)),
        "num_users": float(predictions["user_id"].n_unique()),
    }


def _tensor(column: pl.Series) -> Tensor:
    return torch.from_numpy(column.to_numpy(writable=True))
