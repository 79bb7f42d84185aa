"""The one entry point: python run.py [group=choice] [setting=value] ... (--help explains)."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CONF = Path(__file__).resolve().parent / "conf"
os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach errors_in_one_line()

import hydra  # noqa: E402
from hydra import compose  # noqa: E402
from hydra._internal.utils import get_args_parser  # noqa: E402
from hydra.core.hydra_config import HydraConfig  # noqa: E402
from hydra.errors import HydraException  # noqa: E402
from hydra.types import RunMode  # noqa: E402
from omegaconf import DictConfig  # noqa: E402
from omegaconf.errors import OmegaConfBaseException  # noqa: E402

from hatllm.compose import checked, one_line, register_schema, with_finished_run  # noqa: E402
from hatllm.config import Config  # noqa: E402
from hatllm.redact import redacted  # noqa: E402
from hatllm.tasks import run_task  # noqa: E402
from hatllm.tasks.child import INTERRUPTED, TERMINATED, Terminated  # noqa: E402
from hatllm.tasks.run_lock import BUSY, RunBusyError  # noqa: E402
from hatllm.tasks.sweep import Sweep  # noqa: E402
from hatllm.trusted import refuse_foreign_code  # noqa: E402

register_schema()


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def run(composed: DictConfig) -> float | None:
    """Check the composed config and do its task; a cell of a sweep returns its objective."""
    overrides = list(HydraConfig.get().overrides.task)
    script = Path(__file__).resolve()
    if HydraConfig.get().mode is RunMode.MULTIRUN and composed.task.name == "train":
        return Sweep.running().run_cell(composed, overrides, script)

    def composed_with(more: list[str]) -> Config:
        keys = {word.split("=")[0] for word in more}
        kept = [word for word in overrides if word.split("=")[0] not in keys]
        more[:] = [*kept, *more]
        return checked(compose("config", overrides=more))

    with errors_in_one_line():
        config = checked(composed)
        if config.sweep.name is not None:
            raise ValueError(
                f"sweep={config.sweep.name!r} is many runs and needs -m: "
                f"python run.py -m sweep={config.sweep.name}"
            )
        if config.task.name in ("evaluate", "recommend"):
            from hatllm.tasks.run_folder import load_config

            saved = load_config(Path(str(config.task.run_folder)))
            config = checked(with_finished_run(composed, overrides, saved))
        if config.task.name in ("experiment", "table", "plan"):
            from hatllm.tasks.cells import words_without_effect

            for line in words_without_effect(config.experiment, overrides):
                print(f"note: {line}", file=sys.stderr)
        run_task(config, composed_with, script)
    return None


def start() -> None:
    """Look at the command line before Hydra does, then `run` it."""
    given = get_args_parser().parse_args()
    folders = [CONF]
    for flag, folder in (("path", given.config_path), ("dir", given.config_dir)):
        if folder is not None and not (Path(folder).is_absolute() and Path(folder).is_dir()):
            raise ValueError(f"--config-{flag} {folder} must be the full path of a folder")
        folders += [] if folder is None else [Path(folder)]
    if Path(given.config_name or "").name != (given.config_name or ""):
        raise ValueError(f"--config-name {given.config_name} must be the name of a file there")
    refuse_foreign_code(given.overrides, folders)
    run()


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """A wrong setting or a full disk: one line and exit code 2; Ctrl-C: 130; SIGTERM: 143."""
    try:
        yield
    except (HydraException, OmegaConfBaseException, ValueError, OSError, MemoryError) as error:
        if os.environ.get("HATLLM_TRACEBACK"):
            raise
        print(f"error: {redacted(one_line(error, CONF))}", file=sys.stderr)
        sys.exit(BUSY if isinstance(error, RunBusyError) else 2)
    except KeyboardInterrupt as stop:
        print("interrupted; the same command goes on where it stopped", file=sys.stderr)
        sys.exit(TERMINATED if isinstance(stop, Terminated) else INTERRUPTED)
    except Exception as error:  # a launcher that lost a worker
        if os.environ.get("HATLLM_TRACEBACK") or not Sweep.is_open():
            raise
        Sweep.running().finish(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    with errors_in_one_line():
        start()
