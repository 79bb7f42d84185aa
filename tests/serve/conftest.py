"""A server under test, without a model."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from serving import Bench
from toys import Compose


@pytest.fixture
def bench(tmp_path: Path, compose_config: Compose) -> Iterator[Callable[..., Bench]]:
    """A function from settings of the server to one under test."""
    made: list[Bench] = []

    def make(*words: str, token: str | None = None, runs: Sequence[str] = ("one",)) -> Bench:
        config = compose_config("task=serve", f"task.run_folder={tmp_path}", *words)
        made.append(Bench(tmp_path / f"bench-{len(made)}", config, token, runs))
        return made[-1]

    yield make
    for one in made:
        one.service.batcher.close()
