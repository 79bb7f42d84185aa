"""The weights of a finished run under another mask than they were tuned with: what if."""

import re
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

import hatllm
from hatllm.config import MaskConfig
from hatllm.data.prepare import cache_root
from hatllm.decode.proof import prove
from hatllm.model.backbone import usable_backend
from hatllm.recommend.answerer import LlmAnswerer
from hatllm.recommend.answers import Answerer
from hatllm.training.assemble import schedule_of

PRESETS = Path(hatllm.__file__).resolve().parents[2] / "conf" / "mask"
LETTERS = re.compile("[IFC]+")  # one a layer


def mask_names() -> list[str]:
    """The presets of ``conf/mask`` that need nothing more; none where the folder is not here."""
    names = (path.stem for path in PRESETS.glob("*.yaml"))
    return sorted(name for name in names if name[0] != "_" and name != "custom")


def mask_of(name: str, own: MaskConfig) -> MaskConfig:
    """The settings of a mask by its name.

    Args:
        name: A preset such as ``causal``, or one letter a layer (I intra, F full, C cross).
        own: Mask of the run; with letters everything but the letters is as there.

    Raises:
        ValueError: If there is no such preset.
    """
    if name in mask_names():
        base, preset = (OmegaConf.load(PRESETS / f"{part}.yaml") for part in ("_base", name))
        merged: Any = OmegaConf.merge(OmegaConf.structured(MaskConfig), base, _own_keys(preset))
        mask = OmegaConf.to_object(merged)
        assert isinstance(mask, MaskConfig)
        return mask
    if LETTERS.fullmatch(name):
        return replace(own, name="custom", layers=name)
    raise ValueError(
        f"mask={name!r} must be one of {', '.join(mask_names())}, or one letter a layer (I, F, C)"
    )


def _own_keys(preset: Any) -> Any:
    return {key: value for key, value in preset.items() if key != "defaults"}


def answerer_under(answerer: Answerer, name: str) -> LlmAnswerer:
    """What answers with the same weights under another mask; it holds no copy of them.

    Args:
        answerer: Of a finished run; it answers as before.
        name: As `mask_of`.

    Raises:
        ValueError: If the run has no masks, there is no such mask, or it does not fit the model.
    """
    if not isinstance(answerer, LlmAnswerer):
        raise ValueError(f"mask={name!r}: the run is no LLM's and has no masks")
    # States of the catalogue belong to one mask; for a few questions they do not pay.
    decode = replace(answerer.config.decode, state_cache=False)
    mask = mask_of(name, answerer.config.mask)
    config, lm = replace(answerer.config, mask=mask, decode=decode), copy(answerer.lm)
    lm.schedule = schedule = schedule_of(config)
    prove(lm, usable_backend(config.model.backend), config.model, cache_root(config))
    other = copy(answerer)
    other.config, other.lm = config, lm
    other.parts = replace(answerer.parts, schedule=schedule)
    other.replace_catalogue(answerer.parts.catalogue)  # makes its tools anew
    return other
