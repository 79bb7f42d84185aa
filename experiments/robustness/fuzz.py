"""Thousands of wrong inputs: each is refused in one clear line, or works to the end.

    python -m experiments.robustness.fuzz    # make fuzz; --help tells what can be chosen

What is accepted trains one step and decodes. A traceback, or a row that is in the files and neither
in the data nor in the report of what was dropped, is a failure: it is printed with the seed that
makes it again, and the exit code is 1.
"""

import argparse
import io
import random
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import torch
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

import hatllm
from experiments.robustness.bad_folders import FinishedRun
from experiments.robustness.bad_settings import settings_input
from experiments.robustness.bad_titles import OneTokenTitles
from experiments.robustness.inputs import data_files_input
from hatllm.compose import one_line
from hatllm.files import write_json
from hatllm.runs.provenance import code_hash, hardware

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"
RESULTS = Path(__file__).parent / "results"
PACKAGE = Path(hatllm.__file__).parent
LONGEST_MESSAGE = 1500  # characters
COMPOSING = (HydraException, OmegaConfBaseException)

Input = Callable[[random.Random, Path], tuple[str, Callable[[], str]]]


def try_input(make: Input, seed: str, folder: Path) -> tuple[str, str, str]:
    """Make one input and try it.

    Args:
        make: Gives what the input is, and a function that uses it and says how far it came.
        seed: Of the input.
        folder: For its files.

    Returns:
        What the input is; ``accepted``, ``refused`` or ``failed``; the message.
    """
    what, use = make(random.Random(seed), folder)
    said = io.StringIO()
    try:
        with redirect_stdout(said), redirect_stderr(said), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return what, "accepted", use()
    except (*COMPOSING, ValueError, ConnectionError) as error:
        message = one_line(error, CONF)
        if is_clean(error) and 0 < len(message) <= LONGEST_MESSAGE:
            return what, "refused", message
        return what, "failed", "".join(traceback.format_exception(error))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a panic of polars' Rust code is no Exception
        return what, "failed", "".join(traceback.format_exception(error))


def is_clean(error: BaseException) -> bool:
    """Whether it is our own message, or one of Hydra's and OmegaConf's about a setting."""
    if isinstance(error, COMPOSING):
        return True
    innermost = traceback.extract_tb(error.__traceback__)[-1].filename
    return type(error) in (ValueError, ConnectionError) and Path(innermost).is_relative_to(PACKAGE)


def fuzz(parts: dict[str, tuple[Input, int]], seed: int) -> tuple[dict[str, Counter[str]], int]:
    """Try every part; returns how often each outcome came, by part, and prints failures."""
    found: dict[str, Counter[str]] = {}
    for part, (make, count) in parts.items():
        counts = found[part] = Counter()
        start = time.perf_counter()
        for number in range(count):
            with tempfile.TemporaryDirectory() as folder:
                what, outcome, message = try_input(make, f"{part}-{seed}-{number}", Path(folder))
            counts["tried"] += 1
            counts[outcome] += 1
            if outcome == "accepted":
                counts[message] += 1
            if outcome == "failed":
                print(f"\nFAILED {part}-{seed}-{number}: {what}\n{message}", flush=True)
            if number % 50 == 49 or number == count - 1:
                rate = (number + 1) / (time.perf_counter() - start)
                print(f"{part}: {dict(counts)}, {rate:.1f} inputs/s", flush=True)
    return found, sum(counts["failed"] for counts in found.values())


def write_results(found: dict[str, Counter[str]], seed: int, seconds: float, folder: Path) -> None:
    """Write fuzz.json and fuzz.md."""
    folder.mkdir(parents=True, exist_ok=True)
    columns = ("tried", "refused", "accepted", "trained and decoded", "failed")
    machine = hardware()
    write_json(
        folder / "fuzz.json",
        {
            "command": f"python -m experiments.robustness.fuzz {_counts_of(found)} --seed {seed}",
            "seed": seed,
            "seconds": round(seconds, 1),
            "code_hash": code_hash(),
            "hardware": machine,
            "counts": {part: dict(counts) for part, counts in found.items()},
        },
    )
    lines = [
        f"| input | {' | '.join(columns)} |",
        f"| --- |{' ---: |' * len(columns)}",
        *(
            f"| {part} | {' | '.join(f'{counts[column]:,}' for column in columns)} |"
            for part, counts in found.items()
        ),
    ]
    facts = f"Seed {seed}, {seconds:.0f} s on {machine['processor']}, code hash {code_hash()}."
    (folder / "fuzz.md").write_text("\n".join([*lines, "", facts, ""]), encoding="utf-8")


def _counts_of(found: dict[str, Counter[str]]) -> str:
    """The options that give as many inputs."""
    tried = {part.split()[-1]: counts["tried"] for part, counts in found.items()}
    names = ("files", "settings", "folders", "titles")
    return " ".join(f"--{name} {tried.get(name, 0)}" for name in names)


def main(argv: list[str]) -> int:
    """Run the fuzz; returns the exit code."""
    parser = argparse.ArgumentParser(prog="experiments.robustness.fuzz", description=__doc__)
    parser.add_argument("--files", type=int, default=3000, help="data files")
    parser.add_argument("--settings", type=int, default=1000, help="command lines")
    parser.add_argument("--folders", type=int, default=500, help="exported run folders")
    parser.add_argument("--titles", type=int, default=200, help="tokenizers and titles")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as place:
        parts: dict[str, tuple[Input, int]] = {
            "data files": (data_files_input, given.files),
            "settings": (settings_input, given.settings),
        }
        if given.folders:
            parts["run folders"] = (FinishedRun.made_in(Path(place)).input, given.folders)
        if given.titles:
            made = OneTokenTitles.made_in(Path(place))
            parts["one-token titles"] = (made.input, given.titles)
        found, num_failed = fuzz(parts, given.seed)
    write_results(found, given.seed, time.perf_counter() - start, given.output)
    print((given.output / "fuzz.md").read_text(encoding="utf-8"))
    return 1 if num_failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
