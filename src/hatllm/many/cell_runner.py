"""The one way in which the cells of a sweep or an experiment are run, each in its own process.

A finished cell is not run again and a broken one resumes; one that fails is tried once more and
stops no other; one that another process runs is waited for at the end.
"""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from types import FrameType

from rich.console import Console

from hatllm.files import write_text
from hatllm.processes import BUSY, INTERRUPTED, REFUSED, TERMINATED, Terminated
from hatllm.runs.begin import check_data_unchanged
from hatllm.runs.cell import Cell
from hatllm.runs.lock import run_lock

console = Console()


def refuse_stale(cell: Cell) -> None:
    """Refuse a finished cell as the answer for data that have changed, unless it is made anew.

    Raises:
        ValueError: As `check_data_unchanged`.
    """
    assert cell.config is not None
    if not cell.config.task.force:
        check_data_unchanged(cell.config, cell.folder)


def with_group(words: Sequence[str], name: str | None) -> list[str]:
    """The words of a cell, in the W&B group of that name unless they name another."""
    named = name is None or any(word.startswith("logger.group=") for word in words)
    return [*words] if named else [*words, f"logger.group={name}"]


def run_cells(cells: Sequence[Cell], script: Path) -> None:
    """Run cells one after another; `finish` runs those that have to wait for another process.

    Args:
        cells: In their order; one that needs the run of another stands after it.
        script: ``run.py``.
    """
    for number, cell in enumerate(cells):
        cell.number = number
        console.rule(f"cell {number + 1}/{len(cells)}: {cell.name}")
        if _needs_a_busy_one(cell, cells[:number]):
            console.print("later: it needs a run that another process makes")
            cell.is_busy = True
        else:
            run_cell(cell, script, cells[:number])


def run_cell(cell: Cell, script: Path, before: Sequence[Cell], wait: bool = False) -> None:
    """Run one cell; what came of it stands in the cell.

    Args:
        cell: Its `task.force` runs it although it is finished.
        script: ``run.py``.
        before: Cells that were run before it; what they made is not made anew once more.
        wait: Where another process runs it, wait for that one; else the cell stays busy.

    Raises:
        KeyboardInterrupt: If the user stopped it.
    """
    cell.failure, cell.is_busy = None, False
    is_made = any(other.folder == cell.folder and other.failure is None for other in before)
    force = cell.config is not None and cell.config.task.force and not is_made
    if cell.is_finished and not force:
        console.print(f"finished already: {cell.folder}", soft_wrap=True)
        return
    command = [sys.executable, str(script), *cell.words]
    code = run_retried(command)
    while code == BUSY and wait:
        _wait(cell)
        code = 0 if cell.is_finished else run_retried(command)
    if code in (INTERRUPTED, TERMINATED):
        raise KeyboardInterrupt if code == INTERRUPTED else Terminated
    if code == BUSY:
        console.print("later: that process makes the run; this one waits for it at the end")
        cell.is_busy = True
    elif code != 0:
        cell.failure = f"{ending(code)}; its message is above"


def finish(cells: Sequence[Cell], script: Path | None, write: Callable[[], None]) -> int:
    """Wait for busy cells, make the table, and name the cells that failed.

    Args:
        cells: All that were to be run.
        script: ``run.py``; None = cells run on other machines, and are only waited for.
        write: Makes the table of what is finished.

    Returns:
        How many failed.
    """
    for cell in cells:
        if cell.is_busy:
            console.rule(f"cell {cell.number + 1}/{len(cells)}: {cell.name}")
            if script is not None:
                run_cell(cell, script, cells, wait=True)
            else:
                _wait(cell)
                cell.failure = None if cell.is_finished else "its process left it unfinished"
    failed = [cell for cell in cells if cell.failure is not None]
    for cell in failed:
        print(f"failed: {cell.name}: {cell.failure}", file=sys.stderr)
    try:
        write()
    finally:
        if failed:
            again = "the same command runs them again and nothing else"
            print(f"{len(failed)} of {len(cells)} cells failed; {again}", file=sys.stderr)
    return len(failed)


def note(cell: Cell, notes: Path) -> None:
    """Write a cell into the folder, so that no reader ever sees half of it."""
    notes.mkdir(parents=True, exist_ok=True)
    values = asdict(replace(cell, config=None))
    write_text(notes / f"{cell.number:06d}.json", json.dumps(values, default=str))


def noted_cells(notes: Path) -> list[Cell]:
    """The cells whose notes lie in the folder, in their order."""
    found = [json.loads(path.read_text()) for path in sorted(notes.glob("*.json"))]
    return [Cell(**{**cell, "folder": Path(cell["folder"])}) for cell in found]


def _needs_a_busy_one(cell: Cell, others: Sequence[Cell]) -> bool:
    """Whether a setting of the cell names the folder of one that is busy."""
    values = {word.partition("=")[2] for word in cell.words}
    return any(other.is_busy and str(other.folder) in values for other in others)


def _wait(cell: Cell) -> None:
    """Wait until no other process runs the cell."""
    console.print("waiting for the process that runs this cell")
    with run_lock(cell.folder):
        pass


def run_child(command: list[str]) -> int:
    """Exit code of the command; Ctrl-C and SIGTERM reach it, and it may save what it has.

    Args:
        command: Program and its words.

    Returns:
        Its exit code, negative where a signal killed it.

    Raises:
        KeyboardInterrupt: After Ctrl-C, once the command has ended.
        Terminated: After SIGTERM, likewise.
    """
    # In a process group of its own it does not get the terminal's Ctrl-C a second time.
    process = subprocess.Popen(command, process_group=0)
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        while True:
            # Not one long wait: a signal that another thread receives would not end it.
            with suppress(subprocess.TimeoutExpired):
                return process.wait(timeout=1)
    except KeyboardInterrupt as stop:
        process.send_signal(signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT)
        try:
            process.wait()
        except KeyboardInterrupt:  # once more: it is not to finish its step
            process.send_signal(signal.SIGINT)
            process.wait()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def run_retried(command: list[str]) -> int:
    """As `run_child`; a command that failed or was killed is started once more.

    It goes on from its last checkpoint. What was refused, is busy elsewhere or was interrupted is
    left alone.
    """
    code = run_child(command)
    if code in (0, REFUSED, BUSY, INTERRUPTED, TERMINATED):
        return code
    print(f"the cell ended early ({ending(code)}); once more", flush=True)
    return run_child(command)


def ending(code: int) -> str:
    """An exit code in words."""
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated
