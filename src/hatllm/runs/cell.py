"""A cell: one run of a sweep or an experiment, and what came of it."""

from dataclasses import dataclass, field
from pathlib import Path

from hatllm.config import Config
from hatllm.runs.folder import is_finished
from hatllm.runs.name import run_folder

STARTED = "its process was killed"  # of a cell that was begun and of which no end is known


@dataclass
class Cell:
    """One run of a sweep or an experiment."""

    label: str  # what messages and tables call it; its seed and data stand beside it
    seed: int
    folder: Path  # of its run; empty where its settings are wrong
    data: str = ""
    words: list[str] = field(default_factory=list)  # its command line
    config: Config | None = None  # None: its settings are wrong, or it was read from a note
    number: int = 0  # among the cells that are run together
    failure: str | None = STARTED  # why it has no result
    is_busy: bool = False  # another process runs it, or a run that it needs

    @staticmethod
    def of(config: Config, label: str, words: list[str], number: int = 0) -> "Cell":
        """The cell of a checked config."""
        return Cell(label, config.seed, run_folder(config), config.data.name, words, config, number)

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"{self.label} on {self.data}, seed {self.seed}".removeprefix(" on ")

    @property
    def is_finished(self) -> bool:
        """Whether its run is there."""
        return is_finished(self.folder)
