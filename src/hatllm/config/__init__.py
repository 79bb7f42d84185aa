"""The schema of every setting: its type, its unit, its range; one file a group of ``conf/``.

Values stand in ``conf/`` only; nothing here has a default. Types are checked when Hydra composes,
ranges in ``__post_init__`` (run by ``OmegaConf.to_object``), and whatever needs the data or the
model in the room that knows it.
"""

from hatllm.config.baseline import (
    SEQUENCE_KINDS,
    ClozeConfig,
    DrosConfig,
    KnnConfig,
    PopularityConfig,
    SequenceConfig,
)
from hatllm.config.checks import check_choice
from hatllm.config.data import DataConfig, PromptConfig
from hatllm.config.decode import DecodeConfig
from hatllm.config.experiment import ExperimentConfig
from hatllm.config.identity import (
    NOT_IN_HASH,
    OTHER_RUNS,
    can_seed_change,
    makes_steps,
    settings_that_count,
)
from hatllm.config.mask import MaskConfig
from hatllm.config.model import ModelConfig
from hatllm.config.run import Config
from hatllm.config.sweep import SWEEP_METRICS, SweepConfig
from hatllm.config.trainer import TrainerConfig

__all__ = [
    "NOT_IN_HASH",
    "OTHER_RUNS",
    "SEQUENCE_KINDS",
    "SWEEP_METRICS",
    "ClozeConfig",
    "Config",
    "DataConfig",
    "DecodeConfig",
    "DrosConfig",
    "ExperimentConfig",
    "KnnConfig",
    "MaskConfig",
    "ModelConfig",
    "PopularityConfig",
    "PromptConfig",
    "SequenceConfig",
    "SweepConfig",
    "TrainerConfig",
    "can_seed_change",
    "check_choice",
    "makes_steps",
    "settings_that_count",
]
