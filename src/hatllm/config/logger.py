"""Settings of ``conf/logger/``."""

from dataclasses import dataclass

from hatllm.config.checks import check_choice

LOGGERS = ("csv", "wandb", "tensorboard")


@dataclass
class LoggerConfig:
    """Where curves go besides the run folder's own files."""

    name: str  # one of LOGGERS
    project: str  # wandb project
    group: str | None  # wandb group: the runs of one sweep
    tags: list[str]

    def __post_init__(self) -> None:
        check_choice("logger", self.name, LOGGERS)
