"""`python run.py task=serve` as a process: it answers, and SIGTERM ends it with exit code 0."""

import json
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
from cli import command, environment

SOON = 120.0  # seconds


def event(process: "subprocess.Popen[str]", name: str) -> dict[str, Any]:
    """The next line of the log that tells of it."""
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("{") and (told := json.loads(line)).get("event") == name:
            return told
    raise AssertionError(f"the server ended with {process.wait()} before {name}")


@pytest.mark.slow
def test_a_run_is_served_and_a_signal_ends_the_process_once_all_is_answered(
    finished: Path, tmp_path: Path
) -> None:
    words = ["task=serve", f"task.run_folder={finished}", "task.serve.port=0", "num_threads=1",
             "task.serve.max_wait_ms=1500"]  # fmt: skip
    process = subprocess.Popen(
        command(words), stderr=subprocess.PIPE, text=True, cwd=tmp_path,
        env=environment(tmp_path) | {"HATLLM_TOKEN": ""},
    )  # fmt: skip
    try:
        address = event(process, "listening")["address"]
        event(process, "ready")
        assert httpx.get(f"{address}/readyz").status_code == 200
        answers: list[httpx.Response] = []
        body = {"history": ["Red Boat"], "k": 3}
        asking = threading.Thread(
            target=lambda: answers.append(
                httpx.post(f"{address}/v1/recommend", json=body, timeout=SOON)
            )
        )
        asking.start()
        waiting = "hatllm_in_flight 1.0"
        while waiting not in httpx.get(f"{address}/metrics").text:
            pass
        process.send_signal(signal.SIGTERM)
        asking.join(SOON)
        assert process.wait(SOON) == 0
        assert [answer.status_code for answer in answers] == [200]
        assert len(answers[0].json()["recommendations"]) == 3
    finally:
        process.kill()
        process.wait()
