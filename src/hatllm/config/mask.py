"""Settings of ``conf/mask/``."""

from dataclasses import dataclass

from hatllm.config.checks import check_choice, check_range

PATTERNS = ("intra", "full", "cross")
INTRA_SCOPES = ("items", "segments")


@dataclass
class MaskConfig:
    """Which layer uses which attention pattern (arXiv:2510.10955)."""

    name: str
    shallow: str  # one of PATTERNS: layers [0, split_layer)
    middle: str | None  # layers between; null = none: the deep group starts at split_layer
    deep: str  # the last num_cross_layers layers
    split_layer: int | None  # null = a quarter of the layers (half where there is no middle group)
    num_cross_layers: int | None  # null = a quarter of the layers
    layers: str | None  # one letter a layer (I, F, C), instead of the three groups
    intra_scope: str  # one of INTRA_SCOPES
    cross_sees_self: bool  # cross layers: a token sees itself
    target_is_item: bool  # the title being generated is a segment of its own

    def __post_init__(self) -> None:
        check_choice("mask.shallow", self.shallow, PATTERNS)
        check_choice("mask.deep", self.deep, PATTERNS)
        check_choice("mask.intra_scope", self.intra_scope, INTRA_SCOPES)
        if self.middle is not None:
            check_choice("mask.middle", self.middle, PATTERNS)
        check_range("mask.split_layer", self.split_layer, 0)
        check_range("mask.num_cross_layers", self.num_cross_layers, 0)
        if self.name == "custom" and self.layers is None:
            raise ValueError("mask=custom needs mask.layers, one letter a layer, such as IIFFFFCC")
        if self.layers is not None and (bad := sorted(set(self.layers) - set("IFC"))):
            raise ValueError(
                f"mask.layers={self.layers!r} holds {', '.join(map(repr, bad))}; use only "
                "I (intra), F (full) and C (cross)"
            )
