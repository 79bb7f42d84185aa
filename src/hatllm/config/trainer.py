"""Settings of ``conf/trainer/``."""

import re
from dataclasses import dataclass

from hatllm.config.checks import check_choice, check_positive, check_range

ACCELERATORS = ("cpu", "gpu", "auto")
MONITOR = re.compile(r"val/((NDCG|HR)@[1-9]\d*|trie_NLL|vocab_NLL)")
STRATEGIES = ("auto", "ddp", "fsdp")


@dataclass
class TrainerConfig:
    """Hardware and optimisation."""

    name: str
    accelerator: str  # what the processes compute on; one of ACCELERATORS
    devices: int
    num_nodes: int
    strategy: str  # one of STRATEGIES
    max_epochs: int
    max_steps: int  # optimizer steps; -1 = as many as max_epochs gives; 0 = do not train
    global_batch_size: int  # rows an optimizer step, over all processes
    micro_batch_size: int  # rows a forward pass in one process, at most
    group_by_user: bool  # shuffle users, not rows, so that the rows of a batch share histories
    learning_rate: float
    warmup_steps: int  # linear warm-up, then linear decay to 0
    weight_decay: float
    gradient_clip: float  # largest gradient norm; 0 = no clipping
    validate_every_steps: int | None  # optimizer steps; null = at the end of every epoch
    monitor: str | None  # a MONITOR: the best validation by it is what the run answers with
    early_stopping_patience: int | None  # validations without a better one; null = never
    checkpoint_every_steps: int  # optimizer steps between two writes of last.ckpt
    checkpoint_every_seconds: float  # or as many seconds, whichever comes first

    def __post_init__(self) -> None:
        check_choice("trainer.accelerator", self.accelerator, ACCELERATORS)
        check_choice("trainer.strategy", self.strategy, STRATEGIES)
        low_one = ("devices", "num_nodes", "max_epochs", "global_batch_size", "micro_batch_size")
        for field in (*low_one, "checkpoint_every_steps", "validate_every_steps"):
            check_range(f"trainer.{field}", getattr(self, field), 1)
        for field in ("warmup_steps", "weight_decay", "gradient_clip", "early_stopping_patience"):
            check_range(f"trainer.{field}", getattr(self, field), 0)
        if self.monitor is not None and not MONITOR.fullmatch(self.monitor):
            raise ValueError(
                f"trainer.monitor={self.monitor!r} must be val/NDCG@K or val/HR@K, with K at most "
                "decode.top_k, or val/trie_NLL or val/vocab_NLL"
            )
        check_positive("trainer.checkpoint_every_seconds", self.checkpoint_every_seconds)
        check_range("trainer.max_steps", self.max_steps, -1)
        check_positive("trainer.learning_rate", self.learning_rate)
        if self.num_processes > 1 and self.strategy == "auto":
            raise ValueError(
                f"trainer.devices={self.devices} needs trainer=ddp or trainer=fsdp "
                f"(trainer.strategy='auto' runs one process)"
            )

    def check_batches(self) -> None:
        """Refuse a global batch that is not the same number of whole passes for every process.

        Raises:
            ValueError: If so, with the next sizes that are.
        """
        rows = self.rows_a_pass * self.num_processes
        if self.global_batch_size % rows:
            below = self.global_batch_size - self.global_batch_size % rows
            near = f"{below} or {below + rows}" if below else f"{rows}"
            raise ValueError(
                f"trainer.global_batch_size={self.global_batch_size} must be a multiple of "
                f"micro_batch_size x devices x num_nodes = {rows}, such as {near}: only then does "
                "every row count alike"
            )

    @property
    def num_processes(self) -> int:
        """Processes of the run, over all machines."""
        return self.devices * self.num_nodes

    @property
    def rows_a_pass(self) -> int:
        """Rows of a forward pass: `micro_batch_size`, or a process's share where that is less."""
        return max(1, min(self.micro_batch_size, self.global_batch_size // self.num_processes))

    def num_steps(self, num_rows: int) -> int:
        """Optimizer steps of the whole run; every epoch has whole global batches.

        Args:
            num_rows: Rows of the train split.

        Returns:
            `max_steps` where it is given, capped by the epochs.

        Raises:
            ValueError: If there are fewer rows than one global batch.
        """
        if self.max_steps == 0:
            return 0
        steps_per_epoch = num_rows // self.global_batch_size
        if steps_per_epoch == 0:
            raise ValueError(
                f"trainer.global_batch_size={self.global_batch_size} must be at most {num_rows}, "
                "the rows of the train split"
            )
        by_epochs = steps_per_epoch * self.max_epochs
        return by_epochs if self.max_steps == -1 else min(by_epochs, self.max_steps)
