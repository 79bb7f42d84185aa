"""A data config from ``conf/``, with the overrides a test names."""

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from hatllm.config import DataConfig, PromptConfig

CONF = Path(__file__).parents[2] / "conf"


def data_config(**overrides: Any) -> DataConfig:
    files = (OmegaConf.load(CONF / "data" / name) for name in ("_base.yaml", "ml100k.yaml"))
    values = OmegaConf.to_container(OmegaConf.merge(*files))
    assert isinstance(values, dict)
    del values["defaults"]
    prompt = PromptConfig(**values.pop("prompt"))
    return DataConfig(
        **{str(key): value for key, value in values.items()} | overrides, prompt=prompt
    )
