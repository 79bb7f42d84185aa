"""One file a task; `run_task` picks it by name."""

from pathlib import Path

from hatllm.compose import Compose
from hatllm.config import Config
from hatllm.tasks.before_imports import check_layers


def run_task(config: Config, compose: Compose, script: Path) -> None:
    """Do what ``task`` says.

    Args:
        config: The run.
        compose: Config and words of the same command line with more overrides, for experiments.
        script: The entry script, for cells that run in a process of their own.

    Raises:
        ValueError: If a setting does not fit the data, the model or the machine.
    """
    # Imported late: --help and a mistyped setting should not wait for torch.
    is_one_run = not config.experiment.cells and config.experiment.grid is None
    if config.task.name in ("train", "masks") or (config.task.name == "plan" and is_one_run):
        check_layers(config)
    match config.task.name:
        case "experiment":
            from hatllm.tasks.experiment import run_experiment

            run_experiment(config, compose, script)
        case "table":
            from hatllm.tasks.table import table

            table(config, compose)
        case "plan":
            from hatllm.tasks.plan import plan

            plan(config, compose)
        case "serve":
            from hatllm.tasks.serve import serve

            serve(config, compose)
        case _:
            _run_by_its_own_config(config)


def _run_by_its_own_config(config: Config) -> None:
    """The tasks that compose no other config."""
    match config.task.name:
        case "prepare":
            from hatllm.tasks.prepare import prepare

            prepare(config)
        case "train":
            from hatllm.tasks.train import train

            train(config)
        case "evaluate":
            from hatllm.tasks.evaluate import evaluate

            evaluate(config)
        case "recommend":
            from hatllm.tasks.recommend import recommend

            recommend(config)
        case "masks":
            from hatllm.tasks.masks import draw

            draw(config)
        case "attention":
            from hatllm.tasks.attention import attention

            attention(config)
