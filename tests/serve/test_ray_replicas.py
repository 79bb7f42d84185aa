"""`python run.py task=serve task.engine=ray`: replicas on a cluster of this machine."""

import os
import signal
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from server_process import HISTORIES, SOON, answers_of, check_same, event, recommend, served

from hatllm.serve.ray_replicas import reason_of

pytest.importorskip("ray.serve")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_replicas_answer_as_one_server_and_sigterm_ends_once_all_is_answered(
    finished: Path, tmp_path: Path
) -> None:
    with served(finished, tmp_path, ["task.serve.port=0"]) as process:
        address = event(process, "listening")["address"]
        event(process, "ready")
        expected = answers_of(address)
    words = ["task.engine=ray", "task.serve.replicas=2", "task.serve.max_wait_ms=1500"]
    with (
        served(finished, tmp_path, [*words, f"task.serve.port={free_port()}"]) as process,
        ThreadPoolExecutor(4) as pool,
    ):
        ready = event(process, "ready")
        assert ready["replicas"] == 2
        address = ready["address"]
        assert httpx.get(f"{address}/readyz").status_code == 200
        check_same(answers_of(address), expected)
        unknown = recommend(address, ["no such title"])
        assert (unknown.status_code, unknown.json()["error"]["code"]) == (422, "unknown_title")
        os.kill(replicas()[0], signal.SIGKILL)
        until_answered(address)
        check_same(answers_of(address), expected)
        asked = pool.submit(recommend, address, HISTORIES[0])
        time.sleep(0.5)  # waits for others for a second and a half
        process.send_signal(signal.SIGTERM)
        answer = asked.result(SOON)
        assert (answer.status_code, len(answer.json()["recommendations"])) == (200, 3)
        assert process.wait(SOON) == 0


def test_the_reason_is_the_error_of_the_replica_and_not_its_traceback() -> None:
    message = """The deployment failed to start 1 times in a row. Error:
ray::ServeReplica:hatllm:hatllm.initialize_and_get_metadata() (pid=1)
  File "replica.py", line 1928, in initialize
RuntimeError: Traceback (most recent call last):
  File "answerer.py", line 187, in answerer_of
    raise ValueError("x")
"""
    assert reason_of(message + "ValueError: no adapter") == "no adapter"
    assert reason_of(message + "torch.OutOfMemoryError: 3 GB asked for") == "3 GB asked for"
    assert reason_of(message + "MemoryError") == "MemoryError"
    assert reason_of("has 1 replicas that have taken more than 30s to be scheduled") is None


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_that_cannot_be_loaded_is_one_line(finished: Path, tmp_path: Path) -> None:
    (finished / "adapter/adapter_model.safetensors").unlink()
    words = ["task.engine=ray", f"task.serve.port={free_port()}"]
    with served(finished, tmp_path, words) as process:
        assert process.stderr is not None
        *_, last = process.stderr
        assert process.wait(SOON) == 2
    assert last.startswith("error: task.engine=ray: task.run_folder=")
    assert last.endswith(" has no adapter/adapter_model.safetensors\n")


def test_what_does_not_fit_ray_is_said_before_anything_starts(
    cli: Callable[..., int], finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["task=serve", f"task.run_folder={finished}"]
    for word, message in (
        ("task.serve.replicas=2", "task.serve.replicas=2 needs task.engine=ray"),
        ("task.serve.replicas=0", "task.serve.replicas=0 must be at least 1"),
        ("task.serve.port=0 task.engine=ray", "task.serve.port=0: task.engine=ray needs a port"),
    ):
        assert cli(*words, *word.split()) == 2
        assert message in capsys.readouterr().err


def replicas() -> list[int]:
    """Their processes, by the name that Ray gives them."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # ended meanwhile
            if b"ServeReplica:hatllm" in file.read_bytes():
                found.append(int(file.parent.name))
    return found


def until_answered(address: str) -> None:
    """What the dead replica had is lost, and Ray may send it one request more."""
    while recommend(address, HISTORIES[0]).status_code != 200:
        time.sleep(0.1)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port
