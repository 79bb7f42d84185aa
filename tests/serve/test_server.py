"""The server on a socket of its own: its signals, its slow and its lost clients."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import write_run

from hatllm.serve.listening import listening_socket
from hatllm.serve.server import Server, serve_runs
from hatllm.tasks.serve import serve

HISTORY = ["Toy Story (1995)"]
SOON = 20.0  # seconds


@contextmanager
def listening(made: Any) -> Iterator[tuple[Server, str]]:
    """A server in a thread; it ends as after SIGTERM."""
    server = Server(made.app, made.service, made.config.task.serve)
    thread = threading.Thread(target=server.run)
    thread.start()
    wait_for(lambda: server.started)
    host, port = server.servers[0].sockets[0].getsockname()[:2]
    yield server, f"http://{host}:{port}"
    server.handle_exit(15, None)
    thread.join(SOON)
    assert not thread.is_alive()


def wait_for(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + SOON
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.01)


def recommend(address: str) -> httpx.Response:
    return httpx.post(f"{address}/v1/recommend", json={"history": HISTORY}, timeout=SOON)


def test_the_first_signal_ends_readiness_and_what_is_in_flight_is_answered(bench) -> None:
    made = bench("task.serve.port=0")
    may = threading.Event()
    made.recommender.before = lambda: may.wait(SOON)
    with listening(made) as (server, address), ThreadPoolExecutor(1) as pool:
        assert httpx.get(f"{address}/readyz").status_code == 200
        answer = pool.submit(recommend, address)
        wait_for(lambda: made.app.in_flight == 1)
        server.handle_exit(15, None)
        assert httpx.get(f"{address}/readyz").status_code == 503
        refused = recommend(address)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "ending")
        may.set()
        assert answer.result(SOON).status_code == 200


def test_a_client_that_left_is_not_computed_for(bench) -> None:
    made = bench("task.serve.port=0")
    begun, may = threading.Event(), threading.Event()
    made.recommender.before = lambda: (begun.set(), may.wait(SOON))
    with listening(made) as (_, address), ThreadPoolExecutor(1) as pool:
        first = pool.submit(recommend, address)
        assert begun.wait(SOON)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{address}/v1/recommend", json={"history": HISTORY}, timeout=0.3)
        wait_for(lambda: made.app.in_flight == 1)
        may.set()
        assert first.result(SOON).status_code == 200
    made.service.batcher.close()
    assert len(made.recommender.batches) == 1


def test_a_run_that_cannot_be_loaded_ends_the_server_with_the_reason(bench, tmp_path) -> None:
    made = bench("task.serve.port=0")

    def load(folder: Path) -> Any:
        raise ValueError(f"{folder.name} has no weights")

    folder, config = write_run(tmp_path / "two"), made.config.task.serve
    with listening_socket(config) as listening, pytest.raises(ValueError, match="no weights"):
        serve_runs([folder], load, config, listening)


def test_a_port_that_is_taken_is_refused_by_name(bench) -> None:
    config = bench("task.serve.port=0").config.task.serve
    with listening_socket(config) as taken:
        config.port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=rf"task\.serve\.port={config.port} cannot be"):
            listening_socket(config)


def test_without_its_packages_the_task_says_what_to_install(compose_config, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    config = compose_config("task=serve", "task.run_folder=outputs/run")
    with pytest.raises(ValueError, match=r"task=serve needs a package \(uvicorn\).*\[serve\]"):
        serve(config, lambda words: (config, words))
