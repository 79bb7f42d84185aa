"""A cell's process: how it learns that the user wants to stop, and when it is started again."""

import signal
import subprocess
from contextlib import suppress
from types import FrameType

from hatllm.exit_codes import BUSY, INTERRUPTED, REFUSED, TERMINATED


class Terminated(KeyboardInterrupt):
    """SIGTERM came; all that Ctrl-C ends, it ends."""


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
