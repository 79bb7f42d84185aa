"""task=serve: finished runs over HTTP, and a page that shows what they do."""

from functools import partial
from pathlib import Path

import torch

from hatllm.compose import Compose
from hatllm.config import Config


def serve(config: Config, compose: Compose) -> None:
    """Answer for ``task.run_folder``, or ``task.run_folders``, until SIGTERM or Ctrl-C.

    Args:
        config: How to serve; settings of decoding go on top of each run's.
        compose: Knows the words of the command line.

    Raises:
        ValueError: If a package is missing, a run cannot be loaded, or a setting does not fit.
    """
    try:
        from hatllm.serve.loading import load_run
        from hatllm.serve.server import serve_runs
    except ModuleNotFoundError as error:
        raise ValueError(
            f"task=serve needs a package ({error.name}): pip install -e '.[serve]'"
        ) from error
    assert config.task.serve is not None
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    _, words = compose([])
    given = config.task.run_folders or [str(config.task.run_folder)]
    folders = [Path(folder).expanduser() for folder in given]
    serve_runs(folders, partial(load_run, config=config, words=words), config.task.serve)
