"""A cell's process, and how it learns that the user wants to stop."""

import signal
import subprocess
from contextlib import suppress
from types import FrameType

INTERRUPTED = 130  # exit code after Ctrl-C


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


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
