"""One composed run: ``conf/config.yaml`` and a choice of every group."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from hatllm.config.checks import check_range
from hatllm.config.data import DataConfig
from hatllm.config.decode import DecodeConfig
from hatllm.config.experiment import ExperimentConfig
from hatllm.config.logger import LoggerConfig
from hatllm.config.loss import LossConfig
from hatllm.config.mask import MaskConfig
from hatllm.config.metrics import MetricsConfig, check_monitor, cut_off_of, main_cut_off
from hatllm.config.model import SEEDLESS_KINDS, ModelConfig
from hatllm.config.sweep import SweepConfig
from hatllm.config.task import TaskConfig
from hatllm.config.trainer import TrainerConfig

# Settings that cannot change a run's numbers, and so are no part of its folder's name and hash and
# may change before it is finished: where files lie, what is measured of the answers and logged, on
# what hardware and in how many pieces it is computed, how often it is saved. "Cannot change" is up
# to the rounding of sums in another order and, under dropout, up to which units a pass drops. A
# setting that takes another way to the same numbers, to be compared with the first, is part of what
# a run is (fast, model.backend, decode.state_cache), and so is model.dtype, whose rounding is seen
# in the metrics.
NOT_IN_HASH = ("task", "logger", "metrics", "experiment", "sweep", "num_threads", "data_root",
               "cache_root", "output_root", "run_name", "decode.users_per_batch", "model.compile",
               "model.gradient_checkpointing", "trainer.name", "trainer.accelerator",
               "trainer.devices", "trainer.num_nodes", "trainer.strategy",
               "trainer.micro_batch_size", "trainer.checkpoint_every_steps",
               "trainer.checkpoint_every_seconds")  # fmt: skip
# Settings that came after runs had been made: while they are null, a run is what it was and keeps
# its name.
LEFT_OUT_WHERE_NULL = (("decode", "information_gain"), ("loss", "prior"))
# Rows of a pass over all processes: under msl_ats the temperature moves with every pass, so that
# its moving average is another one where passes have another size.
ROWS_OF_PASSES = ("trainer.micro_batch_size", "trainer.devices", "trainer.num_nodes")
# Settings that no baseline reads: masks, losses and the search are about titles as texts.
OF_LLMS = ("mask", "loss", "trainer", "fast", "scale", "data.prompt", "model.source",
           "model.num_layers", "model.dtype", "model.tuning", "model.start_from", "model.lora",
           "model.quantization_bits", "model.backend", "model.item_vectors",
           "model.item_curriculum",
           *(f"decode.{field.name}" for field in fields(DecodeConfig)
             if field.name not in ("top_k", "exclude_history")),
           )  # fmt: skip
# Settings that name the folder of another run. Its own name tells its settings; where it lies, it
# may move.
OTHER_RUNS = (("model", "start_from"), ("model", "item_vectors"), ("model", "first_run"),
              ("model", "second_run"), ("decode", "assistant_run"))  # fmt: skip


def only_what_counts(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by name, groups as dictionaries, without NOT_IN_HASH, and OF_LLMS of a baseline."""
    left_out = set(NOT_IN_HASH)
    if settings["model"]["kind"] != "llm":
        left_out |= set(OF_LLMS)
    elif settings.get("loss", {}).get("name") == "msl_ats":
        left_out -= set(ROWS_OF_PASSES)
    for group, name in LEFT_OUT_WHERE_NULL:
        if settings.get(group, {}).get(name) is None:
            left_out.add(f"{group}.{name}")

    def kept(values: Mapping[str, Any], start: str) -> dict[str, Any]:
        return {
            name: kept(value, f"{start}{name}.") if isinstance(value, Mapping) else value
            for name, value in values.items()
            if f"{start}{name}" not in left_out
        }

    return kept(settings, "")


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


@dataclass
class Config:
    """One composed run."""

    task: TaskConfig
    data: DataConfig
    model: ModelConfig
    mask: MaskConfig
    loss: LossConfig
    decode: DecodeConfig
    trainer: TrainerConfig
    metrics: MetricsConfig
    logger: LoggerConfig
    experiment: ExperimentConfig
    sweep: SweepConfig
    scale: str  # which rows, recipe and batch sizes; named by its file
    seed: int  # of weights, order of rows and dropout
    fast: bool  # false = the plain paths everywhere, the oracles of the fast ones
    num_threads: int | None  # CPU threads of torch; null = torch's own choice
    data_root: str | None  # folder of ready tables; null = none
    cache_root: str  # downloads, converted weights, prepared tables
    output_root: str  # run folders
    run_name: str | None  # folder of this run under output_root; null = named by its settings

    def __post_init__(self) -> None:
        check_range("seed", self.seed, 0, 2**31 - 1)
        check_range("num_threads", self.num_threads, 1)
        if self.task.name not in ("evaluate", "recommend"):  # those use a run on any processes
            self.trainer.check_batches()
            self._check_monitor()
        if self.trainer.strategy == "fsdp":
            self._check_sharding()
        in_place = self.data.train_targets == "every" and self.data.target_form == "in_place"
        if self.loss.name == "sdpo" and in_place:
            raise ValueError(
                "data.target_form='in_place' must be branches with loss=sdpo: a history holds no "
                "other titles that an item could be compared with"
            )
        if self.task.name in ("train", "evaluate"):
            self._check_lists()

    @property
    def trains(self) -> bool:
        """Whether the run, one of an LLM, makes optimizer steps."""
        return makes_steps(self.model.tuning, self.trainer.max_steps)

    @property
    def temperatures(self) -> tuple[float, float]:
        """What logits are divided by before the softmax over legal tokens, over the vocabulary.

        MSL and BEAR train softmax(f / tau) over the legal tokens; the others train at 1. Under
        msl_ats tau is where its adaptation begins, and the run's own value takes its place.
        """
        if self.decode.temperature is not None:
            return self.decode.temperature, self.decode.temperature
        return (self.loss.tau if self.loss.name in ("msl", "msl_ats", "bear") else 1.0), 1.0

    @property
    def prior(self) -> str | None:
        """What the scores of legal tokens start from; null where the loss trains none of it."""
        return self.loss.prior if self.loss.name in ("msl", "bear") else None

    @property
    def is_seeded(self) -> bool:
        """Whether two seeds can give two results."""
        other_runs = [getattr(getattr(self, group), setting) for group, setting in OTHER_RUNS]
        return can_seed_change(
            self.model.kind, self.model.tuning, self.trainer.max_steps, other_runs
        )

    @property
    def cut_offs(self) -> tuple[int, ...]:
        """The cut-offs that the run's lists are long enough for; its others are not measured."""
        return self.metrics.within(self.decode.top_k)

    @property
    def monitor(self) -> str:
        """The validation metric that chooses the step to export."""
        return self.trainer.monitor or f"val/NDCG@{min(10, self.decode.top_k)}"

    @property
    def validation_cut_offs(self) -> tuple[int, ...]:
        """Cut-offs of the curves ``val/HR@K``, ``val/NDCG@K``: the main one and the monitored."""
        monitored = cut_off_of(self.monitor)
        found = {main_cut_off(self.cut_offs), *([] if monitored is None else [monitored])}
        return tuple(sorted(found))

    def _check_lists(self) -> None:
        """Refuse lists too short for every cut-off, or for what chooses the checkpoint."""
        if not self.cut_offs:
            raise ValueError(
                f"metrics.cut_offs={self.metrics.cut_offs} must hold a number of at most "
                f"decode.top_k={self.decode.top_k}, the titles kept for each user"
            )
        wanted = cut_off_of(self.sweep.objective)
        if self.sweep.is_search and wanted is not None and wanted not in self.cut_offs:
            raise ValueError(
                f"sweep.objective={self.sweep.objective!r} is not measured: {wanted} must be in "
                f"metrics.cut_offs={self.metrics.cut_offs} and at most "
                f"decode.top_k={self.decode.top_k}"
            )
        if self.task.name == "train" and self.model.kind == "llm" and self.trains:
            check_monitor(self.monitor, self.decode.top_k)

    def _check_monitor(self) -> None:
        """Refuse to choose a step by what its validation does not find."""
        monitor, is_mixed = self.monitor, self.decode.is_mixed
        if self.model.kind == "llm" and self.trains and is_mixed and monitor.endswith("NLL"):
            by = "decode=d3" if self.decode.name == "d3" else "decode.information_gain"
            raise ValueError(
                f"trainer.monitor={monitor!r} is not logged under {by}, which does not rank by the "
                "model's probability and has no NLL; use val/NDCG@10 or val/HR@10"
            )

    def _check_sharding(self) -> None:
        """Refuse what FSDP would compute wrongly, because it lies outside the sharded layers."""
        for setting, is_given, why in (
            ("loss=sdpo", self.loss.name == "sdpo", "keeps a copy of what is tuned whole"),
            ("model.tuning=full", self.model.tuning == "full", "tunes the embeddings too"),
            ("model.item_vectors", self.model.item_vectors is not None, "has a tuned projector"),
            ("model.quantization_bits", self.model.quantization_bits is not None, "packs weights"),
        ):
            if is_given:
                raise ValueError(
                    f"trainer.strategy='fsdp' shards the decoder layers under LoRA; {setting} "
                    f"{why}; use trainer=ddp"
                )
