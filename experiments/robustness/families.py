"""Every causal LM family of transformers, tiny and random: computed rightly, or refused by name.

    python -m experiments.robustness.families [--types llama diffllama] [--parallel 2]

Each family is saved as a model folder and loaded as a run would load it. What is accepted is held
against a forward pass written straight on transformers, in the plain path and both fast ones, under
three masks.
"""

import argparse
import json
import os
import re
import signal
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM

from experiments.robustness.inputs import composed
from experiments.robustness.small_configs import can_slide, model_types, small_config
from experiments.robustness.straight import straight_log_probs
from hatllm.decode.fast.catalogue_states import catalogue_states
from hatllm.decode.fast.tree_scorer import TreeScorers
from hatllm.decode.proof import load_proven_lm, probe_batch, probe_catalogue
from hatllm.masks.schedule import build_schedule
from hatllm.model.backbone import num_layers_of
from hatllm.model.before_loading import check_backbone
from hatllm.model.fast.packed_prompts import hidden_at

RESULTS = Path(__file__).parent / "results"
NOT_MADE = "not_made.txt"
MASKS = ("causal", "hatllm", "hatllm_segments")
CLOSE = 1e-3  # nats, float32: sums in another order differ by 1e-5 on these models
SECONDS = 180  # for one family
SEEDS = (0, 1, 2)  # of the weights: where two differ by a routing near-tie, a third does not


def try_family(model_type: str, window: bool) -> dict[str, Any]:
    """What becomes of one family.

    Args:
        model_type: As transformers names it.
        window: With sliding windows that are off by default.

    Returns:
        Its outcome under each mask: 'equal', 'refused' or 'differs', and what was said.
    """
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for seed in SEEDS:
            _make(model_type, window, seed, folder / f"model{seed}")
        return {mask: _outcome(folder, mask) for mask in MASKS}


class NoWindowError(Exception):
    """A family that has no sliding windows, or has them anyway."""


class NotMadeError(Exception):
    """A family of which no small model could be made, for reasons of its own."""


def _make(model_type: str, window: bool, seed: int, folder: Path) -> None:
    torch.manual_seed(seed)
    try:
        if window and not can_slide(model_type):
            raise NoWindowError
        config = small_config(model_type, window)
        config.save_pretrained(folder)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    except NoWindowError:
        raise
    except Exception as error:  # any, of a model that was not asked for in this size
        if not folder.exists():
            raise NotMadeError(_line(error)) from error
        (folder / NOT_MADE).write_text(_line(error))  # its config may be refused all the same


def _outcome(folder: Path, mask: str) -> dict[str, Any]:
    """The best of several random models: near-ties of routers are no fault of the masks."""
    nats = []
    for seed in SEEDS:
        found = _under(folder / f"model{seed}", mask, folder / "cache")
        if found["outcome"] == "refused":
            return found
        nats.append(found["nats"])
        if nats[-1] <= CLOSE:
            break
    outcome = "equal" if nats[-1] <= CLOSE else "differs"
    return {"outcome": outcome, "nats": nats[-1], "models_tried": len(nats), "all_nats": nats}


def _under(source: Path, mask: str, cache: Path) -> dict[str, Any]:
    words = [f"mask={mask}", "model=huggingface", f"model.source={source}", "model.tuning=none",
             "model.dtype=float32", f"model.backend={_backend(source)}"]  # fmt: skip
    config, said = composed(words), "before"
    try:
        schedule = build_schedule(config.mask, num_layers_of(config.model, cache))
        check_backbone(config.model, schedule, cache)
        if (source / NOT_MADE).exists():
            raise NotMadeError((source / NOT_MADE).read_text())
        said = "after"
        lm = load_proven_lm(config.model, schedule, cache, seed=0)
    except ValueError as error:
        line = re.sub(r" \(verdict: .*\)", "", str(error).replace(str(source), "DIR"))
        return {"outcome": "refused", "when": said, "line": line}
    return {"outcome": "tried", "nats": _nats(lm, source, cache)}


def _backend(source: Path) -> str:
    """Soft-capped attention needs another than the default."""
    return (
        "eager" if '"attn_logit_softcapping": ' in (source / "config.json").read_text() else "sdpa"
    )


@torch.no_grad()
def _nats(lm: Any, source: Path, cache: Path) -> float:
    """The largest difference of any path to the straight pass, whose prompts hold the titles."""
    catalogue = probe_catalogue(64, seed=1)
    batch = probe_batch(catalogue.book, lm.schedule.target_is_item, with_target=True)
    straight = AutoModelForCausalLM.from_pretrained(source, attn_implementation="eager").eval()
    rows = [
        straight_log_probs(
            straight, ids[valid], segment[valid].tolist(), lm.schedule.patterns,
            lm.schedule.intra_scope == "segments",
        )
        for ids, valid, segment in zip(
            batch.input_ids_BL, batch.valid_BL, batch.tokens.segment_BL, strict=True
        )
    ]  # fmt: skip
    asked = batch.target_row_T, batch.target_column_T
    expected_TV = torch.stack([rows[row][column] for row, column in zip(*asked, strict=True)])
    gaps = [
        (lm.logits(hidden_TD).log_softmax(-1) - expected_TV).abs().max().item()
        for hidden_TD in _paths(lm, catalogue, batch, cache)
    ]
    return max(float("inf") if gap != gap else gap for gap in gaps)


def _paths(lm: Any, catalogue: Any, batch: Any, cache: Path) -> Iterator[torch.Tensor]:
    """Hidden states of the titles' tokens: padded, packed, decoded, decoded from stored states."""
    asked = batch.target_row_T, batch.target_column_T
    yield lm.hidden_of_prompts(batch.input_ids_BL, batch.tokens, batch.valid_BL)[asked]
    yield hidden_at(lm, batch, torch.from_numpy(catalogue.book.prefix), *asked)
    prompts = probe_batch(catalogue.book, lm.schedule.target_is_item, with_target=False)
    stored = [None]
    if 0 < lm.schedule.num_segment_layers < lm.num_layers:
        stored.append(catalogue_states(lm, catalogue, cache / "states"))
    nodes = _title_nodes(catalogue, batch)
    for states in stored:
        scorer = TreeScorers(lm, catalogue, states).of(replace(prompts))
        first = nodes == 0
        scorer.hidden_at(asked[0][first], nodes[first])  # the root, and then the rest
        yield scorer.hidden_at(asked[0], nodes)


def _title_nodes(catalogue: Any, batch: Any) -> torch.Tensor:
    """The trie node before each token of the batch's titles. Shape (T,)."""
    book = catalogue.book
    titles = book.target
    path = catalogue.trie.path(torch.from_numpy(titles.flat), torch.from_numpy(titles.offset))
    rows = book.rows_of(batch.target_item_B.numpy())
    parts = [[0, *path[titles.offset[row] : titles.offset[row + 1] - 1].tolist()] for row in rows]
    return torch.tensor([node for part in parts for node in part])


def in_a_process(task: tuple[str, bool]) -> dict[str, Any]:
    """`try_family` in a process of its own, within its seconds; what was raised is a failure."""
    model_type, window = task
    signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(SECONDS)
    start = time.perf_counter()
    try:
        found = try_family(model_type, window)
    except NoWindowError:
        found = {"nothing": "to try"}
    except NotMadeError as error:
        found = {"not_made": str(error)}
    except Exception as error:  # whatever it is, it is what this sweep looks for
        if os.environ.get("HATLLM_TRACEBACK"):
            traceback.print_exc()
        found = {"failed": _line(error)}
    seconds = round(time.perf_counter() - start, 1)
    return {"model_type": model_type, "window": window, "seconds": seconds} | found


def _too_long(*_: Any) -> None:
    raise TimeoutError(f"not done after {SECONDS} s")


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def outcome_of(found: dict[str, Any]) -> str:
    """One word for a family: the worst of what the masks gave."""
    for word in ("failed", "not_made"):
        if word in found:
            return word
    words = {found[mask]["outcome"] for mask in MASKS}
    if "differs" in words:
        return "differs"
    if words == {"equal"}:
        return "equal"
    whens = {found[mask]["when"] for mask in MASKS if found[mask]["outcome"] == "refused"}
    when = "after loading" if "after" in whens else "before loading"
    return f"refused {when}" if "equal" not in words else f"equal, some masks refused {when}"


def main() -> None:
    """Try all families, print a line each and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--types", nargs="*", default=[])
    parser.add_argument("--parallel", type=int, default=2)
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    types = given.types or model_types()
    tasks = [(name, window) for name in types for window in (False, True)]
    results = []
    with get_context("fork").Pool(given.parallel, maxtasksperchild=1) as pool:
        for found in pool.imap(in_a_process, tasks):
            if "nothing" in found:
                continue
            found["outcome"] = outcome_of(found)
            results.append(found)
            print(_report(found), flush=True)
    counts = Counter(found["outcome"] for found in results)
    print(dict(counts))
    if not given.types:
        made = {"transformers": transformers.__version__, "counts": counts, "families": results}
        (RESULTS / "families.json").write_text(json.dumps(made, indent=1) + "\n")


def _report(found: dict[str, Any]) -> str:
    name = found["model_type"] + (" with a window" if found["window"] else "")
    said = {found[mask].get("line") or f"{found[mask]['nats']:.1e}" for mask in MASKS
            if mask in found} or {found.get("failed", found.get("not_made"))}  # fmt: skip
    return f"{name}: {found['outcome']} ({'; '.join(sorted(map(str, said)))}) {found['seconds']} s"


if __name__ == "__main__":
    main()
