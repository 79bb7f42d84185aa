"""Which layer uses which pattern, worked out from `conf/mask/` before any model is loaded."""

from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hatllm.config import MaskConfig

LETTERS = {"I": "intra", "F": "full", "C": "cross"}


@dataclass(frozen=True)
class Schedule:
    """The pattern of every layer and the settings that say what a pattern means."""

    patterns: tuple[str, ...]  # one of 'intra', 'full', 'cross' for each layer
    intra_scope: str  # 'items' or 'segments'
    cross_sees_self: bool
    target_is_item: bool

    @property
    def letters(self) -> str:
        """One letter a layer, such as ``IIFFFFCC``."""
        return "".join(pattern[0].upper() for pattern in self.patterns)

    @property
    def groups(self) -> list[tuple[str, int, int]]:
        """Runs of equal layers as (pattern, first layer, last layer)."""
        runs = [list(run) for _, run in groupby(enumerate(self.patterns), key=lambda pair: pair[1])]
        return [(run[0][1], run[0][0], run[-1][0]) for run in runs]

    def restarts(self, layer: int) -> bool:
        """Whether positions restart in every segment of this layer (`intra_scope: segments`)."""
        return self.intra_scope == "segments" and self.patterns[layer] == "intra"

    @property
    def num_segment_layers(self) -> int:
        """First layers in which a segment's states are the same in every prompt."""
        layers = range(len(self.patterns))
        return next((layer for layer in layers if not self.restarts(layer)), len(layers))


def build_schedule(config: "MaskConfig", num_layers: int) -> Schedule:
    """The schedule of a model with `num_layers` layers.

    Args:
        config: The mask settings. A null ``split_layer`` or ``num_cross_layers`` is a quarter of
            the layers; without a middle group a null ``split_layer`` is half of them.
        num_layers: Decoder layers of the backbone, at least 1.

    Returns:
        One pattern a layer.

    Raises:
        ValueError: If the groups do not fit into the layers; names field, value and layer count.
    """
    if config.layers is not None:
        if len(config.layers) != num_layers:
            raise ValueError(
                f"mask.layers={config.layers!r} has {len(config.layers)} letters but the model "
                f"has {num_layers} layers; give one letter a layer"
            )
        patterns = tuple(LETTERS[letter] for letter in config.layers)
    else:
        shallow, deep = group_sizes(config, num_layers)
        middle = num_layers - shallow - deep
        middle_pattern = config.middle or config.deep
        patterns = (config.shallow,) * shallow + (middle_pattern,) * middle + (config.deep,) * deep
    return Schedule(patterns, config.intra_scope, config.cross_sees_self, config.target_is_item)


def group_sizes(config: "MaskConfig", num_layers: int) -> tuple[int, int]:
    """Layers of the shallow and of the deep group, the defaults worked out.

    Args:
        config: The mask settings, ``layers`` null.
        num_layers: Decoder layers of the backbone.

    Raises:
        ValueError: As :func:`build_schedule`.
    """
    has_middle = config.middle is not None
    shallow = config.split_layer
    if shallow is None:
        shallow = num_layers // 4 if has_middle else num_layers // 2
    if shallow > num_layers:
        raise ValueError(
            f"mask.split_layer={shallow} must be between 0 and {num_layers}, the model's layers"
        )
    if not has_middle:
        rest = num_layers - shallow
        if config.num_cross_layers not in (None, rest):
            raise ValueError(
                f"mask.num_cross_layers={config.num_cross_layers} must be null or {rest} with "
                f"mask.middle=null: the deep group fills what mask.split_layer={shallow} leaves of "
                f"the model's {num_layers} layers"
            )
        return shallow, rest
    deep = config.num_cross_layers
    if deep is None:
        # Asking for a high split_layer alone shrinks the deep group before it is an error.
        deep = min(num_layers // 4, num_layers - shallow)
    if shallow + deep > num_layers:
        raise ValueError(
            f"mask.num_cross_layers={deep} must be at most {num_layers - shallow}: "
            f"mask.split_layer={shallow} leaves that many of the model's {num_layers} layers"
        )
    return shallow, deep
