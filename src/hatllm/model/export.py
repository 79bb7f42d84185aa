"""What a finished run hands on: adapter or weights, item tokens, masks, prompt, catalogue."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from hatllm.files import folder_written_whole, read_json, write_json, written_whole
from hatllm.masks.schedule import Schedule
from hatllm.model.item_tokens import ItemTokens
from hatllm.model.masked_lm import MaskedLM

if TYPE_CHECKING:
    from hatllm.config import Config

EXPORT_FILE = "hatllm.json"  # what the weights are
ITEM_TOKENS_FILE = "item_tokens.safetensors"  # projector and item vectors


def export_adapter(lm: MaskedLM, schedule: Schedule, config: "Config", folder: Path) -> None:
    """Write ``adapter/`` (peft form) or ``weights/``, and ``hatllm.json`` beside it.

    A model with item tokens has ``item_tokens.safetensors`` too, which holds all they need.

    Args:
        lm: The tuned model.
        schedule: Its layers' patterns.
        config: The run.
        folder: Run folder; the catalogue is ``items.parquet`` in it.
    """
    if config.model.tuning == "lora":
        adapted: Any = lm.model
        with folder_written_whole(folder / "adapter") as partial:
            adapted.save_pretrained(partial)
    elif config.model.tuning == "full":
        with folder_written_whole(folder / "weights") as partial:
            lm.backbone[0].save_pretrained(partial)
    if lm.item_tokens is not None:
        with written_whole(folder / ITEM_TOKENS_FILE) as partial:
            save_file(lm.item_tokens.state_dict(), partial)
    description = {
        "format": 1,
        "backbone": config.model.source,
        "tuning": config.model.tuning,
        "schedule": asdict(schedule) | {"letters": schedule.letters},
        "prompt": asdict(config.data.prompt),
        "catalogue": "items.parquet",
        "trie_temperature": lm.trie_temperature,
        "prior": config.prior,  # titles' shares stand in title_shares.parquet
        "item_tokens": None if lm.item_tokens is None else ITEM_TOKENS_FILE,
    }
    write_json(folder / EXPORT_FILE, description)


def load_exported(lm: MaskedLM, config: "Config", folder: Path) -> None:
    """Put a finished run's tuned weights into a freshly loaded model.

    Args:
        lm: The model as `load_masked_lm` gives it for `config`.
        config: The run's settings.
        folder: Run folder.

    Raises:
        ValueError: If the exported weights are missing, or belong to other item vectors.
    """
    if lm.item_tokens is not None:
        _load_projector(lm.item_tokens, folder / ITEM_TOKENS_FILE)
    if config.loss.name == "msl_ats" and config.decode.temperature is None:
        described = read_json(folder / EXPORT_FILE)
        lm.trie_temperature = float(described["trie_temperature"])
    if config.model.tuning == "none":
        return
    name = "adapter/adapter_model.safetensors" if config.model.tuning == "lora" else "weights"
    path = folder / name
    if not path.exists():
        raise ValueError(f"task.run_folder={str(folder)!r} has no {name}")
    try:
        if config.model.tuning == "lora":
            found = set_peft_model_state_dict(lm.model, read_tensors(path))
            missing = [name for name in found.missing_keys if "lora_" in name]
        else:
            shards = sorted(path.glob("*.safetensors"))
            state = {k: v for shard in shards for k, v in read_tensors(shard).items()}
            found = lm.backbone[0].load_state_dict(state, strict=False)
            # Tied embeddings are saved once.
            missing = [name for name in found.missing_keys if "lm_head" not in name]
    except RuntimeError as error:  # other shapes
        raise ValueError(f"{path} does not fit model={config.model.name}: {error}") from error
    if missing or found.unexpected_keys:
        raise ValueError(
            f"{path} does not fit model={config.model.name}: it lacks {len(missing)} tensors "
            f"({', '.join(missing[:2])}) and has {len(found.unexpected_keys)} others"
        )


def exported_patterns(folder: Path) -> list[str]:
    """Mask pattern of each layer of a finished run, shallow first; none of a baseline."""
    path = folder / EXPORT_FILE
    if not path.exists():
        return []
    return list(read_json(path)["schedule"]["patterns"])


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        ValueError: If it is missing or damaged, or a number in it is not finite.
    """
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(f"{path}: {name} holds numbers that are not finite")
    return tensors


def _load_projector(item_tokens: ItemTokens, path: Path) -> None:
    if not path.exists():
        raise ValueError(f"{str(path.parent)!r} has no {path.name}")
    saved = read_tensors(path)
    if "vector_IE" not in saved or not torch.equal(saved["vector_IE"], item_tokens.vector_IE.cpu()):
        raise ValueError(
            f"the projector in {path} was trained on other item vectors than model.item_vectors' "
            "run has; give that run"
        )
    try:
        item_tokens.load_state_dict(saved)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit this model: {error}") from error
