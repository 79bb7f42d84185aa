"""A cell's process, and how it learns that the user wants to stop."""

import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from types import FrameType

from rich.console import Console

from hatllm.tasks.run_lock import BUSY, run_lock

INTERRUPTED = 130  # exit code after Ctrl-C

console = Console()


def run_child(command: list[str]) -> int:
    """Exit code of the command; Ctrl-C and SIGTERM reach it once, and it may save what it has.

    Args:
        command: Program and its words.

    Returns:
        Its exit code, negative where a signal killed it.

    Raises:
        KeyboardInterrupt: After Ctrl-C or SIGTERM, once the command has ended.
    """
    # In a process group of its own it does not get the terminal's Ctrl-C a second time.
    process = subprocess.Popen(command, process_group=0)
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        while True:
            # Not one long wait: a signal that another thread receives would not end it.
            with suppress(subprocess.TimeoutExpired):
                return process.wait(timeout=1)
    except KeyboardInterrupt:
        process.send_signal(signal.SIGINT)
        process.wait()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def run_when_free(command: list[str], folder: Path) -> int:
    """As `run_child`, for a cell that another process may be running: waits until that has ended.

    Args:
        command: Program and its words.
        folder: The cell's run folder.

    Returns:
        Exit code, 0 where the other process has finished the cell.
    """
    from hatllm.tasks.run_folder import is_finished

    code = run_child(command)
    while code == BUSY:
        console.print("waiting for the process that runs this cell")
        with run_lock(folder):
            pass
        code = 0 if is_finished(folder) else run_child(command)
    return code


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
