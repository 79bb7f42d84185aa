"""kill -9, SIGTERM and Ctrl-C at random moments, then the same numbers: `make soak`.

Every task runs once undisturbed. Then, in folders of its own, it is started, sent one of the three
signals at a random moment (`validations`: just after a random one of its writes), started again,
perhaps stopped again, until a start ends by itself. Half of the signals are kill -9; after the
others the run has to end by itself, with the exit code of that signal. After each of them every
file that bears its final name must be whole; at the end all numbers, and the step that is exported,
must equal those of the undisturbed run bit for bit. Runs are forked from this process, which has
the packages imported already: with seconds of imports in front, most signals would hit nothing but
imports.

    python -m experiments.robustness.soak --kills 50
"""

import argparse
import csv
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from experiments.robustness.forked import Forked, finish, in_child, kill
from experiments.robustness.left_behind import exported, not_whole, numbers
from hatllm.files import write_json, write_text
from hatllm.processes import INTERRUPTED, TERMINATED
from hatllm.runs.provenance import code_hash, hardware

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
    "validations": [*SMALL, "run_name=validated", "trainer.max_epochs=8",
                    "trainer.validate_every_steps=null", "trainer.checkpoint_every_steps=2",
                    "trainer.early_stopping_patience=3", "data.valid_rows=16",
                    "decode.users_per_batch=4", "task.batches_a_shard=1"],
    "evaluate": ["task=evaluate", "task.run_folder=outputs/finished", "decode.beam_width=12"],
    "table": [*SHOP, "task=table"],
}  # fmt: skip
# Killed just after one of its writes: around a validation, between its best and last checkpoint.
AIMED = ("validations",)
MOST_WRITES, MOST_DELAY_S = 24, 0.05
MOST_STARTS = 40  # of one round
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
# What a run may end with: it was done already, killed, or it stopped because it was asked to.
END_CODES = {
    signal.SIGKILL: {0, -signal.SIGKILL},
    signal.SIGTERM: {0, -signal.SIGTERM, TERMINATED},
    signal.SIGINT: {0, INTERRUPTED},
}
MOST_SECONDS_TO_STOP = 60.0


@dataclass
class Kill:
    """One signal."""

    signal: str
    moment_s: float  # since its start
    whole_machine: bool  # False: the command's process group only, its cells live on
    there: str  # what lay in the folder, and the checkpoint or shard written last


@dataclass
class Outcome:
    """One task under fire."""

    task: str
    undisturbed_s: float
    exported: list[str] = field(default_factory=list)  # step and why, a trained run each
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
    outcome.exported = in_child(exported, work / "undisturbed")
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
            whole, number = draw.random() < 0.5, draw.choice(SIGNALS)
            if _runs_at_its_moment(process, outcome, folder, draw):
                moment = time.perf_counter() - started
                for session in sessions if whole else sessions[-1:]:
                    kill(session, whole, number)
                outcome.failures += _wrong_end(process, number, folder)
                _note_kill(outcome, folder, number.name, moment, whole)
                left -= 1
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


def _runs_at_its_moment(
    process: Forked, outcome: Outcome, folder: Path, draw: random.Random
) -> bool:
    """Wait for a random moment; whether the run has not ended before."""
    try:
        if outcome.task in AIMED:
            writes, delay_s = draw.randint(1, MOST_WRITES), draw.random() * MOST_DELAY_S
            process.wait_for_write(lambda: _writes(folder), writes, delay_s)
        else:
            process.wait(draw.random() * outcome.undisturbed_s)
    except subprocess.TimeoutExpired:
        return True
    return False


def _note_kill(outcome: Outcome, folder: Path, name: str, moment_s: float, whole: bool) -> None:
    """Look at what a signal has left."""
    outcome.not_whole += [f"{folder.name}/{file}" for file in in_child(not_whole, folder)]
    files = sum(path.is_file() for path in folder.rglob("*"))
    there = f"{files} files, {_last_write(folder)}"
    outcome.kills.append(Kill(name, round(moment_s, 3), whole, there))
    print(f"{outcome.task}: {name} {len(outcome.kills)} at {moment_s:.2f} s", flush=True)


def _wrong_end(process: Forked, number: signal.Signals, folder: Path) -> list[str]:
    """Wait for a run that was sent a signal; what is wrong with how it ended."""
    try:
        code = process.wait(MOST_SECONDS_TO_STOP)
    except subprocess.TimeoutExpired:
        kill(process.pid, whole_machine=True)
        process.wait(None)
        return [f"{folder.name}: {number.name} did not stop it in {MOST_SECONDS_TO_STOP:.0f} s"]
    if code in END_CODES[number]:
        return []
    log = process.log.read_text(errors="replace")[-3000:]
    return [f"{folder.name}: exit code {code} after {number.name}: {log}"]


def _written(folder: Path) -> list[Path]:
    """Checkpoints and shards of the runs."""
    return [
        path
        for pattern in ("outputs/*/checkpoints/*.ckpt", "outputs/*/shards/*/*.parquet")
        for path in folder.glob(pattern)
    ]


def _writes(folder: Path) -> set[tuple[str, int]]:
    """What `Forked.wait_for_write` compares."""
    found = set()
    for path in _written(folder):
        try:
            found.add((str(path), path.stat().st_mtime_ns))
        except FileNotFoundError:  # no longer the best
            continue
    return found


def _last_write(folder: Path) -> str:
    latest = max(_writes(folder), key=lambda write: write[1], default=("nothing", 0))
    return Path(latest[0]).name


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
    heads = ["task", "undisturbed", "signals", "KILL, TERM, INT", "to the whole machine",
             "moments", "rounds", "starts", "partial files", "numbers that differ",
             "failed starts"]  # fmt: skip
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)]]
    for outcome in outcomes:
        moments = [kill.moment_s for kill in outcome.kills] or [0.0]
        names = [kill.signal for kill in outcome.kills]
        each = ", ".join(str(names.count(number)) for number in ("SIGKILL", "SIGTERM", "SIGINT"))
        whole = sum(kill.whole_machine for kill in outcome.kills)
        counts = (outcome.not_whole, outcome.not_equal, outcome.failures)
        lines.append(
            [outcome.task, f"{outcome.undisturbed_s:.1f} s", str(len(outcome.kills)), each,
             str(whole),
             f"{min(moments):.2f} to {max(moments):.2f} s", str(outcome.rounds),
             str(outcome.starts), *(str(len(set(found))) for found in counts)]
        )  # fmt: skip
    verdict = "green" if all(outcome.is_green for outcome in outcomes) else "not green"
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    aimed = [outcome for outcome in outcomes if outcome.task in AIMED]
    for line in (line for outcome in aimed for line in outcome.exported if "validated" in line):
        text += f"\n\nUndisturbed, {line}."
    text += f"\n\n{about['kills']} signals, seed {seed}, {seconds / 60:.1f} min on one core of "
    text += f"{about['hardware']['processor']}, code {about['code_hash']}: {verdict}.\n"
    write_text(folder / "soak.md", text)


if __name__ == "__main__":
    sys.exit(main())
