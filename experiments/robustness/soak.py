"""kill -9 at random moments, the same command again, the same numbers: `make soak`.

Every task runs once undisturbed. Then, in folders of its own, it is started, killed at a random
moment, started again, perhaps killed again, until a start ends by itself. After each kill every
file that bears its final name must be whole; at the end all numbers must equal those of the
undisturbed run bit for bit. Runs are forked from this process, which has the packages imported
already: with seconds of imports in front, most kills would hit nothing but imports.

    python -m experiments.robustness.soak --kills 50
"""

import argparse
import csv
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib.image
import polars as pl
import torch
from hydra.core.global_hydra import GlobalHydra
from safetensors.torch import load_file

import hatllm.tasks.evaluate
import hatllm.tasks.experiment
import hatllm.tasks.prepare
import hatllm.tasks.table
import hatllm.tasks.train  # noqa: F401
import run
from hatllm.tasks import child
from hatllm.tasks.run_folder import code_hash, hardware
from hatllm.whole_files import write_json, write_text

RESULTS = Path(__file__).parent / "results"
SHOP = ["data=custom", "data.interactions_file=shop/interactions.csv",
        "data.items_file=shop/items.csv", "data.user_column=who", "data.item_column=sku",
        "data.time_column=when", "data.title_column=name", "data.min_interactions=1"]  # fmt: skip
SMALL = [*SHOP, "scale=smoke", "num_threads=1", "data.train_rows=24", "data.test_rows=8",
         "trainer.max_epochs=2", "trainer.validate_every_steps=2",
         "trainer.checkpoint_every_steps=1", "trainer.learning_rate=0.01"]  # fmt: skip
TASKS = {  # the longest first
    "sweep": ["-m", *SMALL, "mask=hatllm,reversed"],
    "experiment": [*SMALL, "task=experiment", "experiment.name=soak", "experiment.seeds=[1]",
                   "++experiment.cells={popularity:['model=popularity'],causal:['mask=causal'],"
                   "ids:['model=gru4rec','model.sequence.max_epochs=4']}"],
    "prepare": [*SMALL, "task=prepare"],
    "train": [*SMALL, "run_name=trained"],
    "evaluate": ["task=evaluate", "task.run_folder=outputs/finished", "decode.beam_width=12"],
    "table": [*SHOP, "task=table"],
}  # fmt: skip
NUMBERS = ("metrics.json", "table.csv", "cells.csv", "results.csv", "table.md")
HASHES = ("data_hash", "split_hash", "split_hashes", "rows")  # of a manifest that has timings too
MOST_STARTS = 40  # of one round


@dataclass
class Kill:
    """One kill -9."""

    moment_s: float  # since its start
    share: float  # of the time the undisturbed run takes
    whole_machine: bool  # False: the command's process group only, its cells live on
    steps: str  # what lay in the folder


@dataclass
class Outcome:
    """One task under fire."""

    task: str
    undisturbed_s: float
    rounds: int = 0
    starts: int = 0
    kills: list[Kill] = field(default_factory=list)
    not_whole: list[str] = field(default_factory=list)  # files with a final name, cut off
    not_equal: list[str] = field(default_factory=list)  # numbers that differ
    failures: list[str] = field(default_factory=list)  # starts that ended with an error

    @property
    def is_green(self) -> bool:
        """Whether nothing went wrong."""
        return not (self.not_whole or self.not_equal or self.failures)


def main() -> int:
    """Run the soak; the exit code says whether all was well."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1, help="of the moments")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of soak.md, soak.json")
    parser.add_argument("--keep", type=Path, help="folder for the runs, not removed at the end")
    arguments = parser.parse_args()
    start = time.perf_counter()
    torch.set_num_threads(1)
    work = arguments.keep or Path(tempfile.mkdtemp(prefix="hatllm-soak-"))
    try:
        outcomes = soak(arguments.kills, arguments.seed, arguments.tasks, work)
    finally:
        if arguments.keep is None:
            shutil.rmtree(work, ignore_errors=True)
    write_results(outcomes, arguments.seed, time.perf_counter() - start, arguments.output)
    print((arguments.output / "soak.md").read_text())
    return 0 if all(outcome.is_green for outcome in outcomes) else 1


def soak(num_kills: int, seed: int, tasks: list[str], work: Path) -> list[Outcome]:
    """Kill each task its share of times.

    Args:
        num_kills: Over all tasks.
        seed: Of the moments.
        tasks: Names of TASKS.
        work: Folder for the runs.

    Returns:
        What happened, a task each.
    """
    begin = work / "begin"
    write_shop(begin / "shop")
    prepared = finish(begin, [*SMALL, "run_name=finished"])
    if prepared:
        raise RuntimeError(f"a run nobody disturbed failed:\n{prepared}")
    outcomes = []
    for place, task in enumerate(tasks):
        kills = num_kills // len(tasks) + (place < num_kills % len(tasks))
        draw = random.Random(f"{seed} {task}")
        outcomes.append(_soak_task(task, kills, draw, begin, work / task))
    return outcomes


def _soak_task(task: str, num_kills: int, draw: random.Random, begin: Path, work: Path) -> Outcome:
    words = TASKS[task]
    shutil.copytree(begin, work / "undisturbed")
    if task == "prepare":
        shutil.rmtree(work / "undisturbed/cache")
    start = time.perf_counter()
    failure = finish(work / "undisturbed", words)
    if failure:
        raise RuntimeError(f"{task}, undisturbed, failed:\n{failure}")
    outcome = Outcome(task, round(time.perf_counter() - start, 2))
    expected = in_child(numbers, work / "undisturbed")
    while len(outcome.kills) < num_kills and outcome.is_green:
        outcome.rounds += 1
        folder = work / f"round{outcome.rounds}"
        shutil.copytree(begin, folder)
        if task == "prepare":
            shutil.rmtree(folder / "cache")
        _round(outcome, words, folder, num_kills, draw)
        found = in_child(numbers, folder)
        outcome.not_equal += sorted(
            f"{folder.name}/{name}"
            for name in {*expected, *found}
            if expected.get(name) != found.get(name)
        )
        verdict = "equal" if outcome.is_green else "NOT GREEN"
        print(f"{task}: round {outcome.rounds}: {verdict}", flush=True)
        if outcome.is_green:
            shutil.rmtree(folder)
    return outcome


def _round(
    outcome: Outcome, words: list[str], folder: Path, num_kills: int, draw: random.Random
) -> None:
    """The same command again and again, killed up to four times, until it ends by itself."""
    left = min(draw.randint(1, 4), num_kills - len(outcome.kills))
    sessions = []
    for _ in range(MOST_STARTS):
        outcome.starts += 1
        started, process = time.perf_counter(), Forked(words, folder)
        sessions.append(process.pid)
        if left:
            share, whole = draw.random(), draw.random() < 0.5
            try:
                code = process.wait(share * outcome.undisturbed_s)
            except subprocess.TimeoutExpired:
                moment = time.perf_counter() - started
                for session in sessions if whole else sessions[-1:]:
                    kill(session, whole)
                process.wait(None)
                there = in_child(not_whole, folder)
                outcome.not_whole += [f"{folder.name}/{name}" for name in there]
                files = sum(path.is_file() for path in folder.rglob("*"))
                outcome.kills.append(
                    Kill(round(moment, 3), round(share, 3), whole, f"{files} files")
                )
                left -= 1
                print(f"{outcome.task}: kill {len(outcome.kills)} at {moment:.2f} s", flush=True)
                continue
        code = process.wait(None)
        if code:
            log = process.log.read_text(errors="replace")[-3000:]
            outcome.failures.append(f"{folder.name}: exit code {code}: {log}")
        break
    else:
        outcome.failures.append(f"{folder.name}: not done after {MOST_STARTS} starts")
    for session in sessions:
        kill(session, whole_machine=True)


class Forked:
    """`python run.py WORDS` in a process forked from this one, with what `Popen` offers."""

    def __init__(self, words: list[str], folder: Path | None = None, **_: Any) -> None:
        """Start it.

        Args:
            words: Overrides; with the program and the script before them where a run starts a cell.
            folder: Where it runs and leaves its log, as the first of a session; None = a cell, in
                the folder and the session of the run that starts it, a process group of its own.
        """
        if folder is not None:
            self.log = folder / "log.txt"
        self.code: int | None = None
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid:
            return
        code = 1
        try:
            if folder is None:
                os.setpgid(0, 0)
                code = _run(words[2:])
            else:
                os.setsid()
                os.chdir(folder)
                os.environ["HATLLM_CACHE"] = str(folder / "cache")
                os.environ.pop("HATLLM_DATA_ROOT", None)
                log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                os.dup2(log, 1)
                os.dup2(log, 2)
                code = _run(words)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, negative where a signal killed it.

        Raises:
            subprocess.TimeoutExpired: If it still runs after so many seconds.
        """
        end = None if timeout is None else time.perf_counter() + timeout
        while self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
            elif end is not None and time.perf_counter() > end:
                raise subprocess.TimeoutExpired("run.py", timeout or 0)
            else:
                time.sleep(0.002)
        return self.code

    def send_signal(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)


def _run(words: list[str]) -> int:
    """`run.py` in this process, its cells forked; returns the exit code."""
    child.subprocess = SimpleNamespace(  # type: ignore[assignment]
        Popen=Forked, TimeoutExpired=subprocess.TimeoutExpired
    )
    sys.argv = ["run.py", *words]
    GlobalHydra.instance().clear()
    try:
        with run.errors_in_one_line():
            run.run()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def kill(session: int, whole_machine: bool) -> None:
    """Kill -9 of a session's first process group, or of all its processes at once."""
    groups = {session}
    if whole_machine:
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                _, _, group, of_session, *_ = stat.read_text().rpartition(")")[2].split()
            except (OSError, ValueError):
                continue
            if int(of_session) == session:
                groups.add(int(group))
    for group in groups:
        try:
            os.killpg(group, signal.SIGKILL)
        except ProcessLookupError:
            continue


def finish(folder: Path, words: list[str]) -> str | None:
    """Run undisturbed; the end of its log if it fails."""
    process = Forked(words, folder)
    return process.log.read_text(errors="replace")[-3000:] if process.wait() else None


def in_child(function: Callable[[Path], Any], folder: Path) -> Any:
    """What a function returns (JSON), called in a process of its own.

    Polars starts threads when it is first used, and a process with threads must not fork.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            with os.fdopen(writer, "w") as answer:
                answer.write(json.dumps(function(folder)))
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        text = answer.read()
    os.waitpid(pid, 0)
    return json.loads(text)


def numbers(folder: Path) -> dict[str, str]:
    """A hash of every result below the outputs, by its path."""
    found = {}
    for path in sorted((folder / "outputs").rglob("*")):
        if (content := _content(path)) is not None:
            name = path.relative_to(folder).as_posix()
            found[name] = hashlib.sha256(content).hexdigest()[:16]
    return found


def _content(path: Path) -> bytes | None:
    """What must be equal of a file; None = nothing."""
    if path.name in NUMBERS:
        return path.read_bytes()
    if path.name.endswith("predictions.parquet"):
        return pl.read_parquet(path).write_json().encode()
    if path.name in ("adapter_model.safetensors", "model.safetensors"):
        tensors = sorted(load_file(path).items())
        return b"".join(name.encode() + value.numpy().tobytes() for name, value in tensors)
    if path.name == "split_manifest.json":
        manifest = json.loads(path.read_text())
        return json.dumps([manifest[key] for key in HASHES]).encode()
    return None


def not_whole(folder: Path) -> list[str]:
    """Files under their final name that cannot be read to their end."""
    return [path.relative_to(folder).as_posix() for path in _final(folder) if not _is_whole(path)]


def _final(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        hidden = any(part.endswith(".part") for part in path.parts)
        if path.is_file() and not hidden:
            yield path


def _is_whole(path: Path) -> bool:
    try:
        match path.suffix:
            case ".json":
                json.loads(path.read_text())
            case ".parquet":
                pl.read_parquet(path)
            case ".csv":
                return path.read_text().endswith("\n")
            case ".safetensors":
                load_file(path)
            case ".ckpt":
                return zipfile.ZipFile(path).testzip() is None
            case ".png":
                matplotlib.image.imread(path)
            case ".yaml" | ".md" | ".tex":
                return path.stat().st_size > 0
    except FileNotFoundError:
        return True  # a cell that lives on has just replaced it
    except Exception:
        return False
    return True


def write_shop(folder: Path) -> None:
    """Made-up data: 24 titles, 60 users."""
    folder.mkdir(parents=True)
    titles = [f"{color} {thing}" for color in ("Red", "Blue", "Old", "New", "Tiny", "Grand")
              for thing in ("Bicycle", "Boat", "Book", "Lamp")]  # fmt: skip
    with (folder / "items.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [("sku", "name"), *((f"s{i}", title) for i, title in enumerate(titles))]
        )
    rows = [
        (f"u{user}", f"s{(user * 5 + step * (1 + user % 3)) % 24}", 1000 * user + step)
        for user in range(60)
        for step in range(6 + user % 3)
    ]
    with (folder / "interactions.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("who", "sku", "when"), *rows])


def write_results(outcomes: list[Outcome], seed: int, seconds: float, folder: Path) -> None:
    """Write soak.json, with every moment, and soak.md."""
    about = {
        "seed": seed,
        "kills": sum(len(outcome.kills) for outcome in outcomes),
        "seconds": round(seconds, 1),
        "code_hash": code_hash(),
        "hardware": hardware(),
    }
    rows = [asdict(outcome) | {"green": outcome.is_green} for outcome in outcomes]
    write_json(folder / "soak.json", about | {"tasks": rows})
    heads = ["task", "undisturbed", "kills", "of the whole machine", "moments", "rounds", "starts",
             "partial files", "numbers that differ", "failed starts"]  # fmt: skip
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)]]
    for outcome in outcomes:
        moments = [kill.moment_s for kill in outcome.kills] or [0.0]
        whole = sum(kill.whole_machine for kill in outcome.kills)
        counts = (outcome.not_whole, outcome.not_equal, outcome.failures)
        lines.append(
            [outcome.task, f"{outcome.undisturbed_s:.1f} s", str(len(outcome.kills)), str(whole),
             f"{min(moments):.2f} to {max(moments):.2f} s", str(outcome.rounds),
             str(outcome.starts), *(str(len(set(found))) for found in counts)]
        )  # fmt: skip
    verdict = "green" if all(outcome.is_green for outcome in outcomes) else "not green"
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    text += f"\n\n{about['kills']} kills, seed {seed}, {seconds / 60:.1f} min on one core of "
    text += f"{about['hardware']['processor']}, code {about['code_hash']}: {verdict}.\n"
    write_text(folder / "soak.md", text)


if __name__ == "__main__":
    sys.exit(main())
