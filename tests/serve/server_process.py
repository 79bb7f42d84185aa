"""`python run.py task=serve` as a process, its log, and what it answers."""

import json
import subprocess
from collections.abc import Iterator, Sequence
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
