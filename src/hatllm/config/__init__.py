"""The schema of every setting: its type, its unit, its range; one file a group of ``conf/``.

Values stand in ``conf/`` only; nothing here has a default. Types are checked when Hydra composes,
ranges in ``__post_init__`` (run by ``OmegaConf.to_object``), and whatever needs the data or the
model in the room that knows it.
"""

from hatllm.config.checks import check_choice
from hatllm.config.data import DataConfig, PromptConfig
from hatllm.config.decode import DecodeConfig
from hatllm.config.experiment import ExperimentConfig
from hatllm.config.mask import MaskConfig
from hatllm.config.metrics import MetricsConfig, cut_off_of, main_cut_off
from hatllm.config.model import (
    MODEL_KINDS,
    SEQUENCE_KINDS,
    ClozeConfig,
    DrosConfig,
    FusionConfig,
    KnnConfig,
    ModelConfig,
    PopularityConfig,
    SequenceConfig,
    TitlesConfig,
)
from hatllm.config.run import (
    NOT_IN_HASH,
    OTHER_RUNS,
    Config,
    can_seed_change,
    makes_steps,
    only_what_counts,
)
from hatllm.config.serve import ServeConfig
from hatllm.config.sweep import SweepConfig
from hatllm.config.trainer import TrainerConfig

__all__ = [
    "MODEL_KINDS",
    "NOT_IN_HASH",
    "OTHER_RUNS",
    "SEQUENCE_KINDS",
    "ClozeConfig",
    "Config",
    "DataConfig",
    "DecodeConfig",
    "DrosConfig",
    "ExperimentConfig",
    "FusionConfig",
    "KnnConfig",
    "MaskConfig",
    "MetricsConfig",
    "ModelConfig",
    "PopularityConfig",
    "PromptConfig",
    "SequenceConfig",
    "ServeConfig",
    "SweepConfig",
    "TitlesConfig",
    "TrainerConfig",
    "can_seed_change",
    "check_choice",
    "cut_off_of",
    "main_cut_off",
    "makes_steps",
    "only_what_counts",
]
