"""The sweep of `python run.py -m ...`: each cell a process, one table and its figures at the end.

Hydra says which cells there are and its launcher where they run: here one after another (basic),
here side by side (joblib), on a Ray cluster, or as SLURM jobs (submitit). `Sweep`, its callback,
travels along, notes each cell in a file, and reads the notes at the end. A finished cell is not run
again and a broken one resumes, so the same command always goes on where it stopped. A cell has a
process of its own: a crash ends that cell alone, which is tried once more, and the processes of a
distributed run are started again with the words of the cell, not with those of the sweep.
"""

import hashlib
import json
import os
import shutil
import sys
import traceback
import uuid
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from hatllm.compose import checked, one_line
from hatllm.config import SweepConfig
from hatllm.many.cell_runner import (
    finish,
    note,
    noted_cells,
    refuse_stale,
    run_cell,
    with_group,
)
from hatllm.runs.cell import Cell
from hatllm.runs.run_files import read_metrics

HERE = ("BasicLauncher", "JoblibLauncher")  # launchers whose cells run on this machine

console = Console()


class Sweep(Callback):
    """Hydra's callback that runs cells and, when all are done, makes their table.

    Attributes:
        words: The words of the command line.
        folder: Where table and figures go; the same command always gives the same folder.
        notes: Where this launch notes its cells.
    """

    script: ClassVar[Path]  # run.py, which sets it
    _running: ClassVar["Sweep | None"] = None

    def __init__(self) -> None:
        Sweep._running = self
        self.words: list[str] = []
        self.folder = Path()
        self.notes = Path()
        self.settings: SweepConfig | None = None  # known once the sweep has begun
        self.is_here = True

    @staticmethod
    def running() -> "Sweep":
        """The sweep of this process."""
        assert Sweep._running is not None
        return Sweep._running

    @staticmethod
    def is_open() -> bool:
        """Whether a sweep of this process was begun and is not ended."""
        return Sweep._running is not None and Sweep._running.settings is not None

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Name the sweep by its words."""
        self.words = [str(word) for word in config.hydra.overrides.task]
        values = map(str, (config.hydra.sweeper.params or {}).items())
        digest = hashlib.sha256(json.dumps(sorted([*self.words, *values])).encode()).hexdigest()[:8]
        root = Path(str(config.output_root)).expanduser() / "sweeps"
        self.folder = root / f"{config.sweep.name or 'sweep'}-{digest}"
        self.notes = self.folder / ".cells" / uuid.uuid4().hex  # the command may run twice at once
        self.is_here = str(config.hydra.launcher._target_).split(".")[-1] in HERE
        settings = OmegaConf.to_object(config.sweep)
        assert isinstance(settings, SweepConfig)
        self.settings = settings

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        """Be this process's sweep, in the folder where the sweep was started."""
        Sweep._running = self
        os.chdir(str(config.hydra.runtime.cwd))

    def run_cell(self, composed: DictConfig, words: list[str], script: Path) -> float | None:
        """Run one cell unless it is finished.

        Args:
            composed: Its composed config.
            words: Its overrides.
            script: ``run.py``.

        Returns:
            Its objective; None where it failed, or another process runs it and nothing waits.
        """
        assert self.settings is not None
        before = noted_cells(self.notes)
        cell = self._planned(composed, words, script, before)
        note(cell, self.notes)
        console.rule(f"cell {cell.number + 1}: {cell.name}")
        if cell.config is None:
            console.print(f"failed: {cell.failure}", markup=False)
            return None
        run_cell(cell, script, before, wait=self.settings.is_search)
        value = None
        if cell.failure is None and not cell.is_busy:
            value = objective(cell.folder, self.settings)
            if value is None and self.settings.is_search:
                name = self.settings.objective
                cell.failure = f"sweep.objective={name!r} is not in its metrics.json"
        note(cell, self.notes)
        return value

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Wait for cells that other processes run, write the table, name the cells that failed."""
        self.finish(None)

    def finish(self, broken: str | None) -> None:
        """Make the end of the sweep, once.

        Args:
            broken: What the launcher died of, after which cells may not have been started.
        """
        Sweep._running, cells = None, noted_cells(self.notes)
        shutil.rmtree(self.notes, ignore_errors=True)
        if not cells and broken is None:  # of a task other than train
            return
        try:
            script = Sweep.script if self.is_here else None
            num_failed = finish(cells, script, lambda: self._write_table(cells))
        except OSError as error:  # such as a full disk
            print(f"error: {one_line(error, Sweep.script.parent / 'conf')}", file=sys.stderr)
            sys.exit(2)
        except Exception:  # Hydra would make a warning of it and exit code 0
            traceback.print_exc()
            sys.exit(1)
        if broken is not None:
            print(f"the launcher stopped ({broken}); the same command goes on", file=sys.stderr)
        if num_failed or broken is not None:
            sys.exit(1)

    def _planned(
        self, composed: DictConfig, words: list[str], script: Path, before: list[Cell]
    ) -> Cell:
        assert self.settings is not None
        own = " ".join(w for w in words if w not in self.words and _key(w) != "seed")
        kept = [word for word in words if not _key(word).startswith("sweep")]
        kept, number = with_group(kept, self.folder.name), int(HydraConfig.get().job.num)
        wrong = Cell(own, composed.seed, Path(), composed.data.name, kept, number=number)
        try:
            cell = Cell.of(checked(composed), own, kept, number)
            refuse_stale(cell)
        except (ValueError, OmegaConfBaseException) as error:
            return replace(wrong, failure=one_line(error, script.parent / "conf"))
        # Without a name two cells of one folder are one run, whose numbers both of them show.
        is_taken = any(other.folder == cell.folder for other in before)
        if composed.run_name is not None and is_taken and not self.settings.is_search:
            failure = f"{cell.folder} is the folder of another cell: leave run_name out"
            return replace(wrong, failure=failure)
        return cell

    def _write_table(self, cells: list[Cell]) -> None:
        from hatllm.many.sweep_tables import write_sweep

        done = [cell for cell in cells if cell.failure is None]
        if not done:
            return
        assert self.settings is not None
        varied = _varied([cell.words for cell in cells])
        settings = [{key: _settings(cell.words).get(key, "") for key in varied} for cell in done]
        folders = [cell.folder for cell in done]
        text = write_sweep(settings, folders, self.settings, self.folder)
        console.print(text, markup=False, highlight=False, soft_wrap=True)
        console.print(f"table and figures: {self.folder}", soft_wrap=True)


def objective(folder: Path, config: SweepConfig) -> float | None:
    """The number of a finished run that the sweep is about; a baseline, say, has no NLL."""
    split, metric = config.objective.split("/")
    value = read_metrics(folder)[split].get(metric)
    return None if value is None else float(value)


def _key(word: str) -> str:
    return word.lstrip("+~").split("=")[0]


def _settings(words: list[str]) -> dict[str, str]:
    return {_key(word): word.split("=", 1)[1] for word in words if "=" in word}


def _varied(cells: list[list[str]]) -> list[str]:
    """Settings that differ between cells, in the order of the words; the seed is not one."""
    first: Mapping[str, str] = _settings(cells[0])
    others = [_settings(words) for words in cells[1:]]
    return [
        key
        for key, value in first.items()
        if key != "seed" and any(other.get(key) != value for other in others)
    ]
