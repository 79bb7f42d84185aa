"""The predicted cost of one run: counts, memory, and times measured on a few of its batches."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from hatllm.config import Config
from hatllm.data.prepare import cache_root, load_dataset
from hatllm.decode.fast.catalogue_states import states_file, tokens_to_build
from hatllm.decode.scorer import states_pay
from hatllm.model.masked_lm import MaskedLM
from hatllm.plan.forecast_table import (
    NO_TIME,
    RunPlan,
    Seconds,
    SplitSize,
    StatesSize,
    TrieSize,
)
from hatllm.plan.loads import Load, loads_of, steps_done
from hatllm.plan.timed_batches import Calibration, calibrate, seconds_an_epoch, uses_gpu
from hatllm.runs.begin import check_data_unchanged
from hatllm.runs.folder import finished_config, is_finished
from hatllm.runs.name import config_hash, of_any_seed, run_folder, run_label
from hatllm.training.assemble import Parts, assemble, check_catalogue

DECODED = ("valid", "test")


def plan_run(
    config: Config,
    measured: "dict[str, Measured]",
    coming: Mapping[str, Config] | None = None,
) -> RunPlan:
    """The predicted cost of one run.

    Args:
        config: The run.
        measured: What was measured for runs that differ in the seed only; grows.
        coming: Runs before this one that are not made yet, by folder.

    Returns:
        Counts, memory and times; a finished run costs nothing.
    """
    found = RunPlan(run_label(config), config.seed, "to run", config.data.name)
    folder = run_folder(config)
    if is_finished(folder) and not config.task.force:
        check_data_unchanged(config, folder)
        found.status = "finished"
    elif config.model.kind != "llm":
        _plan_baseline(config, found)
    else:
        _plan_llm(config, folder, found, measured, coming or {})
    return found


def _plan_baseline(config: Config, found: RunPlan) -> None:
    """Time to prepare, and of an epoch: how many there will be, early stopping decides."""
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    start = time.perf_counter()
    dataset = load_dataset(config)
    check_catalogue(config, dataset)
    prepared = time.perf_counter()
    found.seconds["prepare"] = Seconds.exactly(prepared - start)
    settings = config.model.sequence
    if settings is None:
        return
    epoch = Seconds.exactly(seconds_an_epoch(config, dataset))
    found.calibration_seconds = time.perf_counter() - prepared
    epochs = f"{settings.max_epochs}"
    if settings.patience is not None and settings.patience < settings.max_epochs:
        epochs = f"{settings.patience + 1} to {epochs}"
    found.status = f"to run: {epochs} epochs of {epoch}, not in the sum"


@dataclass
class Measured:
    """What runs share that differ in the seed only; the model itself is not kept."""

    parts: Parts
    calibration: Calibration
    states: StatesSize | None
    states_ready: bool
    num_tuned: int
    num_frozen: int
    prepare_seconds: float


def _plan_llm(
    config: Config,
    folder: Path,
    found: RunPlan,
    measured: dict[str, Measured],
    coming: Mapping[str, Config],
) -> None:
    key = _cost_key(config, coming)
    start = time.perf_counter()
    parts = measured[key].parts if key in measured else assemble(config, coming=coming)
    loads = loads_of(config, parts, steps_done(config, folder))
    if key not in measured:
        measured[key] = _measure(config, parts, loads, start)
        found.calibration_seconds = measured[key].calibration.seconds
    _fill_counts(config, folder, found, parts, loads)
    _fill_costs(config, found, loads, measured[key])


def _cost_key(config: Config, coming: Mapping[str, Config]) -> str:
    """Equal for runs that cost the same: of any seed, and so the runs that they need."""

    def find(folder: str) -> Config | None:
        return coming.get(folder) or finished_config(Path(folder))

    pieces = (config.trainer, config.decode.users_per_batch, config.model.compile,
              config.model.gradient_checkpointing)  # fmt: skip
    return f"{config_hash(of_any_seed(config, find))} {pieces}"


def _measure(config: Config, parts: Parts, loads: dict[str, Load], start: float) -> Measured:
    """Load the model, count its parameters and calibrate."""
    # With the whole run's batches: another seed's run may have more steps to go than this one.
    train = loads_of(config, parts, 0)["train"] if config.trains else loads["train"]
    lm = parts.load_model(config)
    tuned = sum(p.numel() for p in lm.parameters() if p.requires_grad)
    tuned_inside = sum(p.numel() for p in lm.backbone[0].parameters() if p.requires_grad)
    prepared = time.perf_counter() - start
    calibration = calibrate(config, parts, lm, train, loads["test"], "test")
    states, ready = _states(config, parts, lm, loads)
    return Measured(
        parts, calibration, states, ready, tuned,
        lm.backbone[0].num_parameters() - tuned_inside, prepared,
    )  # fmt: skip


def _states(
    config: Config, parts: Parts, lm: MaskedLM, loads: dict[str, Load]
) -> tuple[StatesSize | None, bool]:
    """Size of the catalogue's states and who would use them; whether they lie ready."""
    wanted, layers = config.decode.state_cache, lm.schedule.num_segment_layers
    if not config.fast or wanted is False or layers in (0, lm.num_layers):
        return None, False
    catalogue, folder = parts.catalogue, cache_root(config) / "states"
    book, embedding_VD = catalogue.book, lm.output_embedding_VD
    rows = len(book.history_item.flat) + len(book.response) + catalogue.trie.num_nodes
    alone = config.trainer.devices * config.trainer.num_nodes == 1
    pays = [
        name for name in DECODED
        if wanted or (alone and states_pay(lm, catalogue, loads[name].lengths, folder))
    ]  # fmt: skip
    if pays == ["valid"]:
        pays.append("test")  # they lie ready by then
    megabytes = rows * embedding_VD.shape[1] * embedding_VD.itemsize / 2**20
    size = StatesSize(
        tokens_to_build(catalogue, config.mask.target_is_item), megabytes, tuple(pays)
    )
    return size, states_file(lm, catalogue, folder).exists()


def _fill_counts(
    config: Config, folder: Path, found: RunPlan, parts: Parts, loads: dict[str, Load]
) -> None:
    for name, load in loads.items():
        rows, tokens = len(load.lengths), int(load.lengths.sum())
        found.splits[name] = SplitSize(
            rows, tokens, int(load.lengths.max()), rows * load.num_prefix / tokens,
            load.padding_share,
        )  # fmt: skip
    trie = parts.catalogue.trie
    found.trie = TrieSize(trie.num_nodes, int(trie.is_branching_N.sum()), trie.num_leaves)
    found.trained_tokens = loads["train"].tokens
    if not config.trains:
        return
    done, rows = steps_done(config, folder), found.splits["train"].rows
    last = config.trainer.num_steps(rows)
    every = config.trainer.validate_every_steps or rows // config.trainer.global_batch_size
    found.num_steps = last - done
    found.num_validations = last // every - done // every
    if done:
        found.status = f"resumes at step {done}"


def _fill_costs(config: Config, found: RunPlan, loads: dict[str, Load], measured: Measured) -> None:
    calibration = measured.calibration
    found.num_tuned, found.num_frozen = measured.num_tuned, measured.num_frozen
    found.states = measured.states
    on_gpu = uses_gpu(config)
    # Processes on GPUs work side by side; those on the CPU share its cores.
    share = 1 / (config.trainer.devices * config.trainer.num_nodes) if on_gpu else 1.0
    found.memory_of = "GPU" if on_gpu else "process"
    found.peak_memory_mb = calibration.memory_mb
    if found.states is not None and found.states.used_by:
        found.peak_memory_mb += found.states.megabytes
    train = NO_TIME
    if found.num_steps:
        train = calibration.train.over(found.trained_tokens) * share
        train += calibration.steps.over(found.num_steps)
    decode = _Decoding(loads, measured, share)
    found.seconds = {
        "prepare": Seconds.exactly(measured.prepare_seconds),
        "train": train,
        "validate": decode.seconds(("valid",), False) * found.num_validations,
        "evaluate": decode.seconds(DECODED, measured.states_ready),
    }


@dataclass
class _Decoding:
    """Predicts the time of decoding."""

    loads: dict[str, Load]
    measured: Measured
    share: float  # of the users that one process takes

    def seconds(self, splits: tuple[str, ...], states_ready: bool) -> Seconds:
        """Time of splits one after the other with the same weights, the states made once."""
        calibration, states, total = self.measured.calibration, self.measured.states, NO_TIME
        schedule = self.measured.parts.schedule
        shallow = schedule.num_segment_layers / len(schedule.patterns)
        for split in splits:
            seconds = calibration.decode.over(self.loads[split].tokens) * self.share
            if states is not None and split in states.used_by:
                seconds *= 1 - calibration.model_share * shallow
                if not states_ready:
                    build = states.tokens * calibration.model_token_seconds * shallow
                    seconds += Seconds.exactly(build)
                states_ready = True
            total += seconds
        return total
