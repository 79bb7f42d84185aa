"""The parent of a serving process, in processes that import neither torch nor models."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

SCRIPT = Path(__file__).with_name("one_server.py")
SOON = 20.0  # seconds
Start = Callable[[str], "tuple[subprocess.Popen[str], str]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """A function from what the server does to its parent and its address."""
    started: list[subprocess.Popen[str]] = []

    def make(what: str) -> tuple[subprocess.Popen[str], str]:
        process = subprocess.Popen(
            [sys.executable, str(SCRIPT), what, "0"], cwd=tmp_path, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        started.append(process)
        assert process.stdout is not None
        return process, f"http://127.0.0.1:{process.stdout.readline().strip()}"

    yield make
    for process in started:
        process.kill()
        process.communicate()


def pid_of(address: str) -> int:
    return int(httpx.get(f"{address}/pid", timeout=SOON).text)


def ask_slowly(pool: ThreadPoolExecutor, address: str, folder: Path) -> Any:
    """A request that is in flight when this returns."""
    asked = pool.submit(httpx.get, f"{address}/slow", timeout=SOON)
    end = time.monotonic() + SOON
    while not (folder / "begun").exists():
        assert time.monotonic() < end
        time.sleep(0.01)
    return asked


def test_a_killed_server_loses_what_was_in_flight_and_nothing_else(
    start: Start, tmp_path: Path
) -> None:
    process, address = start("serves")
    first = pid_of(address)
    assert first != process.pid
    with ThreadPoolExecutor(2) as pool:
        in_flight = ask_slowly(pool, address, tmp_path)
        os.kill(first, signal.SIGKILL)
        later = pool.submit(pid_of, address)  # nobody serves: it waits in the socket
        with pytest.raises(httpx.TransportError):
            in_flight.result(SOON)
        assert later.result(SOON) not in (first, process.pid)
        (tmp_path / "begun").unlink()
        in_flight = ask_slowly(pool, address, tmp_path)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        assert process.poll() is None and not in_flight.done()
        (tmp_path / "go").touch()
        assert in_flight.result(SOON).status_code == 200
    assert process.wait(SOON) == 0
    assert '"reason": "was killed by SIGKILL"' in process.communicate()[1]


def test_ctrl_c_ends_the_server_once_and_it_answers_what_is_in_flight(
    start: Start, tmp_path: Path
) -> None:
    process, address = start("serves")
    with ThreadPoolExecutor(1) as pool:
        in_flight = ask_slowly(pool, address, tmp_path)
        os.kill(pid_of(address), signal.SIGINT)  # as a terminal does, beside the parent's
        process.send_signal(signal.SIGINT)
        (tmp_path / "go").touch()
        assert in_flight.result(SOON).status_code == 200
    assert process.wait(SOON) == 0


def test_a_server_that_dies_at_once_ends_with_an_error(start: Start) -> None:
    process, _ = start("dies")
    error = process.communicate(timeout=SOON)[1]
    assert process.returncode == 1
    assert error.count('"event": "restarting"') == 2
    assert "ChildProcessError: the server was killed by SIGKILL, and task.serve.max_re" in error


def test_a_server_that_is_refused_is_not_started_again(start: Start) -> None:
    process, _ = start("refused")
    error = process.communicate(timeout=SOON)[1]
    assert (process.returncode, error) == (1, "ValueError: the run has no weights\n")


def test_a_server_whose_parent_was_killed_ends_when_everybody_is_answered(
    start: Start, tmp_path: Path
) -> None:
    process, address = start("serves")
    with ThreadPoolExecutor(1) as pool:
        in_flight = ask_slowly(pool, address, tmp_path)
        process.kill()
        process.wait(SOON)
        (tmp_path / "go").touch()
        assert in_flight.result(SOON).status_code == 200
    end = time.monotonic() + SOON
    while time.monotonic() < end:
        try:
            httpx.get(f"{address}/pid", timeout=1)
        except httpx.ConnectError:
            return
    raise AssertionError("it serves still")
