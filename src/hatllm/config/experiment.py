"""Settings of ``conf/experiment/``."""

from dataclasses import dataclass

from hatllm.config.checks import check_choice, check_range

VIEWS = ("bars", "grid", "efficiency")


@dataclass
class GridConfig:
    """Cells over how many layers are intra-item and how many cross-item, as shares of them all."""

    overrides: list[str]  # of every cell of the grid
    split_layer: list[float]  # shares of the backbone's layers, rounded down
    num_cross_layers: list[float]  # likewise

    def __post_init__(self) -> None:
        for field in ("split_layer", "num_cross_layers"):
            if not getattr(self, field):
                raise ValueError(f"experiment.grid.{field}=[] must hold at least one share")
            for share in getattr(self, field):
                check_range(f"experiment.grid.{field}", share, 0.0, 1.0)


@dataclass
class ExperimentConfig:
    """Several runs that make one table; each cell is a list of overrides."""

    name: str | None
    datasets: list[str]  # choices of data, each run with every cell; empty = the composed data
    data_overrides: dict[str, list[str]]  # choice of data -> what its cells change besides
    cells: dict[str, list[str]]  # label -> overrides of this config
    only: list[str]  # labels to run now, in this order; empty = all
    grid: GridConfig | None  # more cells
    compared_with: dict[str, str]  # label -> the cell it is compared with, where not reference
    views: list[str]  # some of VIEWS: tables and figures beside the main one
    published: str | None  # CSV of published numbers to show beside ours
    seeds: list[int]
    reference: str | None  # the cell that paired differences are taken against
    folder: str | None  # where table and figures go
    cell: str | None  # label of this run in tables; null = named by its mask

    def __post_init__(self) -> None:
        for view in self.views:
            check_choice("experiment.views", view, VIEWS)
