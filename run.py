"""The one entry point: python run.py [group=choice] [setting=value] ... (--help explains)."""

import argparse
import os
import select
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType

INTERRUPTED = 130  # exit code after Ctrl-C
NOBODY_READS = 141  # exit code where the reader of a pipe, such as `head`, has ended


def end_at_once(number: int, frame: FrameType | None) -> None:
    """What Ctrl-C does while packages are imported: nothing has begun yet."""
    os._exit(INTERRUPTED)


if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, end_at_once)

SCRIPT = Path(__file__).resolve()
CONF = SCRIPT.parent / "conf"
os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach errors_in_one_line()

import hydra  # noqa: E402
from hydra._internal.utils import get_args_parser  # noqa: E402
from hydra.core.hydra_config import HydraConfig  # noqa: E402
from hydra.errors import HydraException  # noqa: E402
from hydra.types import RunMode  # noqa: E402
from omegaconf import DictConfig  # noqa: E402
from omegaconf.errors import OmegaConfBaseException  # noqa: E402

from hatllm.compose import (  # noqa: E402
    checked,
    composed_with,
    one_line,
    register_schema,
    with_finished_run,
)
from hatllm.many.hydra_sweep import Sweep  # noqa: E402
from hatllm.processes import BUSY, TERMINATED, Terminated  # noqa: E402
from hatllm.redact import redacted  # noqa: E402
from hatllm.runs.lock import RunBusyError  # noqa: E402
from hatllm.tasks import run_task  # noqa: E402
from hatllm.trusted import refuse_foreign_code  # noqa: E402

register_schema()
Sweep.script = SCRIPT


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def run(composed: DictConfig) -> float | None:
    """Check the composed config and do its task; a cell of a sweep returns its objective."""
    overrides = list(HydraConfig.get().overrides.task)
    if HydraConfig.get().mode is RunMode.MULTIRUN and composed.task.name == "train":
        return Sweep.running().run_cell(composed, overrides, SCRIPT)
    with errors_in_one_line():
        config = checked(composed)
        if config.sweep.name is not None:
            raise ValueError(
                f"sweep={config.sweep.name!r} is many runs and needs -m: "
                f"python run.py -m sweep={config.sweep.name}"
            )
        if config.task.name in ("evaluate", "recommend"):
            from hatllm.runs.folder import load_config

            saved = load_config(Path(str(config.task.run_folder)))
            config = checked(with_finished_run(composed, overrides, saved))
        if config.task.name in ("experiment", "table", "plan"):
            from hatllm.many.experiment_cells import words_without_effect

            for line in words_without_effect(config.experiment, overrides):
                print(f"note: {line}", file=sys.stderr)
        run_task(config, partial(composed_with, overrides), SCRIPT)
    return None


def start() -> None:
    """Look at the command line before Hydra does, then `run` it."""
    parser = get_args_parser()
    sys.argv[1:] = options_first(sys.argv[1:], parser)
    parser.exit_on_error = False
    try:
        given, unknown = parser.parse_known_args()
    except argparse.ArgumentError as error:
        raise ValueError(f"{error} (python run.py --help)") from error
    if unknown:
        raise ValueError(
            f"{unknown[0]} is not an option; settings are written NAME=VALUE, such as "
            "mask.split_layer=16 (python run.py --help)"
        )
    folders = [CONF]
    for flag, folder in (("path", given.config_path), ("dir", given.config_dir)):
        if folder is not None and not (Path(folder).is_absolute() and Path(folder).is_dir()):
            raise ValueError(f"--config-{flag} {folder} must be the full path of a folder")
        folders += [] if folder is None else [Path(folder)]
    if Path(given.config_name or "").name != (given.config_name or ""):
        raise ValueError(f"--config-name {given.config_name} must be the name of a file there")
    refuse_foreign_code(given.overrides, folders)
    run()


def options_first(words: list[str], parser: argparse.ArgumentParser) -> list[str]:
    """The words as Hydra takes them: its options before all settings.

    Args:
        words: Of the command line; ``--NAME=VALUE``, the form of W&B's agents, is a setting too.
        parser: Hydra's.

    Returns:
        Options, each with its value, then settings without dashes, both in their order.
    """
    known = parser._option_string_actions
    options: list[str] = []
    settings: list[str] = []
    takes: argparse.Action | None = None  # the option before, where a value of it may follow
    for word in words:
        name, has_value, _ = word.partition("=")
        if takes is not None and (takes.nargs is None or not (has_value or name[:1] == "-")):
            options.append(word)
            takes = None
        elif name[:1] != "-":
            settings.append(word)
            takes = None
        elif name[:2] == "--" and has_value and not any(o.startswith(name) for o in known):
            settings.append(name[2:] + word[len(name) :])
            takes = None
        else:
            options.append(word)
            action = known.get(word)
            takes = None if action is None or action.nargs in (0, "*") else action
    return [*options, *settings]


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """A wrong setting or a full disk: one line and exit code 2; Ctrl-C: 130; SIGTERM: 143.

    Where nobody reads the output any more, end without a word.
    """
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except (HydraException, OmegaConfBaseException, ValueError, OSError, MemoryError) as error:
        if os.environ.get("HATLLM_TRACEBACK"):
            raise
        if isinstance(error, BrokenPipeError) and nobody_reads():
            sys.exit(NOBODY_READS)
        print(f"error: {redacted(one_line(error, CONF))}", file=sys.stderr)
        sys.exit(BUSY if isinstance(error, RunBusyError) else 2)
    except KeyboardInterrupt as stop:
        print("interrupted; the same command goes on where it stopped", file=sys.stderr)
        sys.exit(TERMINATED if isinstance(stop, Terminated) else INTERRUPTED)
    except Exception as error:  # a launcher that lost a worker
        if os.environ.get("HATLLM_TRACEBACK") or not Sweep.is_open():
            raise
        Sweep.running().finish(f"{type(error).__name__}: {error}")


def nobody_reads() -> bool:
    """Whether the pipe of the output is closed; what is left to write then goes nowhere."""
    closed = select.poll()
    closed.register(sys.stdout, 0)  # 0: nothing but errors and the end of the reader
    if not closed.poll(0):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


if __name__ == "__main__":
    with errors_in_one_line():
        if signal.getsignal(signal.SIGINT) is end_at_once:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        start()
