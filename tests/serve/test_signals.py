"""`python run.py task=serve` as processes: SIGTERM, and kill -9 under load."""

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from server_process import HISTORIES, SOON, answers_of, check_same, event, recommend, served


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
