"""One composed run: ``conf/config.yaml`` and a choice of every group."""

from dataclasses import dataclass

from hatllm.config.checks import check_range
from hatllm.config.data import DataConfig
from hatllm.config.decode import DecodeConfig
from hatllm.config.experiment import ExperimentConfig
from hatllm.config.identity import OTHER_RUNS, can_seed_change, makes_steps
from hatllm.config.logger import LoggerConfig
from hatllm.config.loss import LossConfig
from hatllm.config.mask import MaskConfig
from hatllm.config.model import ModelConfig
from hatllm.config.sweep import SweepConfig
from hatllm.config.task import TaskConfig
from hatllm.config.trainer import TrainerConfig


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
