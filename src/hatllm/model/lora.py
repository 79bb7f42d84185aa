"""Low-rank adapters on a backbone's linear layers (peft)."""

import warnings
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import get_peft_model

if TYPE_CHECKING:
    from hatllm.config import ModelConfig


def check_lora_targets(backbone: Any, config: "ModelConfig") -> None:
    """Refuse adapters of layers that the model does not have, or that must stay as they are.

    Raises:
        ValueError: If a target module is not in the model; lists the linear layers there are.
    """
    linear = {
        n.rsplit(".", 1)[-1] for n, m in backbone.named_modules() if hasattr(m, "in_features")
    }
    if missing := sorted(set(config.lora.target_modules) - linear):
        raise ValueError(
            f"model.lora.target_modules holds {', '.join(missing)}, which "
            f"{config.name} does not have; its linear layers: {', '.join(sorted(linear))}"
        )
    output = backbone.get_output_embeddings()
    name = next(n for n, m in backbone.named_modules() if m is output).rsplit(".", 1)[-1]
    if name in config.lora.target_modules:
        raise ValueError(
            f"model.lora.target_modules holds {name}, the output layer, whose single rows the loss "
            "and the decoder read; adapt other layers, or use model.tuning=full"
        )


def add_lora(backbone: Any, config: "ModelConfig", seed: int) -> Any:
    """Wrap a backbone with low-rank adapters.

    Raises:
        ValueError: As `check_lora_targets`.
    """
    check_lora_targets(backbone, config)
    peft_config = PeftLoraConfig(
        r=config.lora.r,
        lora_alpha=config.lora.alpha,
        lora_dropout=config.lora.dropout,
        target_modules=list(config.lora.target_modules),
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(), warnings.catch_warnings():
        torch.manual_seed(seed)
        # peft asks transformers by the old name of the property.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
        return get_peft_model(backbone, peft_config)
