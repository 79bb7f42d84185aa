"""What can be refused in the second before torch and transformers are imported."""

import json
from pathlib import Path

from hatllm.config import Config, ModelConfig
from hatllm.masks.schedule import build_schedule

LAYER_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")  # by family


def check_layers(config: Config) -> None:
    """Refuse masks that do not fit the backbone's layers, where their number is known already.

    Args:
        config: The run.

    Raises:
        ValueError: If the groups of layers do not fit; names field, value and layer count.
    """
    if config.model.kind != "llm":
        return
    num_layers = config.model.num_layers or layers_in_config_file(config.model)
    if num_layers is not None:
        build_schedule(config.mask, num_layers)


def layers_in_config_file(config: ModelConfig) -> int | None:
    """Layers by the model's config.json; None where none is at hand or it does not say."""
    path = _config_file(config.source)
    if path is None:
        return None
    try:
        found = json.loads(path.read_text())
    except ValueError:  # said better where the model is read
        return None
    if not isinstance(found, dict):
        return None
    text = found.get("text_config", found)
    counts = [text[name] for name in LAYER_COUNTS if isinstance(text.get(name), int)]
    return counts[0] if counts else None


def _config_file(source: str) -> Path | None:
    """In the folder, or where an earlier run has left it; nothing is downloaded here."""
    path = Path(source).expanduser() / "config.json"
    if path.is_file():
        return path
    if source.count("/") != 1:
        return None
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(source, "config.json")
    return Path(cached) if isinstance(cached, str) else None
