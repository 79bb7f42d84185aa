"""A sentence encoder from a local folder: one vector of length one a text, the mean of its tokens.

What sentence-transformers calls mean pooling and normalising. The encoder is read, never trained.

Dimension key: B texts of a batch, L tokens, D width.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.nn.functional import normalize
from transformers import MODEL_FOR_MASKED_LM_MAPPING, AutoConfig, AutoModel, AutoTokenizer

from hatllm.model.backbone import NO_CODE

TEXTS_A_BATCH = 64
HERE: dict[str, Any] = {"local_files_only": True, **NO_CODE}


@torch.inference_mode()
def sentence_vectors(texts: Sequence[str], folder: str, field: str) -> Tensor:
    """The vector of each text, in float32 on the CPU.

    Args:
        texts: Longer ones than the encoder was made for are cut.
        folder: Of an encoder in Hugging Face's form: config.json, weights as safetensors and the
            tokenizer's files.
        field: The setting that names the folder, for messages.

    Returns:
        vector_ID: In the texts' order, of length one. Shape (len(texts), D), float32.

    Raises:
        ValueError: If the folder is missing or holds no encoder.
    """
    tokenizer, model = _loaded(folder, field)
    # RoBERTa's position embeddings are two more than the tokens it can read.
    longest = min(tokenizer.model_max_length, model.config.max_position_embeddings - 2)
    order = sorted(range(len(texts)), key=lambda place: len(texts[place]))  # little padding
    vector_ID = torch.empty(len(texts), model.config.hidden_size)
    for start in range(0, len(order), TEXTS_A_BATCH):
        places = order[start : start + TEXTS_A_BATCH]
        batch = tokenizer(
            [texts[place] for place in places], padding=True, truncation=True, max_length=longest,
            return_tensors="pt",
        )  # fmt: skip
        hidden_BLD = model(**batch).last_hidden_state
        real_BL1 = batch["attention_mask"][:, :, None].to(hidden_BLD.dtype)
        vector_ID[places] = normalize((hidden_BLD * real_BL1).sum(1) / real_BL1.sum(1), dim=1)
    return vector_ID


def _loaded(folder: str, field: str) -> tuple[Any, Any]:
    start = f"{field}={folder!r}"
    if not Path(folder).is_dir():
        raise ValueError(
            f"{start}: no such folder; give that of a sentence encoder, with config.json, "
            "model.safetensors and tokenizer files"
        )
    try:
        config = AutoConfig.from_pretrained(folder, **HERE)
        if type(config) not in MODEL_FOR_MASKED_LM_MAPPING or config.is_encoder_decoder:
            raise ValueError(f"model_type {config.model_type!r} is none of an encoder alone")
        tokenizer = AutoTokenizer.from_pretrained(folder, **HERE)
        model, found = AutoModel.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **HERE
        )
        if missing := [name for name in found["missing_keys"] if not name.startswith("pooler.")]:
            raise ValueError(f"the weights lack {missing[0]}")
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{start} holds no sentence encoder: {reason}") from error
    return tokenizer, model.eval()
