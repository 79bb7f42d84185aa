"""evaluate, recommend, masks, prepare, experiment and table on a small shop."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

Cli = Callable[..., int]


def test_evaluating_again_gives_the_same_answers_and_numbers(cli: Cli, finished: Path) -> None:
    words = ["task=evaluate", f"task.run_folder={finished}", "decode.users_per_batch=3"]
    assert cli(*words) == 0
    (folder,) = (finished / "evaluations").iterdir()
    first, again = (pl.read_parquet(f / "predictions.parquet") for f in (finished, folder))
    assert first["top_items"].to_list() == again["top_items"].to_list()
    old, new = (json.loads((f / "metrics.json").read_text())["test"] for f in (finished, folder))
    assert new == pytest.approx(old, abs=1e-5)


def test_the_oracle_decoder_gives_the_same_answers(cli: Cli, finished: Path) -> None:
    assert cli("task=evaluate", f"task.run_folder={finished}", "fast=false") == 0
    (folder,) = (finished / "evaluations").iterdir()
    first, again = (pl.read_parquet(f / "predictions.parquet") for f in (finished, folder))
    assert first["top_items"].to_list() == again["top_items"].to_list()
    for name in ("target_trie_log_prob", "target_vocab_log_prob"):
        assert first[name].to_list() == pytest.approx(again[name].to_list(), abs=1e-4)


def test_exact_decoding_certifies_its_answers_and_counts_what_the_beam_missed(
    cli: Cli, finished: Path
) -> None:
    words = ["decode=exact", "task.split=valid", "decode.beam_width=1", "decode.top_k=10"]
    assert cli("task=evaluate", f"task.run_folder={finished}", *words) == 0
    (path,) = (finished / "evaluations").glob("valid-*/predictions.parquet")
    table = pl.read_parquet(path)
    assert table["certified"].all()
    assert (table["gap"] >= 0).all()
    # A beam of one finds at most one of ten titles.
    assert (table["beam_missed"] >= 9).all()


def test_recommend_answers_for_titles_and_ids(
    cli: Cli, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["task=recommend", f"task.run_folder={finished}"]
    assert cli(*words, "task.history=[Red Boat,s3,old lamp]") == 0
    said = capsys.readouterr().out
    assert "Red Boat → Red Lamp → Old Lamp" in " ".join(said.split())
    assert cli(*words, "task.history=[Red Boot]") == 2
    assert "'Red Boat'" in capsys.readouterr().err
    assert cli(*words) == 2
    assert "task.history" in capsys.readouterr().err


def test_a_catalogue_that_is_not_the_datas_is_refused(
    cli: Cli, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "edited"
    shutil.copytree(finished, folder)
    items = pl.read_parquet(folder / "items.parquet")
    items.head(items.height // 2).write_parquet(folder / "items.parquet")
    assert cli("task=recommend", f"task.run_folder={folder}", "task.history=[Red Boat]") == 2
    assert "items.parquet is not the catalogue" in capsys.readouterr().err


def test_the_run_folder_alone_answers(
    cli: Cli, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["task=recommend", f"task.run_folder={finished}", "task.history=[Red Boat,s3]"]
    assert cli(*words) == 0
    before = capsys.readouterr().out
    # The run was made elsewhere: its tables are taken away, its prepared data are not here.
    config = (finished / "config.yaml").read_text()
    places = [line.split(": ")[1] for line in config.splitlines() if "s_file: /" in line]
    assert len(places) == 2
    for place in places:
        Path(place).rename(f"{place}.away")
    try:
        assert cli(*words) == 0
        assert not (tmp_path / "cache" / "prepared").exists()
    finally:
        for place in places:
            Path(f"{place}.away").rename(place)
    assert capsys.readouterr().out == before
    titles = dict(pl.read_parquet(finished / "items.parquet")["title", "source_id"].iter_rows())
    rows = [line.split("│") for line in before.splitlines() if line.startswith("│")]
    assert len(rows) == 10
    assert all(titles[row[2].strip()] == row[-2].strip() for row in rows)  # the shop's own ids
    users = pl.read_parquet(finished / "users.parquet")
    assert users.columns == ["user_id", "source_id"]
    asked = pl.read_parquet(finished / "predictions.parquet")["user_id"]
    assert set(asked) <= set(users["user_id"])
    assert all(name.startswith("u") for name in users["source_id"])


def test_what_names_no_item_is_skipped_and_said(
    cli: Cli, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["task=recommend", f"task.run_folder={finished}"]
    assert cli(*words, "task.history=[Red Boot,Red Boat]") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "skipped: 'Red Boot' is neither a title nor an item id; near: 'Red Boat'" in said
    assert "history: Red Boat" in said
    # Older entries than are read do not count, known or not.
    assert cli(*words, f"task.history=[{','.join(['Nope', *['s1'] * 10])}]") == 0
    assert "skipped" not in capsys.readouterr().out


@pytest.mark.parametrize("mask", ["hatllm", "hatllm_segments"])
def test_masks_of_a_real_user_are_drawn(
    cli: Cli, shop: list[str], tmp_path: Path, mask: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli(*shop, "task=masks", f"mask={mask}", "task.example=2") == 0
    assert "IFFC" in capsys.readouterr().out
    (picture,) = (tmp_path / "outputs/masks").glob("*.png")
    assert picture.read_bytes()[:4] == b"\x89PNG"
    assert cli(*shop, "task=masks", "task.example=999") == 2
    assert "task.example=999 must be below" in capsys.readouterr().err


def test_prepare_reports_rows_and_tokens(cli: Cli, shop: list[str], tmp_path: Path) -> None:
    assert cli(*shop, "task=prepare") == 0
    folder = tmp_path / "outputs/data-custom"
    counts = json.loads((folder / "tokens.json").read_text())
    assert counts["titles"] == 24
    assert counts["prompts"]["test"]["rows"] == 8
    assert (folder / "data_report.png").exists()


def test_an_experiment_runs_its_cells_once_and_makes_its_table(
    cli: Cli, shop: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = [*shop, "task=experiment", "experiment.name=pair", f"experiment.folder={tmp_path}/pair",
             '+experiment.cells.popularity=["model=popularity"]',
             '+experiment.cells.untuned=["mask=causal","trainer.max_steps=0"]',
             "experiment.reference=popularity", "experiment.seeds=[1,2]"]  # fmt: skip
    assert cli(*words) == 0
    table = pl.read_csv(tmp_path / "pair" / "table.csv")
    assert table["label"].to_list() == ["popularity", "untuned"]
    assert (tmp_path / "pair" / "comparison.png").exists()
    assert "history" in (tmp_path / "pair" / "examples.md").read_text().lower()
    capfd.readouterr()
    assert cli(*words) == 0
    assert capfd.readouterr().out.count("finished already") == 2
    assert cli(*shop, "task=table", "experiment.reference=popularity") == 0
    assert (tmp_path / "outputs/table/table.md").exists()
    assert cli("task=table") == 2
    assert "holds runs on custom only" in capfd.readouterr().err


def test_an_experiment_checks_every_cell_before_the_first_one_runs(
    cli: Cli, shop: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*shop, "task=experiment", '+experiment.cells.good=["model=popularity"]',
             '+experiment.cells.bad=["mask.shallow=outer"]']  # fmt: skip
    assert cli(*words) == 2
    assert "mask.shallow='outer'" in capsys.readouterr().err
    assert not (tmp_path / "outputs").exists()
