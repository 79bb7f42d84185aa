"""A model of a type that no test covers proves itself, once a type and version, or is refused.

On one short prompt, with its own weights, the plain path must give what transformers' own forward
pass gives, and the fast paths (training's packed prompts, decoding's tree) what the plain one
gives under the run's own schedule.

Dimension key: T tokens compared, V vocabulary, D hidden width.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from hatllm.data.prompt import Batch, PromptBook, Ragged, build_batch
from hatllm.decode.catalogue import Catalogue
from hatllm.decode.fast.tree_scorer import TreeScorers
from hatllm.decode.scorer import PlainScorers
from hatllm.files import write_json
from hatllm.masks.schedule import Schedule
from hatllm.model.backbone import load_masked_lm
from hatllm.model.fast.packed_prompts import hidden_at
from hatllm.model.masked_lm import MaskedLM
from hatllm.model.suitability import PROVEN, UNFIT, refuse_by_verdict, verdict_file

if TYPE_CHECKING:
    from hatllm.config import ModelConfig

# Nats between two log-probabilities. Sums in another order differ by 1e-4 in float32; where there
# is no room for that, bfloat16's 8 bits differ by tenths. A mask that is not read differs by more.
TOLERANCE = {torch.float32: 0.01}
LOW_PRECISION_TOLERANCE = 0.5
# Two experts that a router likes equally well may swap places by the last digit of a sum. That
# happens to a token of one prompt, a fault to every prompt.
PROMPTS = 3
MEMORY = Path("/proc/meminfo")


def load_proven_lm(
    config: "ModelConfig", schedule: Schedule, cache_root: Path, seed: int
) -> MaskedLM:
    """As `load_masked_lm`, once a model of an uncovered type has shown that it is computed rightly.

    Raises:
        ValueError: As `load_masked_lm` and `prove`.
    """
    check = partial(prove, config=config, cache_root=cache_root)
    return load_masked_lm(config, schedule, cache_root, seed, check)


def prove(lm: MaskedLM, backend: str, config: "ModelConfig", cache_root: Path) -> None:
    """Let a model of an uncovered type show that it is computed rightly.

    Args:
        lm: The model without adapters.
        backend: The one it has: 'sdpa', 'eager' or 'flex'.
        config: Its settings.
        cache_root: Holds the verdicts.

    Raises:
        ValueError: If it is computed wrongly, now or when it was last tried.
    """
    backbone = lm.backbone[0]
    if backbone.config.model_type in PROVEN:
        return
    path = verdict_file(backbone.config, config, lm.schedule, backend, cache_root)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if not path.exists():
            write_json(path, _verdict(lm, backend))
    refuse_by_verdict(path)


@torch.no_grad()
def _verdict(lm: MaskedLM, backend: str) -> dict[str, Any]:
    """What the comparison gave, and the reason to refuse, if there is one."""
    name = lm.backbone[0].config.model_type
    made: dict[str, Any] = {"model_type": name, "transformers": version("transformers")}
    try:
        with _in_float32(lm) as dtype:
            tolerance = TOLERANCE.get(dtype, LOW_PRECISION_TOLERANCE)
            made |= {"dtype": str(dtype), "tolerance": tolerance, "refused": None}
            for seed in range(PROMPTS):
                made["differences"] = differences(lm, backend, seed)
                if max(made["differences"].values()) <= tolerance:
                    return made
    except UNFIT as error:
        line = " ".join(str(error).split())[:200]
        return made | {"refused": f"model {name!r} cannot run under masks: {line}"}
    pair, nats = max(made["differences"].items(), key=lambda item: item[1])
    reason = (
        f"model {name!r} is not computed rightly under schedule {lm.schedule.letters}: {pair} "
        f"differ by {nats:.3g} nats ({tolerance} allowed)"
    )
    return made | {"refused": reason}


def differences(lm: MaskedLM, backend: str, seed: int) -> dict[str, float]:
    """Largest differences between log-probabilities, by what was compared.

    Args:
        lm: The model.
        backend: The one it has.
        seed: Of the prompt's tokens.

    Returns:
        Nats, by the two that were compared.
    """
    backbone, schedule = lm.backbone[0], lm.schedule
    catalogue = probe_catalogue(len(backbone.get_input_embeddings().weight), seed)
    batch = probe_batch(catalogue.book, schedule.target_is_item, with_target=True)
    lm.schedule = replace(schedule, patterns=("full",) * len(schedule.patterns))
    try:
        causal = _log_probs(lm, _plain(lm, batch)[batch.valid_BL])
    finally:
        lm.schedule = schedule
    return {
        "the plain path and transformers' own": _gap(causal, _own_log_probs(lm, batch, backend)),
        "training's fast path and the plain one": _packed_gap(lm, batch, catalogue),
        "decoding's fast path and the plain one": _decoded_gap(lm, catalogue),
    }


def _plain(lm: MaskedLM, batch: Batch) -> Tensor:
    return lm.hidden_of_prompts(batch.input_ids_BL, batch.tokens, batch.valid_BL)


def _log_probs(lm: MaskedLM, hidden_TD: Tensor) -> Tensor:
    return lm.logits(hidden_TD).log_softmax(-1)


def _gap(one_TV: Tensor, other_TV: Tensor) -> float:
    """The largest difference; infinite where one of them is not a number."""
    gap = float((one_TV - other_TV).abs().max())
    return gap if gap == gap else float("inf")


def _own_log_probs(lm: MaskedLM, batch: Batch, backend: str) -> Tensor:
    """Transformers' own forward pass, row by row and without padding. Shape (T, V)."""
    backbone = lm.backbone[0]
    backbone.set_attn_implementation("eager")
    try:
        rows = [
            backbone(input_ids=ids[valid][None], use_cache=False).logits[0]
            for ids, valid in zip(batch.input_ids_BL, batch.valid_BL, strict=True)
        ]
    finally:
        backbone.set_attn_implementation(f"hatllm_{backend}")
    return torch.cat(rows).float().log_softmax(-1)


def _packed_gap(lm: MaskedLM, batch: Batch, catalogue: Catalogue) -> float:
    row_T, column_T = batch.target_row_T, batch.target_column_T
    prefix_A = torch.from_numpy(catalogue.book.prefix).to(row_T.device)
    packed_TD = hidden_at(lm, batch, prefix_A, row_T, column_T)
    return _gap(_log_probs(lm, packed_TD), _log_probs(lm, _plain(lm, batch)[row_T, column_T]))


def _decoded_gap(lm: MaskedLM, catalogue: Catalogue) -> float:
    """Titles token by token, as a search asks for them: first the root, then all inner nodes."""
    batch = probe_batch(catalogue.book, lm.schedule.target_is_item, with_target=False)
    batch = batch.to(lm.output_embedding_VD.device)
    fast, plain = TreeScorers(lm, catalogue).of(batch), PlainScorers(lm, catalogue).of(batch)
    node_N = (fast.trie.num_children_N > 0).nonzero()[:, 0]
    gaps = []
    for nodes in (node_N[:1], node_N[1:]):
        user_M = torch.arange(batch.num_rows, device=nodes.device).repeat_interleave(len(nodes))
        node_M = nodes.repeat(batch.num_rows)
        got, expected = (_log_probs(lm, x.hidden_at(user_M, node_M)) for x in (fast, plain))
        gaps.append(_gap(got, expected))
    return max(gaps)


def probe_catalogue(vocab_size: int, seed: int) -> Catalogue:
    """Five made-up titles of one to four tokens; two begin alike.

    Args:
        vocab_size: Token ids are below it.
        seed: Of the ids.
    """
    draw = np.random.default_rng(seed)
    ids = draw.choice(np.arange(3, vocab_size), 24, replace=vocab_size < 32).tolist()
    titles = [ids[:2], [ids[0], *ids[2:5]], ids[5:6], ids[6:9], ids[9:12]]
    items = [[*title, ids[12]] for title in titles]
    return Catalogue.of(
        PromptBook(
            np.arange(5), np.arange(5), Ragged.of(items),
            Ragged.of([[*title, 2] for title in titles]),
            np.array(ids[13:16]), np.array(ids[16:18]), pad_id=0, opening=0,
            shown_I=np.zeros(5, np.int64),
        )
    )  # fmt: skip


def probe_batch(book: PromptBook, target_is_item: bool, with_target: bool) -> Batch:
    """Three histories: one begins another, one has an item twice."""
    histories = [np.array(items) for items in ([1, 3, 0], [1, 3], [4, 2, 4])]
    return build_batch(book, [0, 1, 2], histories, [4, 1, 3], target_is_item, with_target)


@contextmanager
def _in_float32(lm: MaskedLM) -> Iterator[torch.dtype]:
    """The model in float32 for a while, where the machine's memory has room; nothing is rounded.

    Yields:
        The dtype it has then.
    """
    tensors = [x for x in (*lm.parameters(), *lm.buffers()) if x.is_floating_point()]
    dtypes = [x.dtype for x in tensors]
    on_cpu = all(x.device.type == "cpu" for x in lm.parameters())
    plain = all(x.is_floating_point() for x in lm.parameters())  # not packed integers
    if not (on_cpu and plain and 4 * sum(x.numel() for x in tensors) < _free_bytes()):
        yield lm.output_embedding_VD.dtype
        return
    try:
        for x in tensors:
            x.data = x.data.float()
        yield torch.float32
    finally:
        for x, dtype in zip(tensors, dtypes, strict=True):
            x.data = x.data.to(dtype)


def _free_bytes() -> int:
    """Memory this process may take; 0 where the system does not say."""
    lines = MEMORY.read_text().splitlines() if MEMORY.exists() else []
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable")]
    return 1024 * int(found[0]) if found else 0
