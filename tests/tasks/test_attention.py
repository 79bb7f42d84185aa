"""task=attention: shares of a model under each mask, and the command end to end."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
import torch
from cli import call_cli, smoke_words
from toys import schedule_of, toy_batch, toy_book, toy_lm
from wandb_file import read_offline_run

from hatllm.figures.attention_shares import with_shares
from hatllm.model.attention_weights import reading_weights
from hatllm.tasks.attention import measure

pytestmark = pytest.mark.long

Cli = Callable[..., int]


def shares_of(letters: str, scope: str = "items", sees_self: bool = False) -> pl.DataFrame:
    lm = toy_lm(schedule_of(letters, scope, sees_self), "eager")
    masses = measure(lm, [toy_batch(toy_book(), True, False)])
    names = {"label": letters, "state": "before", "seed": 0}
    return with_shares(masses.with_columns(**{name: pl.lit(v) for name, v in names.items()}))


def share(shares: pl.DataFrame, layer: int, kind: str) -> float:
    row = shares.filter((pl.col("layer") == layer) & (pl.col("kind") == kind))
    return float(row["share"].item())


def test_masks_give_nothing_where_they_block() -> None:
    shares = shares_of("IFC")
    assert share(shares, 0, "cross") == 0
    assert share(shares, 2, "intra") == share(shares, 2, "self") == 0
    for layer, kinds in enumerate((("self", "intra"), ("self", "intra", "cross"), ("cross",))):
        assert all(share(shares, layer, kind) > 0 for kind in (*kinds, "template"))


def test_a_cross_layer_may_see_itself_only_where_it_is_told_to() -> None:
    assert share(shares_of("CC", sees_self=True), 0, "self") > 0
    assert share(shares_of("CC", sees_self=True), 0, "intra") == 0


@pytest.mark.parametrize("scope", ["items", "segments"])
def test_the_shares_of_a_layer_sum_to_one(scope: str) -> None:
    sums = shares_of("IFC", scope).group_by("layer").agg(pl.col("share").sum())
    assert sums["share"].to_list() == pytest.approx([1.0] * 3, abs=1e-6)


def test_shares_do_not_depend_on_the_batch() -> None:
    lm, book = toy_lm(schedule_of("IFFC"), "eager"), toy_book()
    together = measure(lm, [toy_batch(book, True, False)])
    alone = [
        toy_batch(book, True, False, [h], [3]) for h in ([3, 25, 3], [44], [10, 11, 52, 31, 70])
    ]
    one_by_one = measure(lm, alone)
    assert together["pairs"].to_list() == one_by_one["pairs"].to_list()
    assert together["mass"].to_list() == pytest.approx(one_by_one["mass"].to_list(), abs=1e-4)


def test_a_backend_without_weights_is_refused_and_leaves_no_hook() -> None:
    lm, batch = toy_lm(schedule_of("IF")), toy_batch(toy_book(), True, False)
    with (
        pytest.raises(ValueError, match=r"model\.backend=eager"),
        reading_weights(lm, lambda *_: None),
    ):
        lm.hidden_of_prompts(batch.input_ids_BL, batch.tokens, batch.valid_BL)
    hidden_BLD = lm.hidden_of_prompts(batch.input_ids_BL, batch.tokens, batch.valid_BL)
    assert torch.isfinite(hidden_BLD[batch.valid_BL]).all()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two finished runs of seconds and a baseline, made once."""
    folder = tmp_path_factory.mktemp("pair")
    with pytest.MonkeyPatch.context() as patch:
        for mask in ("causal", "hatllm"):
            words = [f"mask={mask}", f"run_name={mask}", "trainer.learning_rate=0.05"]
            assert call_cli(patch, folder, *smoke_words(folder), *words) == 0
        words = ["model=popularity", "run_name=popularity"]
        assert call_cli(patch, folder, *smoke_words(folder), *words) == 0
    return folder


def test_a_folder_of_runs_gives_table_and_figure(
    cli: Cli, pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = shutil.copytree(pair / "outputs", tmp_path / "outputs")
    words = ["task=attention", "data.name=custom", "task.num_users=5"]
    assert cli(*words, *smoke_words(pair), "logger=wandb") == 0
    folder = tmp_path / "outputs" / "attention"
    shares = pl.read_csv(folder / "attention.csv")
    assert shares["label"].unique(maintain_order=True).to_list() == ["causal", "hatllm"]
    assert len(shares) == 2 * 2 * 4 * 4  # masks, states, layers, kinds
    before, after = (shares.filter(state=s)["share"].to_list() for s in ("before", "after"))
    assert before != pytest.approx(after, abs=1e-6)
    ratios = pl.read_csv(folder / "attention_ratios.csv")
    assert ratios["state"].to_list() == ["before", "after"] * 2
    assert (folder / "attention.png").read_bytes()[:4] == b"\x89PNG"
    logged = read_offline_run(folder).summary
    (files,) = folder.glob("wandb/offline-run-*/files")
    (picture,) = logged["attention/filenames"]
    assert (files / picture).read_bytes() == (folder / "attention.png").read_bytes()
    table = json.loads((files / logged["attention_ratios/path"]).read_text())
    assert [row[:2] for row in table["data"]] == [list(row[:2]) for row in ratios.rows()]
    assert cli("task=attention", f"task.run_folder={runs / 'popularity'}") == 2
    assert "task=attention needs an LLM run" in capsys.readouterr().err
    assert cli("task=attention", "task.num_users=0") == 2
    assert "task.num_users=0 must be at least 1" in capsys.readouterr().err
    assert cli("task=attention", "data=toys") == 2
    assert "holds no finished run on data=toys" in capsys.readouterr().err


@pytest.mark.usefixtures("cells_here")
def test_an_experiment_may_end_with_its_attention(
    cli: Cli, shop: list[str], tmp_path: Path
) -> None:
    words = [*shop, "task=experiment", f"experiment.folder={tmp_path}/shares",
             '+experiment.cells.untuned=["mask=causal","trainer.max_steps=0"]',
             "task.attention=true"]  # fmt: skip
    assert cli(*words) == 0
    shares = pl.read_csv(tmp_path / "shares" / "attention.csv")
    assert shares["state"].unique().to_list() == ["before"]  # nothing was tuned
    assert (tmp_path / "shares" / "table.csv").exists()


def test_an_experiment_of_several_data_sets_has_no_attention(
    cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["experiment=paper/main", "scale=smoke", "task.attention=true",
             "experiment.published=null", "experiment.seeds=[1]"]  # fmt: skip
    assert cli(*words) == 2  # before its first cell, so that none of its results is lost
    assert "task.attention=true is for one data set, got msl_" in capsys.readouterr().err
    assert not (tmp_path / "outputs").exists()


@pytest.mark.usefixtures("cells_here")
def test_an_experiment_without_a_run_to_measure_has_its_table_and_names_what_failed(
    cli: Cli, shop: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = [*shop, "task=experiment", f"experiment.folder={tmp_path}/tables",
             "task.attention=true", '+experiment.cells.bad=["mask.split_layer=9"]']  # fmt: skip
    assert cli(*words) == 2
    error = capfd.readouterr().err
    assert "none of its 1 runs is finished" in error and "baselines" not in error
    assert cli(*words, '+experiment.cells.good=["model=popularity"]') == 2
    error = capfd.readouterr().err
    assert "1 of 2 cells failed" in error and "task=attention needs an LLM run" in error
    assert "good" in (tmp_path / "tables/results.md").read_text()
