"""What can be refused of a backbone before its weights are loaded: all that its config says."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM

from hatllm.masks.schedule import Schedule
from hatllm.model.backbone import NO_CODE, SHIPPED, read_config
from hatllm.model.lora import check_lora_targets
from hatllm.model.suitability import (
    PROVEN,
    UNFIT,
    check_config,
    check_structure,
    refuse_by_verdict,
    verdict_file,
)

if TYPE_CHECKING:
    from hatllm.config import ModelConfig


def check_backbone(config: "ModelConfig", schedule: Schedule, cache_root: Path) -> None:
    """Refuse, before any weight is loaded, a backbone that the run's masks cannot govern.

    Args:
        config: Source, backend, adapters.
        schedule: Of the run.
        cache_root: Where converted weights and earlier verdicts lie.

    Raises:
        ValueError: If the model is not found or cannot be masked, has another number of layers
            than the schedule, lacks a LoRA target, or was found to be computed wrongly before.
    """
    if config.source in SHIPPED:
        return
    found, backend = read_config(config, cache_root), config.backend
    if backend == "flex" and not torch.cuda.is_available():
        backend = "sdpa"
    check_config(found, backend, schedule)
    if found.model_type not in PROVEN:
        refuse_by_verdict(verdict_file(found, config, schedule, backend, cache_root))
    skeleton = _skeleton(found)
    check_structure(skeleton)
    if config.tuning == "lora":
        check_lora_targets(skeleton, config)


def _skeleton(found: Any) -> Any:
    """The model without weights.

    Raises:
        ValueError: If it is no causal LM, or transformers cannot make it: it may need a package
            that is not installed, or a setting that its config lacks.
    """
    if type(found) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ValueError(f"model {found.model_type!r} is no causal LM of transformers")
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(found, **NO_CODE)
    except (ImportError, *UNFIT) as error:
        line = " ".join(str(error).split())[:200]
        raise ValueError(f"model {found.model_type!r} cannot be made here: {line}") from error
