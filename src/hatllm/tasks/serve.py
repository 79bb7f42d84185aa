"""task=serve: finished runs over HTTP, and a page that shows what they do."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from socket import socket

from hatllm.compose import Compose
from hatllm.config import Config
from hatllm.runs.folder import load_config

PACKAGES = ("fastapi", "uvicorn", "prometheus_client")


def serve(config: Config, compose: Compose) -> None:
    """Answer for ``task.run_folder``, or ``task.run_folders``, until SIGTERM or Ctrl-C.

    Args:
        config: How to serve; settings of decoding go on top of each run's.
        compose: Knows the words of the command line.

    Raises:
        ValueError: If a package is missing, a run cannot be loaded, or a setting does not fit.
    """
    _check_packages()
    from hatllm.serve.listening import listening_socket, token_of
    from hatllm.serve.supervisor import Supervisor

    settings = config.task.serve
    assert settings is not None
    given = config.task.run_folders or [str(config.task.run_folder)]
    folders = [Path(folder).expanduser().absolute() for folder in given]
    for folder in folders:
        load_config(folder)  # refused before anything listens
    token_of(settings)
    _, words = compose([])
    if config.task.engine == "ray":
        from hatllm.serve.ray_replicas import serve_on_ray

        cache = str(Path(config.cache_root).expanduser().absolute())
        serve_on_ray(folders, replace(config, cache_root=cache), words)
        return
    answer = partial(_answer, folders, config, words)
    with listening_socket(settings) as listening:
        if settings.max_restarts:
            Supervisor(answer, settings.max_restarts).run(listening)
        else:
            answer(listening)


def _answer(
    folders: Sequence[Path], config: Config, words: Sequence[str], listening: socket
) -> None:
    """The serving process; what is heavy is imported here, and not by its parent."""
    import torch

    from hatllm.serve.loading import load_run
    from hatllm.serve.server import serve_runs

    assert config.task.serve is not None
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    load = partial(load_run, config=config, words=words)
    serve_runs(folders, load, config.task.serve, listening)


def _check_packages() -> None:
    for name in PACKAGES:
        if find_spec(name) is None:
            raise ValueError(f"task=serve needs a package ({name}): pip install -e '.[serve]'")
