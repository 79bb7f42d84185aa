"""A cell's process: what its end means, and how signals reach it."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from hatllm.many.cell_runner import run_child, run_retried
from hatllm.processes import BUSY, INTERRUPTED, REFUSED, TERMINATED, Terminated

COUNT = "import os, sys; open(sys.argv[1], 'a').write('x'); "


def python(code: str, *words: object) -> list[str]:
    """A process of a moment."""
    return [sys.executable, "-S", "-c", code, *map(str, words)]


def test_a_command_that_was_killed_is_started_once_more(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    first = "os.path.getsize(sys.argv[1]) == 1 and os.kill(os.getpid(), 9)"
    assert run_retried(python(COUNT + first, tmp_path / "starts")) == 0
    assert (tmp_path / "starts").read_text() == "xx"
    assert "ended early (killed by SIGKILL); once more" in capfd.readouterr().out


def test_a_command_that_fails_twice_is_not_started_a_third_time(tmp_path: Path) -> None:
    assert run_retried(python(COUNT + "sys.exit(1)", tmp_path / "starts")) == 1
    assert (tmp_path / "starts").read_text() == "xx"


@pytest.mark.parametrize("code", [0, REFUSED, BUSY, INTERRUPTED, TERMINATED])
def test_what_another_start_would_not_mend_is_started_once(code: int, tmp_path: Path) -> None:
    assert run_retried(python(COUNT + f"sys.exit({code})", tmp_path / "starts")) == code
    assert (tmp_path / "starts").read_text() == "x"


@pytest.mark.parametrize(
    ("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)]
)
def test_a_signal_reaches_the_command_which_ends_in_its_own_time(
    number: int, raised: type[BaseException], tmp_path: Path
) -> None:
    code = """
import pathlib, signal, sys, time
def save(number, frame):
    time.sleep(0.2)
    pathlib.Path(sys.argv[1], "saved").write_text(str(number))
    sys.exit()
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, save)
pathlib.Path(sys.argv[1], "ready").touch()
time.sleep(60)
"""

    def send() -> None:
        while not (tmp_path / "ready").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    before = signal.getsignal(signal.SIGTERM)
    threading.Thread(target=send).start()
    with pytest.raises(raised):
        run_child(python(code, tmp_path))
    assert (tmp_path / "saved").read_text() == str(int(number))
    assert signal.getsignal(signal.SIGTERM) == before
