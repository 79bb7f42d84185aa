"""Which settings make a run what it is: they give its hash and its folder.

A setting counts where another value can give other numbers. It does not count where they differ by
rounding alone, or by which activations dropout hides: these are drawn anew for passes of another
size as they are on other hardware. So a run that ran out of memory goes on with smaller passes, and
a finished one answers whatever machine asks. `run_name` or `output_root` keep runs apart that only
differ in such settings, to time them, say.
"""

from collections.abc import Iterable
from copy import deepcopy
from dataclasses import fields
from typing import Any

from hatllm.config.baseline import SEEDLESS_KINDS
from hatllm.config.decode import DecodeConfig

# What is to be done, where files lie, what is logged, how a run fits its machine.
NOT_IN_HASH = (
    "task", "logger", "experiment", "sweep", "scale", "num_threads", "data_root", "cache_root",
    "output_root", "run_name", "data.histories", "model.gradient_checkpointing", "model.compile",
    "decode.users_per_batch", "decode.state_cache", "trainer.name", "trainer.accelerator",
    "trainer.devices", "trainer.num_nodes", "trainer.strategy", "trainer.micro_batch_size",
    "trainer.checkpoint_every_steps",
)  # fmt: skip
# Rows of a pass over all processes: under msl_ats the temperature moves with every pass.
ROWS_OF_PASSES = ("trainer.micro_batch_size", "trainer.devices", "trainer.num_nodes")
# Settings that no baseline reads; `loss`, `mask` and the search are about titles as texts.
OF_LLMS = (
    "mask", "loss", "trainer", "fast", "data.prompt", "model.source", "model.num_layers",
    "model.dtype", "model.tuning", "model.start_from", "model.lora", "model.quantization_bits",
    "model.backend", "model.item_vectors", "model.item_curriculum",
    *(f"decode.{field.name}" for field in fields(DecodeConfig) if field.name != "top_k"),
)  # fmt: skip
# Settings that name the folder of another run. Its own name tells its settings; where it lies, it
# may move.
OTHER_RUNS = (("model", "start_from"), ("model", "item_vectors"), ("decode", "assistant_run"))


def makes_steps(tuning: str, max_steps: int) -> bool:
    """Whether an LLM is trained: ``model.tuning`` and ``trainer.max_steps`` both allow it."""
    return tuning != "none" and max_steps != 0


def can_seed_change(
    kind: str, tuning: str, max_steps: int, other_runs: Iterable[str | None]
) -> bool:
    """Whether two seeds can give two results.

    Args:
        kind: ``model.kind``.
        tuning: ``model.tuning``.
        max_steps: ``trainer.max_steps``.
        other_runs: The values of OTHER_RUNS; a run that it needs has another seed too.
    """
    if kind != "llm":
        return kind not in SEEDLESS_KINDS
    return makes_steps(tuning, max_steps) or any(run is not None for run in other_runs)


def settings_that_count(settings: dict[str, Any]) -> dict[str, Any]:
    """Those of a run's settings that can change its numbers, whatever its seed.

    Args:
        settings: By name, groups as dictionaries; some may be missing.

    Returns:
        A copy without NOT_IN_HASH, and without OF_LLMS where the run is a baseline.
    """
    left_out = set(NOT_IN_HASH)
    if _value(settings, "model", "kind") != "llm":
        left_out |= set(OF_LLMS)
    elif _value(settings, "loss", "name") == "msl_ats":
        left_out -= set(ROWS_OF_PASSES)
    if _value(settings, "trainer", "strategy") == "fsdp":  # its checkpoints are for it alone
        left_out -= {"trainer.strategy"}
    kept = deepcopy(settings)
    for name in left_out:
        group, _, setting = name.partition(".")
        if not setting:
            kept.pop(group, None)
        elif group in kept:
            kept[group].pop(setting, None)
    return kept


def _value(settings: dict[str, Any], group: str, name: str) -> Any:
    return settings[group].get(name) if group in settings else None
