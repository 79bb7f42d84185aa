"""task=masks: draw who may attend to whom for one real user, layer by layer."""

from pathlib import Path

import numpy as np
from rich.console import Console
from torch import Tensor

from hatllm.config import Config
from hatllm.data.datamodule import Examples
from hatllm.data.prepare import cache_root
from hatllm.data.prompt import FIRST_ITEM_TOKEN
from hatllm.figures.draw_masks import draw_masks
from hatllm.figures.masks_text import masks_as_text
from hatllm.figures.saving import save_figure
from hatllm.masks.layer_masks import build_layer_masks, causal_visible
from hatllm.model.backbone import load_tokenizer
from hatllm.training.assemble import Parts, assemble


def draw(config: Config) -> Path:
    """Draw the masks of ``task.example`` of ``task.split``, its title included.

    Args:
        config: Data, backbone (its tokenizer only) and mask.

    Returns:
        Path of the picture.

    Raises:
        ValueError: If the example does not exist.
    """
    parts = assemble(config)
    allowed, patterns, token_texts, segments = masks_of(config, parts)
    folder = Path(config.output_root).expanduser() / "masks"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{config.data.name}-{config.mask.name}-{config.task.example}.png"
    save_figure(draw_masks(allowed, patterns, token_texts, segments), path)
    console = Console()
    print(masks_as_text(allowed, patterns, segments))  # rich would wrap it
    console.print(f"picture: {path}")
    return path


def masks_of(
    config: Config, parts: Parts
) -> tuple[dict[str, Tensor], list[str], list[str], list[int]]:
    """What `draw_masks` draws of ``task.example`` of ``task.split``.

    Returns:
        allowed_QK by pattern, the pattern of each layer, the text and the segment of each token.

    Raises:
        ValueError: If the example does not exist.
    """
    examples = Examples.of(parts.dataset.splits[config.task.split], config.data.max_history_items)
    if config.task.example >= len(examples):
        raise ValueError(
            f"task.example={config.task.example} must be below {len(examples)}, the rows of "
            f"{config.task.split}"
        )
    row = np.array([config.task.example])
    batch = examples.batch(parts.catalogue.book, row, config.mask.target_is_item, True)
    visible_BQK = causal_visible(batch.valid_BL, batch.valid_BL.shape[1])
    masks = build_layer_masks(parts.schedule, batch.tokens, batch.tokens, visible_BQK)
    allowed = {pattern: mask_B1QK[0, 0] for pattern, mask_B1QK in masks.allowed.items()}
    tokenizer = load_tokenizer(config.model, cache_root(config))
    token_texts = [
        "[item]" if token >= FIRST_ITEM_TOKEN else tokenizer.decode([token])
        for token in batch.input_ids_BL[0].tolist()
    ]
    segments = batch.tokens.segment_BL[0].tolist()
    return allowed, list(parts.schedule.patterns), token_texts, segments
