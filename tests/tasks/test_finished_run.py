"""evaluate, recommend, masks, prepare, experiment and table on a small shop."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from shop import FIRST, SECOND

from hatllm.runs.folder import load_config

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
    assert cli(*words, "task.history=[Red Boot,null,Red Boat,7]") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "note: 3 of 4 entries skipped: 'Red Boot' is neither a title nor an item id" in said
    assert "null; 7 is no item id" in said and "history: Red Boat" in said
    assert cli(*words) == 2
    assert "task.history" in capsys.readouterr().err


def test_items_are_printed_under_the_ids_of_the_shop(
    cli: Cli, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["task=recommend", f"task.run_folder={finished}", "task.history=[Red Boat]"]
    assert cli(*words) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    shown = {cells[2].strip(): cells[4].strip() for cells in (row.split("│") for row in rows)}
    titles = [f"{a} {b}" for a in FIRST for b in SECOND]
    assert len(shown) == 10
    assert all(sku == f"s{titles.index(title)}" for title, sku in shown.items())


def test_the_run_folder_alone_answers(
    cli: Cli, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["task=recommend", f"task.run_folder={finished}", "task.history=[Red Boat,s3]"]
    assert cli(*words) == 0
    before = capsys.readouterr().out
    source = Path(load_config(finished).data.interactions_file).parent
    cache = finished.parents[1] / "cache"
    shutil.rmtree(cache, ignore_errors=True)
    source.rename(source.with_name("away"))
    try:
        assert cli(*words, "data_root=/no/such/folder") == 0
        assert capsys.readouterr().out == before
    finally:
        source.with_name("away").rename(source)
    assert not (cache / "prepared").exists()


def test_a_run_folder_maps_its_ids_back_to_the_shops(finished: Path) -> None:
    predictions, users, items = (
        pl.read_parquet(finished / f"{name}.parquet") for name in ("predictions", "users", "items")
    )
    named = predictions.join(users, on="user_id").rename({"source_id": "who"})
    named = named.join(items, left_on="target_item", right_on="item_id")
    # The last of a user's 6 to 8 items is that of the test split.
    expected = {
        f"u{user}": f"s{(user * 5 + (5 + user % 3) * (1 + user % 3)) % 24}" for user in range(60)
    }
    assert named.height == predictions.height > 0
    assert all(expected[who] == sku for who, sku in named.select("who", "source_id").rows())
    shown = re.findall(r"^\d\. user (\w+), example", (finished / "report.md").read_text(), re.M)
    assert len(shown) == 3 and set(shown) <= set(named["who"])


def test_a_catalogue_that_is_not_the_runs_is_refused(
    cli: Cli, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "edited"
    shutil.copytree(finished, folder)
    items = pl.read_parquet(folder / "items.parquet")
    items.head(items.height // 2).write_parquet(folder / "items.parquet")
    assert cli("task=recommend", f"task.run_folder={folder}", "task.history=[Red Boat]") == 2
    assert "items.parquet is not the catalogue" in capsys.readouterr().err


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


@pytest.mark.usefixtures("cells_here")
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
