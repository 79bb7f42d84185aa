"""From examples to the predictions table: one row an example, however it was batched.

Dimension key: B users of a batch, W titles a user, T target tokens of a batch (flat), P path nodes.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from hatllm.data.datamodule import Examples
from hatllm.data.prompt import Batch
from hatllm.decode.beam import Answers, beam_search
from hatllm.decode.candidates import Candidates, candidates_of
from hatllm.decode.catalogue import Catalogue
from hatllm.decode.exact import Certificate
from hatllm.decode.legal import path_log_probs
from hatllm.decode.scorer import Scorer, build_scorers
from hatllm.decode.search import Search
from hatllm.decode.search import search as search
from hatllm.decode.shards import Shards
from hatllm.decode.titles_alike import RankedTitle, ranked_titles, ranks_of
from hatllm.model.masked_lm import MaskedLM
from hatllm.processes import gather_objects, process_rank
from hatllm.progress import Progress

if TYPE_CHECKING:
    from hatllm.config import Config, DecodeConfig


def predict(
    lm: MaskedLM,
    catalogue: Catalogue,
    frame: pl.DataFrame,
    config: "Config",
    label: str,
) -> pl.DataFrame:
    """Search the best titles of every example; each process takes its share.

    Args:
        lm: The model, on its device.
        catalogue: Tokenised titles and their trie.
        frame: example_id, user_id, history, target.
        config: The run: how histories are cut, the search, the fast or the plain way.
        label: Name of the progress bar.

    Returns:
        The predictions table, by example_id, each example once, the same on every process:
        example_id, user_id, target_item, target_rank (by title, from 1, null = not found),
        target_item_rank (by item id), top_items, top_log_probs, target_trie_log_prob,
        target_vocab_log_prob (nats for the whole title), history_length, ambiguous; and with
        `decode=exact` certified, gap, beam_missed. Titles that became the same tokens take
        consecutive ranks and share the probability of these tokens (`hatllm.decode.titles_alike`),
        targets too. With a length penalty titles stand by log-probability over length; there and
        behind titles that share top_log_probs need not fall. Under `decode=d3` top_log_probs
        is the mixture with the assistant, under `decode.information_gain` the weighed sum, and the
        target's log-probabilities are null: those of the LLM alone are not what it ranks by. Under
        `decode=grounding` top_log_probs is the log-softmax of minus the distance. Under
        `decode.exclude_history` the titles of the whole history are no answers
        (`hatllm.decode.candidates`), and a target among them has no rank; where fewer than top_k
        titles are left, fewer are answered.
    """
    rank, world_size = process_rank()
    mine = frame[rank::world_size]
    rows = [row for batch in _decoded(lm, catalogue, mine, config, label) for row in batch]
    every = [row for part in gather_objects(rows) for row in part]
    return _with_users(_table(every, config.decode), frame)


def predict_into(
    shards: Shards,
    lm: MaskedLM,
    catalogue: Catalogue,
    frame: pl.DataFrame,
    config: "Config",
    label: str,
) -> None:
    """As `predict`, but this process's share goes to its shards, and no process waits for another.

    Args:
        shards: Where to; examples that lie there already are left out.
        lm: The model, on its device.
        catalogue: Tokenised titles and their trie.
        frame: All examples.
        config: The run.
        label: Name of the progress bar.
    """
    left = shards.left_of(frame)
    if left.is_empty():
        return
    pending: list[dict[str, Any]] = []
    batches = _decoded(lm, catalogue, left, config, label)
    for number, rows in enumerate(batches, start=1):
        pending += rows
        if shards.batches_a_file and number % shards.batches_a_file == 0:
            shards.write(_table(pending, config.decode))
            pending = []
    if pending:
        shards.write(_table(pending, config.decode))


def collected(shards: Shards, frame: pl.DataFrame) -> pl.DataFrame:
    """The predictions table of `predict`, once the shards of all processes hold every example."""
    return _with_users(shards.wait_for(frame["example_id"]), frame)


@torch.inference_mode()
def _decoded(
    lm: MaskedLM, catalogue: Catalogue, frame: pl.DataFrame, config: "Config", label: str
) -> Iterator[list[dict[str, Any]]]:
    """The rows of each batch of users; the longest prompts come first."""
    was_training = lm.training
    lm.eval()
    examples = Examples.of(frame, config.data.max_history_items)
    device = lm.output_embedding_VD.device
    lengths = examples.prompt_lengths(catalogue.book, False)
    scorers = build_scorers(lm, catalogue, config, lengths)
    find = Search(scorers, catalogue, config.decode)
    order = np.argsort(lengths, kind="stable")[::-1]
    size = config.decode.users_per_batch
    with Progress(total=len(order), desc=label, unit="user", disable=process_rank()[0] > 0) as bar:
        for start in range(0, len(order), size):
            chosen = order[start : start + size]
            batch = examples.batch(catalogue.book, chosen, lm.schedule.target_is_item, False)
            batch = batch.to(device)
            scorer = scorers.of(batch)
            candidates = None
            if config.decode.exclude_history:
                whole = frame["history"].gather(chosen).to_list()
                candidates = candidates_of(catalogue, whole, None, device)
            found = find(scorer, [examples.histories[row] for row in chosen], candidates)
            yield _rows_of(scorer, catalogue, batch, config.decode, candidates, *found)
            bar.update(len(chosen))
    lm.train(was_training)


def _table(rows: list[dict[str, Any]], config: "DecodeConfig") -> pl.DataFrame:
    return pl.DataFrame(rows, schema=_schema(config), orient="row")


def _with_users(table: pl.DataFrame, frame: pl.DataFrame) -> pl.DataFrame:
    """Each example once, by example_id, with who it is and how long its history."""
    known = frame.select(
        "example_id", "user_id", history_length=pl.col("history").list.len().cast(pl.Int64)
    )
    once = table.unique("example_id", keep="first")
    return once.join(known.unique("example_id"), on="example_id", how="left").sort("example_id")


def _schema(config: "DecodeConfig") -> dict[str, Any]:
    schema: dict[str, Any] = {
        "example_id": pl.Int64,
        "target_item": pl.Int64,
        "target_rank": pl.Int64,
        "target_item_rank": pl.Int64,
        "top_items": pl.List(pl.Int64),
        "top_log_probs": pl.List(pl.Float64),
        "target_trie_log_prob": pl.Float64,
        "target_vocab_log_prob": pl.Float64,
        "ambiguous": pl.Boolean,
    }
    if config.name == "exact":
        schema |= {"certified": pl.Boolean, "gap": pl.Float64, "beam_missed": pl.Int64}
    return schema


def _rows_of(
    scorer: Scorer,
    catalogue: Catalogue,
    batch: Batch,
    config: "DecodeConfig",
    candidates: Candidates | None,
    answers: Answers,
    certificate: Certificate | None,
) -> list[dict[str, Any]]:
    leaf_B = scorer.trie.leaf_of_item(batch.target_item_B)
    sharing = [catalogue.titles_of(leaf) for leaf in leaf_B.tolist()]
    if config.is_mixed:
        trie, vocab = [[None] * batch.num_rows] * 2
    else:
        share_B = torch.tensor([len(titles) for titles in sharing], device=leaf_B.device).log()
        sums = title_log_probs(scorer, leaf_B)
        trie, vocab = ((log_prob_B - share_B).tolist() for log_prob_B in sums)
    proofs: list[dict[str, Any]] = [{}] * batch.num_rows
    if certificate is not None:
        proofs = _proofs(answers, beam_search(scorer, config, None, candidates), certificate)
    rows = []
    for user in range(batch.num_rows):
        target = int(batch.target_item_B[user])
        row = {
            "example_id": int(batch.example_id_B[user]),
            **_ranking(target, ranked_titles(catalogue, answers, user, config.top_k, candidates)),
            "target_trie_log_prob": trie[user],
            "target_vocab_log_prob": vocab[user],
            "ambiguous": any(target in items and len(items) > 1 for items in sharing[user]),
        }
        rows.append(row | proofs[user])
    return rows


def _ranking(target: int, titles: list[RankedTitle]) -> dict[str, Any]:
    rank, item_rank = ranks_of(target, titles) or (None, None)
    return {
        "target_item": target,
        "target_rank": rank,
        "target_item_rank": item_rank,
        "top_items": [title.item_ids[0] for title in titles],
        "top_log_probs": [title.log_prob for title in titles],
    }


def _proofs(answers: Answers, beam: Answers, certificate: Certificate) -> list[dict[str, Any]]:
    """Of each user of `decode=exact`: what is certain, and what the beam did not find."""
    return [
        {
            "certified": bool(certificate.exact_B[user]),
            "gap": float(certificate.gap_B[user]),
            "beam_missed": len(set(found) - set(by_beam) - {-1}),
        }
        for user, (found, by_beam) in enumerate(
            zip(answers.leaf_BW.tolist(), beam.leaf_BW.tolist(), strict=True)
        )
    ]


def title_log_probs(
    scorer: Scorer, leaf_M: Tensor, user_M: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Teacher-forced log-probability of titles.

    Args:
        scorer: Prompts, model and trie.
        leaf_M: The titles' leaves. Shape (M,), int64.
        user_M: The user whom each is asked of; None = one title a user, M = B. Shape (M,), int64.

    Returns:
        Normalised over the legal tokens and over the vocabulary; each (M,), float32, nats.
    """
    path_MP = scorer.trie.path_to(leaf_M)
    row_T, _ = (path_MP >= 0).nonzero(as_tuple=True)
    user_T = row_T if user_M is None else user_M[row_T]
    node_T = path_MP[path_MP >= 0]
    hidden_TD = scorer.hidden_at(user_T, scorer.trie.parent_N[node_T])
    sums = []
    for normalize in ("trie", "vocab"):
        log_prob_T = path_log_probs(scorer.lm, scorer.trie, hidden_TD, node_T, normalize)
        sums.append(log_prob_T.new_zeros(len(leaf_M)).index_add(0, row_T, log_prob_T))
    return sums[0], sums[1]
