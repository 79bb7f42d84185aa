"""The cells of a sweep or an experiment: what came of each.

Those of a sweep are noted in files: launchers run them in any process, on any machine.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console

from hatllm.exit_codes import BUSY, INTERRUPTED, TERMINATED
from hatllm.files import write_text
from hatllm.many.child import Terminated, ending, run_retried
from hatllm.runs.lock import run_lock

STARTED = "its process was killed"  # of a cell that was begun and of which no end is noted

console = Console()


@dataclass
class Cell:
    """One run of the sweep or experiment."""

    number: int
    words: list[str]  # its overrides
    command: list[str]
    folder: Path | None = None  # None: the settings are wrong
    failure: str | None = STARTED  # why it has no result
    is_busy: bool = False  # another process runs it

    def note(self, notes: Path) -> None:
        """Write the cell into the folder, so that no reader ever sees half of it."""
        notes.mkdir(parents=True, exist_ok=True)
        write_text(notes / f"{self.number:06d}.json", json.dumps(asdict(self), default=str))

    def run(self, force: bool, wait: bool) -> None:
        """Run the cell in a process; what came of it stands in the cell.

        Args:
            force: Run it although it is finished.
            wait: Where another process runs it, wait for that one; else the cell stays busy.

        Raises:
            KeyboardInterrupt: If the user stopped it.
        """
        from hatllm.runs.folder import is_finished

        assert self.folder is not None
        self.failure, self.is_busy = None, False
        if is_finished(self.folder) and not force:
            console.print(f"finished already: {self.folder}", soft_wrap=True)
            return
        code = run_retried(self.command)
        while code == BUSY and wait:
            self.wait()
            code = 0 if is_finished(self.folder) else run_retried(self.command)
        if code in (INTERRUPTED, TERMINATED):
            raise KeyboardInterrupt if code == INTERRUPTED else Terminated
        if code == BUSY:
            self.is_busy = True
        elif code != 0:
            self.failure = f"{ending(code)}; its message is above"

    def wait(self) -> None:
        """Wait until no other process runs the cell."""
        assert self.folder is not None
        console.print("waiting for the process that runs this cell")
        with run_lock(self.folder):
            pass


def noted_cells(notes: Path) -> list[Cell]:
    """The cells whose notes lie in the folder, in the order of the sweep."""
    found = [json.loads(path.read_text()) for path in sorted(notes.glob("*.json"))]
    return [
        Cell(**{**cell, "folder": None if cell["folder"] is None else Path(cell["folder"])})
        for cell in found
    ]
