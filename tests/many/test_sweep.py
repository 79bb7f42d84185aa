"""`python run.py -m`: what a sweep leaves, and that it repeats nothing whatever stops it."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import polars as pl
import pytest
import yaml
from cli import ROOT, command, environment
from frames import predictions_frame
from hydra import compose, initialize_config_dir
from matplotlib.figure import Figure
from toys import CONF, Compose

import run
from hatllm.compose import checked
from hatllm.config import SweepConfig
from hatllm.many.cell_runner import note
from hatllm.many.hydra_sweep import Sweep
from hatllm.many.sweep_tables import write_sweep
from hatllm.processes import BUSY
from hatllm.runs.cell import Cell
from hatllm.runs.lock import run_lock
from hatllm.runs.name import run_folder

Cli = Callable[..., int]
GRID = SweepConfig("grid", "valid/NDCG@10", ["test/NDCG@10", "test/trie_NLL"], False)


def sweep_folder(tmp_path: Path) -> Path:
    (table,) = (tmp_path / "outputs" / "sweeps").glob("*/table.md")
    return table.parent


def stamps(tmp_path: Path) -> dict[str, int]:
    """When each run was finished."""
    return {p.parent.name: p.stat().st_mtime_ns for p in tmp_path.glob("outputs/*/run.json")}


def write_run(
    folder: Path,
    seed: int,
    value: float,
    nll: float | None,
    kind: str = "llm",
    ranks: Sequence[int | None] = (1, None) * 4,
) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(f"model: {{kind: {kind}}}\ndecode: {{top_k: 10}}\n")
    numbers = dict.fromkeys(("HR@5", "HR@10", "NDCG@5", "NDCG@10"), value)
    numbers |= {"trie_NLL": nll, "vocab_NLL": nll}
    (folder / "metrics.json").write_text(json.dumps({"valid": numbers, "test": numbers}))
    (folder / "run.json").write_text(json.dumps({"seed": seed}))
    log_probs = None if nll is None else [-nll] * 8
    for name in ("predictions.parquet", "valid_predictions.parquet"):
        predictions_frame(ranks, log_probs).write_parquet(folder / name)
    return folder


def test_cells_are_averaged_over_seeds_and_the_best_is_named(tmp_path: Path) -> None:
    settings = [{"mask.split_layer": depth} for depth in ("8", "16") for _ in (1, 2)]
    values = [0.1, 0.3, 0.4, 0.6]
    folders = [write_run(tmp_path / str(n), n % 2, value, None) for n, value in enumerate(values)]
    text = write_sweep(settings, folders, GRID, tmp_path / "sweep")
    table = pl.read_csv(tmp_path / "sweep/table.csv")
    assert table["mask.split_layer"].to_list() == [8, 16]
    assert table["num_seeds"].to_list() == [2, 2]
    assert table["test/NDCG@10"].to_list() == pytest.approx([0.2, 0.5])
    assert table["test/NDCG@10_std"].to_list() == pytest.approx([0.02**0.5, 0.02**0.5])
    assert "Best valid/NDCG@10: 0.5000 with `mask.split_layer=16`" in text
    # No run has an NLL, so there is one figure.
    assert [path.name for path in (tmp_path / "sweep").glob("*.png")] == ["test_NDCG@10.png"]
    assert len(pl.read_csv(tmp_path / "sweep/cells.csv")) == 4


def test_a_single_seed_has_its_error_over_users_and_several_both(tmp_path: Path) -> None:
    settings = [{"mask.split_layer": depth} for depth in ("8", "16", "16")]
    # Of 8 users 4 are hit: sqrt(8 * 1/4 / 7 / 8) = 0.189. Over both seeds of 16 the means of the
    # first four users are 1, 0, 1, 0 and those of the others 1/2.
    ranks: list[list[int | None]] = [
        [1, None] * 4,
        [1, None] * 4,
        [1, None, 1, None, None, 1, None, 1],
    ]
    folders = [write_run(tmp_path / str(n), n, 0.5, None, ranks=ranks[n]) for n in range(3)]
    text = write_sweep(settings, folders, GRID, tmp_path / "sweep")
    rows = [line for line in text.splitlines() if line.startswith(("| 8 ", "| 16 "))]
    assert "| 0.5000 ± 0.1890 |" in rows[0] and "(" not in rows[0]
    both = (sum((x - 0.5) ** 2 for x in (1, 0, 1, 0)) / 7 / 8) ** 0.5
    assert f"| 0.5000 ± {both:.4f} (0.0000) |" in rows[1]
    assert "± is the standard error over users, in parentheses the standard deviation" in text


def test_a_sweep_without_a_hit_shows_no_error_of_zero(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / str(n), 1, 0.0, 2.0, ranks=[None] * 8) for n in range(2)]
    settings = [{"loss.tau": tau} for tau in ("1", "2")]
    text = write_sweep(settings, folders, GRID, tmp_path / "sweep")
    assert "| 0.0000 | 0.0000 |" in text and "± 0.0000" not in text
    assert "at 95 % the rate is below 0.3750 (8 users)" in text
    assert "Best valid/NDCG@10: 0.0000 with `loss.tau=1`, and 1 more alike." in text


def test_lists_of_four_have_no_metrics_at_ten_in_a_sweep(tmp_path: Path) -> None:
    settings = [{"decode.top_k": k} for k in ("4", "20")]
    folders = [write_run(tmp_path / k["decode.top_k"], 1, 0.25, None) for k in settings]
    for folder, top_k in zip(folders, (4, 20), strict=True):
        config = folder / "config.yaml"
        config.write_text(config.read_text().replace("top_k: 10", f"top_k: {top_k}"))
    numbers = {"HR@4": 0.25, "NDCG@4": 0.2}
    (folders[0] / "metrics.json").write_text(json.dumps({"valid": numbers, "test": numbers}))
    text = write_sweep(settings, folders, GRID, tmp_path / "sweep")
    assert "| 4 | 1 | – | – | – |" in text
    assert "– in valid/NDCG@10, test/NDCG@10: lists of fewer titles (decode.top_k)." in text
    cells = pl.read_csv(tmp_path / "sweep/cells.csv")
    assert cells["test/HR@10"].to_list() == [None, 0.25]
    # What one of the runs was not made with is measured of its answers: 4 of 8 at rank 1.
    assert cells["test/HR@4"].to_list() == [0.25, 0.5]


def test_a_sweep_says_what_a_uniform_guess_has_on_each_of_its_data(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / str(n), 1, 0.1, 2.0) for n in range(3)]
    assert "NLL in nats a title.\n" in write_sweep([{}] * 3, folders, GRID, tmp_path / "none")
    for folder, titles in zip(folders, ("abca", "acb", "de"), strict=True):
        pl.DataFrame({"title": list(titles)}).write_parquet(folder / "items.parquet")
    data = [{"data": name} for name in ("one", "one", "two")]
    guesses = (
        "a uniform guess among 3 titles has 1.099; a uniform guess among 2 titles has 0.693.\n"
    )
    assert f"NLL in nats a title; {guesses}" in write_sweep(data, folders, GRID, tmp_path / "all")


def test_a_run_that_no_seed_can_change_counts_once(tmp_path: Path) -> None:
    kinds = [kind for kind in ("popularity", "sasrec") for _ in (1, 2, 3)]
    folders = [write_run(tmp_path / str(n), n % 3, n / 10, 2.0, k) for n, k in enumerate(kinds)]
    settings = [{"model": kind} for kind in kinds]
    write_sweep(settings, folders, GRID, tmp_path / "sweep")
    table = pl.read_csv(tmp_path / "sweep/table.csv")
    assert table.select("model", "num_seeds").rows() == [("popularity", 1), ("sasrec", 3)]
    assert table["test/NDCG@10"].to_list() == pytest.approx([0.0, 0.4])
    assert len(pl.read_csv(tmp_path / "sweep/cells.csv")) == 6


def test_two_numbers_give_a_heat_map_for_each_metric(
    tmp_path: Path, figures: dict[str, Figure]
) -> None:
    settings = [
        {"mask.split_layer": a, "mask.num_cross_layers": b} for a in ("0", "4") for b in ("0", "8")
    ]
    folders = [write_run(tmp_path / str(n), 1, n / 10, float(n)) for n in range(4)]
    text = write_sweep(settings, folders, GRID, tmp_path / "sweep")
    assert "![test_trie_NLL](test_trie_NLL.png)" in text
    assert set(figures) == {"test_NDCG@10.png", "test_trie_NLL.png"}
    for name, tiles in (("NDCG@10", [[0.0, 0.1], [0.2, 0.3]]), ("trie_NLL", [[0, 1], [2, 3]])):
        axes = figures[f"test_{name}.png"].axes[0]
        assert axes.images[0].get_array().tolist() == tiles
        assert axes.get_ylabel() == "mask.split_layer"
        assert [label.get_text() for label in axes.get_yticklabels()] == ["0", "4"]
        assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "8"]


def test_a_number_and_a_name_give_a_line_for_each_name(
    tmp_path: Path, figures: dict[str, Figure]
) -> None:
    settings = [{"loss.tau": tau, "mask": mask} for tau in ("1", "2") for mask in ("a", "b")]
    folders = [write_run(tmp_path / str(n), 1, n / 10, None) for n in range(4)]
    write_sweep(settings, folders, GRID, tmp_path / "sweep")
    handles, names = figures["test_NDCG@10.png"].axes[0].get_legend_handles_labels()
    values = {name: list(line[0].get_ydata()) for name, line in zip(names, handles, strict=True)}
    assert values == {"a": [0.0, 0.2], "b": [0.1, 0.3]}


def test_a_search_is_listed_best_first(tmp_path: Path) -> None:
    search = SweepConfig("optuna", "valid/trie_NLL", [], True)
    settings = [{"loss.tau": tau} for tau in ("1.5", "2.5", "3.5")]
    nlls = [3.0, 1.0, 2.0]
    folders = [write_run(tmp_path / str(n), 1, 0.1, nll) for n, nll in enumerate(nlls)]
    write_sweep(settings, folders, search, tmp_path / "sweep")
    assert pl.read_csv(tmp_path / "sweep/table.csv")["loss.tau"].to_list() == [2.5, 3.5, 1.5]
    assert (tmp_path / "sweep/search.png").exists()


def test_a_run_proposed_twice_is_one_seed(tmp_path: Path) -> None:
    search = SweepConfig("optuna", "valid/trie_NLL", [], True)
    folders = [write_run(tmp_path / str(n), 1, 0.1, float(n)) for n in range(2)]
    settings = [{"loss.tau": tau} for tau in ("1.5", "2.5", "1.5")]
    write_sweep(settings, [*folders, folders[0]], search, tmp_path / "sweep")
    assert pl.read_csv(tmp_path / "sweep/table.csv")["num_seeds"].to_list() == [1, 1]


def test_runs_of_two_versions_of_the_code_are_said(tmp_path: Path) -> None:
    settings = [{"mask.split_layer": depth} for depth in ("8", "16")]
    folders = [write_run(tmp_path / str(n), 1, 0.1, None) for n in range(2)]
    for folder, code in zip(folders, ("aa", "bb"), strict=True):
        (folder / "environment.json").write_text(json.dumps({"code_hash": code}))
    said = write_sweep(settings, folders, GRID, tmp_path / "sweep")
    assert "Warning: runs of 2 versions of the code: aa, bb" in said


def test_more_settings_than_a_figure_holds_say_so(tmp_path: Path) -> None:
    settings = [{"a": x, "b": x, "c": x} for x in ("1", "2")]
    folders = [write_run(tmp_path / x["a"], 1, 0.1, 1.0) for x in settings]
    assert "No figure: 3 settings vary" in write_sweep(settings, folders, GRID, tmp_path / "sweep")


@pytest.mark.long
@pytest.mark.usefixtures("cells_here")
def test_a_failing_cell_stops_no_other_and_is_named_at_the_end(
    cli: Cli, shop: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["-m", *shop, "mask.split_layer=9,1", "mask.num_cross_layers=1", "loss.tau=2,0"]
    assert cli(*words) == 1
    error = capfd.readouterr().err
    # 9 of 4 layers fails in the cell's own process, a temperature of 0 before it is started.
    assert "mask.split_layer=9" in error and "exit code 2" in error
    assert "loss.tau=0.0 must be above 0" in error
    assert "3 of 4 cells failed" in error
    assert pl.read_csv(sweep_folder(tmp_path) / "cells.csv")["mask.split_layer"].to_list() == [1]
    assert len(stamps(tmp_path)) == 1


@pytest.mark.long
@pytest.mark.usefixtures("cells_here")
def test_a_sweep_of_masks_draws_their_comparison_and_is_one_group_of_wandb(
    cli: Cli, shop: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    words = ["sweep=masks", "mask=causal,hatllm", "seed=1", "logger=wandb", "trainer.max_steps=1"]
    assert cli("-m", *shop, *words) == 0
    folder = sweep_folder(tmp_path)
    assert folder.name.startswith("masks-")
    assert (folder / "comparison.png").exists()
    assert pl.read_csv(folder / "table.csv")["mask"].to_list() == ["causal", "hatllm"]
    configs = [
        yaml.safe_load(path.read_text()) for path in tmp_path.glob("outputs/custom-*/config.yaml")
    ]
    assert len(configs) == 2
    assert {config["logger"]["group"] for config in configs} == {folder.name}
    assert {config["sweep"]["name"] for config in configs} == {None}
    assert len(list(tmp_path.glob("outputs/custom-*/wandb/offline-run-*/*.wandb"))) == 2


@pytest.mark.slow
def test_processes_of_a_distributed_cell_start_no_sweep(
    cli: Cli, shop: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu", "seed=1",
             "trainer.micro_batch_size=2", "trainer.max_steps=1"]  # fmt: skip
    assert cli("-m", *shop, *words) == 0
    said = capfd.readouterr().out
    assert said.count("cell 1") == 1
    assert len(stamps(tmp_path)) == 1
    assert len(list(tmp_path.glob("outputs/sweeps/*/cells.csv"))) == 1


def start(words: list[str], tmp_path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(words), env=environment(tmp_path), cwd=tmp_path, stdout=subprocess.PIPE, text=True,
        stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip


def wait_for_checkpoint(tmp_path: Path) -> Path:
    waited = time.monotonic()
    while time.monotonic() - waited < 100:
        for path in tmp_path.glob("outputs/*/checkpoints/last.ckpt"):
            if not (path.parents[1] / "run.json").exists():
                return path
        time.sleep(0.05)
    raise AssertionError("no cell wrote a checkpoint")


def half_a_sweep(shop: list[str]) -> list[str]:
    """A cell of a moment and one that takes some seconds."""
    return ["-m", *shop, "trainer.max_steps=0,60", "trainer.max_epochs=99",
            "trainer.checkpoint_every_steps=1"]  # fmt: skip


@pytest.mark.slow
def test_an_interrupted_sweep_goes_on_where_it_stopped(shop: list[str], tmp_path: Path) -> None:
    words = half_a_sweep(shop)
    process = start(words, tmp_path)
    checkpoint = wait_for_checkpoint(tmp_path)
    os.kill(process.pid, signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130, out
    assert not (checkpoint.parents[1] / "run.json").exists()
    before = stamps(tmp_path)
    assert len(before) == 1
    again = start(words, tmp_path)
    out, _ = again.communicate(timeout=120)
    assert again.returncode == 0, out
    assert out.count("finished already") == 1
    assert out.count("resuming from") == 1
    assert len(after := stamps(tmp_path)) == 2
    assert before.items() <= after.items()


@pytest.mark.slow
def test_a_sweep_started_again_after_a_kill_waits_for_the_cell_that_lives_on(
    shop: list[str], tmp_path: Path
) -> None:
    words = half_a_sweep(shop)
    process = start(words, tmp_path)
    wait_for_checkpoint(tmp_path)
    os.kill(process.pid, signal.SIGKILL)  # the cell's own process lives on
    process.wait(timeout=10)
    again = start(words, tmp_path)
    out, _ = again.communicate(timeout=120)
    assert again.returncode == 0, out
    assert "resuming from" not in out
    assert len(stamps(tmp_path)) == 2
    assert len(pl.read_csv(sweep_folder(tmp_path) / "cells.csv")) == 2


@pytest.mark.slow
def test_a_cell_that_another_process_runs_is_waited_for_at_the_end(
    shop: list[str], tmp_path: Path
) -> None:
    with run_lock(tmp_path / "outputs" / "taken"):
        process = start(["-m", *shop, "model=popularity", "run_name=taken", "seed=1"], tmp_path)
        assert process.stdout is not None
        said = ""
        while "waiting for the process that runs this cell" not in said:
            line = process.stdout.readline()
            assert line, said
            said += line
        assert not stamps(tmp_path)
    process.communicate(timeout=100)
    assert process.returncode == 0
    assert list(stamps(tmp_path)) == ["taken"]


@pytest.mark.slow
def test_cells_that_need_a_run_of_another_process_wait_for_it(
    compose_config: Compose, shop: list[str], tmp_path: Path
) -> None:
    base = ["model=sasrec", "model.sequence.max_epochs=1"]
    words = [*shop, "task=experiment", f"experiment.folder={tmp_path}/tables",
             f"+experiment.cells.base={json.dumps(base)}",
             '+experiment.cells.next=["model.item_vectors=run:base","trainer.max_steps=1"]',
             "experiment.seeds=[1]"]  # fmt: skip
    folder = tmp_path / run_folder(compose_config(*shop, *base, "seed=1"))
    with run_lock(folder):
        process = start(words, tmp_path)
        assert process.stdout is not None
        said = ""
        while "waiting for the process that runs this cell" not in said:
            line = process.stdout.readline()
            assert line and "is not finished" not in line, said
            said += line
        assert "later: it needs a run that another process makes" in said
    out, _ = process.communicate(timeout=100)
    assert process.returncode == 0, out
    assert len(stamps(tmp_path)) == 2


def test_a_run_that_another_process_writes_is_refused(
    cli: Cli, shop: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with run_lock(tmp_path / "outputs" / "taken"):
        assert cli(*shop, "model=popularity", "run_name=taken") == BUSY
    assert "outputs/taken is being written by another process" in capsys.readouterr().err


@pytest.mark.usefixtures("cells_here")
def test_one_folder_for_two_cells_is_refused(
    cli: Cli, shop: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli("-m", *shop, "model=popularity", "run_name=one", "seed=1,2") == 1
    assert "outputs/one is the folder of another cell: leave run_name out" in capfd.readouterr().err


def test_a_prepared_sweep_needs_m(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("sweep=seeds") == 2
    assert "python run.py -m sweep=seeds" in capsys.readouterr().err


@pytest.mark.long
@pytest.mark.usefixtures("cells_here")
def test_a_search_proposes_the_same_cells_again(cli: Cli, shop: list[str], tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    words = ["-m", *shop, "sweep=optuna", "trainer.max_steps=1", "hydra.sweeper.n_trials=2",
             "sweep.objective=valid/NDCG@10", "hydra.sweeper.direction=maximize"]  # fmt: skip
    assert cli(*words) == 0
    before = stamps(tmp_path)
    assert len(before) == 2
    assert cli(*words) == 0
    assert stamps(tmp_path) == before
    cells = pl.read_csv(sweep_folder(tmp_path) / "cells.csv")
    varied = ("trainer.learning_rate", "trainer.weight_decay")
    assert [cells[name].n_unique() for name in varied] == [2, 2]


def test_split_x_cross_has_at_least_twelve_cells_that_a_model_of_30_layers_takes() -> None:
    params = yaml.safe_load((CONF / "sweep/split_x_cross.yaml").read_text())["hydra"]["sweeper"]
    split, cross = (
        [int(depth) for depth in params["params"][name].split(",")]
        for name in ("mask.split_layer", "mask.num_cross_layers")
    )
    assert len(split) * len(cross) >= 12
    assert max(split) + max(cross) <= 30


def test_a_sweep_does_not_change_the_folder_of_a_run(compose_config: Compose) -> None:
    from hatllm.runs.name import config_hash

    assert config_hash(compose_config()) == config_hash(compose_config("sweep=masks"))


@pytest.mark.long  # W&B takes seconds to import
def test_the_words_of_a_wandb_agent_compose() -> None:
    from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

    sweep = yaml.safe_load((ROOT / "experiments/sweeps/wandb_split_layer.yaml").read_text())
    cell = {name: {"value": choice["values"][-1]} for name, choice in sweep["parameters"].items()}
    words = create_sweep_command_args({"args": cell})["args_no_hyphens"]
    fixed = [word for word in sweep["command"] if not word.startswith("${")]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = checked(compose("config", overrides=[*fixed, *words]))
    assert (config.mask.split_layer, config.seed, config.logger.name) == (20, 3, "wandb")


@pytest.mark.slow
def test_an_interrupted_experiment_saves_its_cell_and_goes_on_there(
    shop: list[str], tmp_path: Path
) -> None:
    cell = '["trainer.max_steps=60","trainer.max_epochs=99","trainer.checkpoint_every_steps=1"]'
    words = [*shop, "task=experiment", f"+experiment.cells.long={cell}",
             f"experiment.folder={tmp_path}/tables"]  # fmt: skip
    process = start(words, tmp_path)
    wait_for_checkpoint(tmp_path)
    os.kill(process.pid, signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130, out
    assert "stopped after step" in out and "the same command goes on from there" in out
    again = start(words, tmp_path)
    out, _ = again.communicate(timeout=120)
    assert again.returncode == 0, out
    assert out.count("resuming from") == 1
    assert (tmp_path / "tables" / "results.md").exists()


def cell_processes(process: subprocess.Popen[str]) -> list[int]:
    """Processes below a sweep's or an experiment's that run a cell."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            words = path.read_bytes().split(b"\0")
            parent = (path.parent / "stat").read_text().rpartition(")")[2].split()[1]
            if b"-m" not in words and any(b"trainer.max_steps=60" in word for word in words):
                if int(parent) == process.pid:
                    found.append(int(path.parent.name))
    return found


def kill_the_cell(process: subprocess.Popen[str], tmp_path: Path) -> None:
    wait_for_checkpoint(tmp_path)
    (cell,) = cell_processes(process)
    os.kill(cell, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the cell in /proc")
@pytest.mark.parametrize("kind", ["sweep", "experiment"])
def test_a_killed_cell_is_tried_once_more(kind: str, shop: list[str], tmp_path: Path) -> None:
    cell = '["trainer.max_steps=60","trainer.max_epochs=99","trainer.checkpoint_every_steps=1"]'
    words = {
        "sweep": half_a_sweep(shop),
        "experiment": [*shop, "task=experiment", f"experiment.folder={tmp_path}/tables",
                       f"+experiment.cells.long={cell}",
                       '+experiment.cells.popular=["model=popularity"]'],
    }[kind]  # fmt: skip
    process = start(words, tmp_path)
    kill_the_cell(process, tmp_path)
    out, _ = process.communicate(timeout=150)
    assert process.returncode == 0, out
    assert out.count("killed by SIGKILL") == 1
    assert out.count("resuming from") == 1
    assert len(stamps(tmp_path)) == 2


@pytest.mark.usefixtures("cells_here")
def test_a_failing_cell_of_an_experiment_stops_no_other(
    cli: Cli, shop: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = [*shop, "task=experiment", f"experiment.folder={tmp_path}/tables",
             "experiment.reference=bad", '+experiment.cells.bad=["mask.split_layer=9"]',
             '+experiment.cells.good=["model=popularity"]']  # fmt: skip
    assert cli(*words) == 1
    error = capfd.readouterr().err
    assert "failed: bad on custom, seed 42: exit code 2" in error
    assert "1 of 2 cells failed" in error
    assert len(stamps(tmp_path)) == 1
    assert "good" in (tmp_path / "tables/results.md").read_text()


LAUNCHERS = {
    "joblib": ("hydra_plugins.hydra_joblib_launcher", ["hydra.launcher.n_jobs=2"]),
    "ray": ("hydra_plugins.hydra_ray_launcher", ["+hydra.launcher.ray.init.num_cpus=2"]),
    "submitit_local": ("hydra_plugins.hydra_submitit_launcher", []),
}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_every_launcher_gives_the_whole_table(
    launcher: str, shop: list[str], tmp_path: Path
) -> None:
    package, words = LAUNCHERS[launcher]
    pytest.importorskip(package, reason=f"needs hydra/launcher={launcher}; see docs/running.md")
    words = ["-m", *shop, "model=popularity", "decode.top_k=10", "seed=1,2", "mask.split_layer=1",
             "run_name=popular${seed}", f"hydra/launcher={launcher}", *words]  # fmt: skip
    out, _ = (process := start(words, tmp_path)).communicate(timeout=250)
    assert process.returncode == 0, out
    assert len(before := stamps(tmp_path)) == 2
    folder = sweep_folder(tmp_path)
    assert pl.read_csv(folder / "cells.csv")["seed"].to_list() == [1, 2]
    assert not list((folder / ".cells").iterdir())
    out, _ = (process := start(words, tmp_path)).communicate(timeout=250)
    assert process.returncode == 0, out
    assert stamps(tmp_path) == before


@pytest.mark.slow
def test_cells_of_joblib_fail_and_resume_alone(shop: list[str], tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    words = ["-m", *shop, "mask.split_layer=9,1", "mask.num_cross_layers=1",
             "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]  # fmt: skip
    out, _ = (process := start(words, tmp_path)).communicate(timeout=250)
    assert process.returncode == 1, out
    assert "1 of 2 cells failed" in out and "mask.split_layer=9" in out
    assert len(stamps(tmp_path)) == 1


def test_a_launcher_that_dies_leaves_the_table_of_what_is_finished(tmp_path: Path) -> None:
    done = write_run(tmp_path / "done", 1, 0.5, 1.0)
    sweep = Sweep()
    sweep.folder, sweep.notes, sweep.settings = tmp_path / "sweep", tmp_path / "notes", GRID
    note(Cell("", 1, done, words=["seed=1"], failure=None), sweep.notes)
    note(Cell("", 2, tmp_path / "lost", words=["seed=2"], number=1), sweep.notes)
    with pytest.raises(SystemExit) as stop, run.errors_in_one_line():
        raise RuntimeError("a worker was lost")
    assert stop.value.code == 1
    assert len(pl.read_csv(tmp_path / "sweep/cells.csv")) == 1
    assert not Sweep.is_open()
