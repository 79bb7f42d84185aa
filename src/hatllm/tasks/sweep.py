"""The sweep of `python run.py -m ...`: each cell a process, one table and its figures at the end.

Hydra says which cells there are; `Sweep`, its callback, keeps the list. A finished cell is not run
again and a broken one resumes, so the same command always goes on where it stopped. A cell has a
process of its own: a crash ends that cell alone, and the processes of a distributed run are
started again with the words of the cell, not with those of the sweep.
"""

import hashlib
import json
import signal
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from hatllm.compose import checked, one_line
from hatllm.config import Config, SweepConfig
from hatllm.tasks.child import INTERRUPTED, run_child, run_when_free
from hatllm.tasks.run_lock import BUSY

console = Console()


@dataclass
class Cell:
    """One run of the sweep."""

    words: list[str]  # its overrides
    config: Config | None  # None: the settings are wrong
    folder: Path | None
    command: list[str]
    failure: str | None = None  # why it has no result
    is_busy: bool = False  # another process runs it


class Sweep(Callback):
    """Hydra's callback that runs cells and, when all are done, makes their table.

    Attributes:
        cells: The cells so far, in the order of the sweep.
        words: The words of the command line.
        folder: Where table and figures go; the same command always gives the same folder.
    """

    _running: ClassVar["Sweep | None"] = None

    def __init__(self) -> None:
        Sweep._running = self
        self.cells: list[Cell] = []
        self.words: list[str] = []
        self.folder = Path()

    @staticmethod
    def running() -> "Sweep":
        """The sweep of this process."""
        assert Sweep._running is not None
        return Sweep._running

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Name the sweep by its words."""
        self.words = [str(word) for word in config.hydra.overrides.task]
        values = map(str, (config.hydra.sweeper.params or {}).items())
        digest = hashlib.sha256(json.dumps(sorted([*self.words, *values])).encode()).hexdigest()[:8]
        root = Path(str(config.output_root)).expanduser() / "sweeps"
        self.folder = root / f"{config.sweep.name or 'sweep'}-{digest}"

    def run_cell(self, composed: DictConfig, words: list[str], script: Path) -> float | None:
        """Run one cell unless it is finished.

        Args:
            composed: Its composed config.
            words: Its overrides.
            script: ``run.py``.

        Returns:
            Its objective; None where it failed, or another process runs it and nothing waits.
        """
        cell = self._cell(composed, words, script)
        self.cells.append(cell)
        own = " ".join(word for word in words if word not in self.words)
        console.rule(f"cell {len(self.cells)}: {own}")
        if cell.config is None or cell.folder is None:
            console.print(f"failed: {cell.failure}", markup=False)
            return None
        _run(cell, wait=cell.config.sweep.is_search)
        if cell.failure is not None or cell.is_busy:
            return None
        value = objective(cell.folder, cell.config.sweep)
        if value is None and cell.config.sweep.is_search:
            cell.failure = (
                f"sweep.objective={cell.config.sweep.objective!r} is not in its metrics.json"
            )
        return value

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Wait for cells that other processes run, write the table, name the cells that failed."""
        if not self.cells:  # of a task other than train
            return
        try:
            for cell in self.cells:
                if cell.is_busy:
                    _run(cell, wait=True)
            self._write_table()
        except OSError as error:  # such as a full disk
            conf = Path(self.cells[0].command[1]).parent / "conf"
            print(f"error: {one_line(error, conf)}", file=sys.stderr)
            sys.exit(2)
        except Exception:  # Hydra would make a warning of it and exit code 0
            traceback.print_exc()
            sys.exit(1)
        failed = [cell for cell in self.cells if cell.failure is not None]
        if failed:
            for cell in failed:
                print(f"failed: {' '.join(cell.words)}: {cell.failure}", file=sys.stderr)
            again = "the same command runs them again and nothing else"
            print(f"{len(failed)} of {len(self.cells)} cells failed; {again}", file=sys.stderr)
            sys.exit(1)

    def _cell(self, composed: DictConfig, words: list[str], script: Path) -> Cell:
        from hatllm.tasks.run_folder import run_folder

        kept = [word for word in words if not _key(word).startswith("sweep")]
        if not any(_key(word) == "logger.group" for word in kept):
            kept.append(f"logger.group={self.folder.name}")
        cell = Cell(words, None, None, [sys.executable, str(script), *kept])
        try:
            config = checked(composed)
        except (ValueError, OmegaConfBaseException) as error:
            cell.failure = one_line(error, script.parent / "conf")
            return cell
        folder = run_folder(config)
        if any(folder == other.folder for other in self.cells):
            if not config.sweep.is_search:
                cell.failure = f"{folder} is the folder of another cell: leave run_name out"
                return cell
        cell.config, cell.folder = config, folder
        return cell

    def _write_table(self) -> None:
        from hatllm.report.sweep import write_sweep

        done = [cell for cell in self.cells if cell.failure is None]
        if not done:
            return
        varied = _varied([cell.words for cell in self.cells])
        settings = [{key: _settings(cell.words).get(key, "") for key in varied} for cell in done]
        folders = [cell.folder for cell in done if cell.folder is not None]
        first = done[0].config
        assert first is not None
        text = write_sweep(settings, folders, first.sweep, self.folder)
        console.print(text, markup=False, highlight=False, soft_wrap=True)
        console.print(f"table and figures: {self.folder}", soft_wrap=True)


def objective(folder: Path, config: SweepConfig) -> float | None:
    """The number of a finished run that the sweep is about; a baseline, say, has no NLL."""
    split, metric = config.objective.split("/")
    value = json.loads((folder / "metrics.json").read_text())[split].get(metric)
    return None if value is None else float(value)


def _run(cell: Cell, wait: bool) -> None:
    """Run the cell in a process; what came of it stands in the cell."""
    from hatllm.tasks.run_folder import is_finished

    assert cell.folder is not None and cell.config is not None
    cell.is_busy = False
    if is_finished(cell.folder) and not cell.config.task.force:
        console.print(f"finished already: {cell.folder}", soft_wrap=True)
        return
    code = run_when_free(cell.command, cell.folder) if wait else run_child(cell.command)
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    if code == BUSY:
        cell.is_busy = True
    elif code != 0:
        died = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        cell.failure = f"{died}; its message is above"


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
