"""One composed run: ``conf/config.yaml`` and a choice of every group."""

from collections.abc import Iterable
from dataclasses import dataclass

from hatllm.config.baseline import SEEDLESS_KINDS
from hatllm.config.checks import check_range
from hatllm.config.data import DataConfig
from hatllm.config.decode import DecodeConfig
from hatllm.config.experiment import ExperimentConfig
from hatllm.config.logger import LoggerConfig
from hatllm.config.loss import LossConfig
from hatllm.config.mask import MaskConfig
from hatllm.config.model import ModelConfig
from hatllm.config.sweep import SweepConfig
from hatllm.config.task import TaskConfig
from hatllm.config.trainer import TrainerConfig

# Settings that cannot change a run's numbers: where files lie, what is logged, how it is launched.
NOT_IN_HASH = ("task", "logger", "experiment", "sweep", "num_threads", "data_root", "cache_root",
               "output_root", "run_name")  # fmt: skip
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
    logger: LoggerConfig
    experiment: ExperimentConfig
    sweep: SweepConfig
    scale: str
    seed: int
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

    @property
    def trains(self) -> bool:
        """Whether the run, one of an LLM, makes optimizer steps."""
        return makes_steps(self.model.tuning, self.trainer.max_steps)

    @property
    def is_seeded(self) -> bool:
        """Whether two seeds can give two results."""
        other_runs = [getattr(getattr(self, group), setting) for group, setting in OTHER_RUNS]
        return can_seed_change(
            self.model.kind, self.model.tuning, self.trainer.max_steps, other_runs
        )

    def _check_monitor(self) -> None:
        """Refuse to choose a step by what its validation does not find."""
        monitor = self.trainer.monitor
        if self.model.kind == "llm" and self.decode.name == "d3" and monitor.endswith("NLL"):
            raise ValueError(
                f"trainer.monitor={monitor!r} is not logged under decode=d3, which ranks by two "
                "models and has no NLL; use val/NDCG@10 or val/HR@10"
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
