"""`python run.py task=serve` as processes: SIGTERM, and kill -9 under load."""

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from cli import command, environment

SOON = 120.0  # seconds
HISTORIES = [["Red Boat"], ["Blue Lamp", "Old Book"], ["Tiny Bicycle", "New Boat"], ["Grand Book"]]


def event(process: "subprocess.Popen[str]", name: str) -> dict[str, Any]:
    """The next line of the log that tells of it."""
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("{") and (told := json.loads(line)).get("event") == name:
            return told
    raise AssertionError(f"the server ended with {process.wait()} before {name}")


@contextmanager
def served(run: Path, folder: Path, words: Sequence[str]) -> Iterator["subprocess.Popen[str]"]:
    words = ["task=serve", f"task.run_folder={run}", "num_threads=1", *words]
    process = subprocess.Popen(
        command(words), stderr=subprocess.PIPE, text=True, cwd=folder,
        env=environment(folder) | {"HATLLM_TOKEN": ""},
    )  # fmt: skip
    try:
        yield process
    finally:
        process.terminate()  # a child ends with its parent, too
        try:
            process.wait(SOON)
        finally:
            process.kill()


def recommend(address: str, history: list[str]) -> httpx.Response:
    body = {"history": history, "k": 3}
    return httpx.post(f"{address}/v1/recommend", json=body, timeout=SOON)


def answers_of(address: str) -> list[list[dict[str, Any]]]:
    answers = [recommend(address, history) for history in HISTORIES]
    assert [answer.status_code for answer in answers] == [200] * len(HISTORIES)
    return [answer.json()["recommendations"] for answer in answers]


def check_same(got: list[list[dict[str, Any]]], expected: list[list[dict[str, Any]]]) -> None:
    """The same titles; log-probabilities up to the rounding of sums in other batches."""
    for one, other in zip(got, expected, strict=True):
        assert [title["title"] for title in one] == [title["title"] for title in other]
        assert [title["log_prob"] for title in one] == pytest.approx(
            [title["log_prob"] for title in other], abs=1e-5
        )


@pytest.mark.slow
def test_a_run_is_served_and_a_signal_ends_the_process_once_all_is_answered(
    finished: Path, tmp_path: Path
) -> None:
    words = ["task.serve.port=0", "task.serve.max_wait_ms=1500"]
    with served(finished, tmp_path, words) as process, ThreadPoolExecutor(1) as pool:
        address = event(process, "listening")["address"]
        event(process, "ready")
        assert httpx.get(f"{address}/readyz").status_code == 200
        asked = pool.submit(recommend, address, HISTORIES[0])
        while "hatllm_in_flight 1.0" not in httpx.get(f"{address}/metrics").text:
            pass
        process.send_signal(signal.SIGTERM)
        answer = asked.result(SOON)
        assert process.wait(SOON) == 0
        assert (answer.status_code, len(answer.json()["recommendations"])) == (200, 3)


@pytest.mark.slow
def test_kill_9_under_load_loses_what_was_in_flight_and_answers_on_as_before(
    finished: Path, tmp_path: Path
) -> None:
    ends = threading.Event()
    found: list[int] = []  # statuses; 0 = the connection was closed

    def press(address: str) -> None:
        while not ends.is_set():
            try:
                found.append(recommend(address, HISTORIES[1]).status_code)
            except httpx.TransportError:
                found.append(0)

    with (
        served(finished, tmp_path, ["task.serve.port=0"]) as process,
        ThreadPoolExecutor(4) as pool,
    ):
        told = event(process, "listening")
        event(process, "ready")
        address, before = told["address"], answers_of(told["address"])
        for _ in range(4):
            pool.submit(press, address)
        try:
            while found.count(200) < 20:
                time.sleep(0.01)
            os.kill(told["pid"], signal.SIGKILL)
            again = event(process, "listening")
            event(process, "ready")
            answered = found.count(200)
            while found.count(200) < answered + 20:
                time.sleep(0.01)
        finally:
            ends.set()
        assert again["address"] == address and again["pid"] != told["pid"]
        assert httpx.get(f"{address}/readyz").status_code == 200
        assert 1 <= found.count(0) <= 4  # what each of the four had in flight
        assert {*found} <= {0, 200, 503}  # 503: while the runs are loaded
        check_same(answers_of(address), before)
        process.send_signal(signal.SIGTERM)
        assert process.wait(SOON) == 0
