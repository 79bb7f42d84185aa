"""task=recommend data.histories=FILE: the same answers however they are made, none lost."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from cli import command, environment
from filelock import FileLock

from hatllm.processes import BUSY
from hatllm.recommend.histories import as_parquet, chunks_of, read_chunk
from hatllm.recommend.item_finder import ItemFinder
from hatllm.runs.lock import run_lock

pytestmark = pytest.mark.long

Cli = Callable[..., int]
CASES = Path(__file__).resolve().parents[1] / "cases"
TITLES = [f"{a} {b}" for a in ("Red", "Blue", "Old", "New", "Tiny") for b in ("Boat", "Book")]


def good_histories(count: int) -> pl.DataFrame:
    rows = [
        (1000 + user, [TITLES[(user + 3 * step) % 10] for step in range(1 + user % 4)])
        for user in range(count)
    ]
    return pl.DataFrame(rows, schema=["user_id", "history"], orient="row")


def write_histories(path: Path, count: int, row_group_size: int = 7) -> Path:
    good_histories(count).write_parquet(path, row_group_size=row_group_size)
    return path


def answers_of(folder: Path) -> pl.DataFrame:
    return pl.concat([pl.read_parquet(path) for path in sorted((folder / "shards").iterdir())])


def only_folder(finished: Path) -> Path:
    (folder,) = (path for path in (finished / "recommendations").iterdir() if path.name[0] != ".")
    return folder


def words_for(finished: Path, path: Path) -> list[str]:
    return ["task=recommend", f"task.run_folder={finished}", f"data.histories={path}",
            "task.chunk_rows=5", "num_threads=1"]  # fmt: skip


def assert_same_answers(one: pl.DataFrame, other: pl.DataFrame) -> None:
    names = ["user_id", "rank", "item", "title"]
    assert one.select(names).equals(other.select(names))
    # Other users in a batch change the last digits of float32 sums.
    assert one["log_prob"].to_list() == pytest.approx(other["log_prob"].to_list(), abs=1e-4)


def test_every_history_is_answered_and_every_bad_row_is_named(
    cli: Cli, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [
        {"user_id": "ann", "history": ["Red Boat", "s5"]},
        {"user_id": "bob", "history": []},
        {"user_id": "cid", "history": ["Red Boat", "Red Submarine"]},
        {"user_id": "dan", "history": None},
        {"user_id": "eve", "history": "Red Boat"},
        {"history": ["Red Boat"]},
        {"user_id": 7, "history": ["old lamp"]},
        {"user_id": "fay", "history": ["Red Submarine", None]},
        {"user_id": "gus", "history": [None, "Red Boat", 5, "Red Submarine"]},
    ]
    path = tmp_path / "some.jsonl"
    text = [json.dumps(line) for line in lines]
    path.write_text("\n".join([*text[:3], "{cut off", *text[3:]]) + "\n")
    assert cli(*words_for(finished, path)) == 0
    folder = only_folder(finished)
    answers = answers_of(folder)
    names = ["user_id", "rank", "item", "title", "score", "log_prob", "num_skipped"]
    assert answers.columns == names
    skipped = answers.filter(rank=1).select("user_id", "num_skipped").rows()
    assert skipped == [("ann", 0), ("cid", 1), ("7", 0), ("gus", 3)]
    assert answers["rank"].to_list() == [*range(1, 11)] * 4
    assert answers["score"].to_list() == answers["log_prob"].to_list()  # no length penalty
    refused = pl.concat(pl.read_parquet(p) for p in sorted((folder / "refused").iterdir()))
    assert dict(zip(refused["row"].to_list(), refused["reason"].to_list(), strict=True)) == {
        1: "empty history",
        3: "the line is no JSON object",
        4: "no history",
        5: "the history is no JSON list",
        6: "no user_id",
        8: "no known item: null and 1 more",
    }
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["histories"], summary["answered"]) == (10, 4)
    assert (summary["skipped_entries"], summary["answered_with_skipped_entries"]) == (4, 2)
    assert summary["refused"]["no known item"] == 1
    said = capsys.readouterr().out
    assert "4 of 10 histories answered (4 entries of 2 histories name no item" in said
    assert "6 refused" in said and "no known item: 1" in said


def test_the_form_of_the_file_does_not_change_the_answers(
    cli: Cli, finished: Path, tmp_path: Path
) -> None:
    table = good_histories(6)
    table.write_parquet(tmp_path / "a.parquet")
    table.write_ndjson(tmp_path / "b.jsonl")
    cells = [json.dumps(history) for history in table["history"].to_list()]
    table.with_columns(history=pl.Series(cells)).write_csv(tmp_path / "c.csv")
    found = []
    for name in ("a.parquet", "b.jsonl", "c.csv"):
        assert cli(*words_for(finished, tmp_path / name)) == 0
        (folder,) = (finished / "recommendations").glob(f"{name[0]}-*")
        found.append(answers_of(folder).with_columns(pl.col("user_id").cast(pl.Int64)))
    assert found[0].equals(found[1]) and found[0].equals(found[2])


def test_a_typed_history_and_a_file_get_the_same_answer(
    cli: Cli, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pl.DataFrame({"history": [["Red Boat", "Blue Book"]]}).write_parquet(tmp_path / "one.parquet")
    assert cli(*words_for(finished, tmp_path / "one.parquet")) == 0
    answers = answers_of(only_folder(finished))
    assert answers["user_id"].to_list() == [0] * 10  # the row, where there is no user_id
    capsys.readouterr()
    words = ["task=recommend", f"task.run_folder={finished}", "task.history=[Red Boat,Blue Book]"]
    assert cli(*words) == 0
    shown = capsys.readouterr().out.split("rank")[1]  # below the history
    places = [shown.index(title) for title in answers["title"].to_list()]
    assert places == sorted(places)


def test_what_is_answered_is_not_answered_again(cli: Cli, finished: Path, tmp_path: Path) -> None:
    words = words_for(finished, write_histories(tmp_path / "h.parquet", 23))
    assert cli(*words) == 0
    folder = only_folder(finished)
    whole = answers_of(folder)
    shards = sorted((folder / "shards").iterdir())
    assert len(shards) == 7  # groups of 7 rows in chunks of 5: 5 2 5 2 5 2 2
    shards[3].unlink()
    stamps = {path: path.stat().st_mtime_ns for path in shards if path.exists()}
    assert cli(*words, "decode.users_per_batch=2") == 0
    assert_same_answers(answers_of(folder), whole)
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps


def test_other_settings_or_histories_are_answered_elsewhere(
    cli: Cli, finished: Path, tmp_path: Path
) -> None:
    path = write_histories(tmp_path / "h.parquet", 3)
    assert cli(*words_for(finished, path)) == 0
    assert cli(*words_for(finished, path), "decode.normalize=vocab") == 0
    write_histories(path, 4)
    assert cli(*words_for(finished, path)) == 0
    assert len(list((finished / "recommendations").glob("h-*"))) == 3


@pytest.mark.slow
def test_a_killed_process_loses_no_more_than_its_chunk(finished: Path, tmp_path: Path) -> None:
    words = words_for(finished, write_histories(tmp_path / "h.parquet", 400))
    process = subprocess.Popen(
        command(words), env=environment(tmp_path), cwd=tmp_path, stderr=subprocess.DEVNULL
    )
    waited = time.monotonic()
    while len(list(finished.glob("recommendations/h-*/shards/*.parquet"))) < 3:
        assert process.poll() is None and time.monotonic() - waited < 100
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait(timeout=10)
    folder = only_folder(finished)
    assert not (folder / "summary.json").exists()
    kept = {path: path.stat().st_mtime_ns for path in (folder / "shards").glob("*.parquet")}
    again = subprocess.run(command(words), env=environment(tmp_path), cwd=tmp_path, timeout=100)
    assert again.returncode == 0
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    answers = answers_of(folder)
    assert answers["user_id"].unique(maintain_order=True).to_list() == [*range(1000, 1400)]
    assert answers.height == 4000
    assert not list(folder.glob("**/*.part"))


@pytest.mark.slow
def test_two_processes_share_the_chunks(finished: Path, tmp_path: Path, cli: Cli) -> None:
    path = write_histories(tmp_path / "h.parquet", 23)
    processes = [
        subprocess.Popen(
            command(words_for(finished, path)),
            env=environment(tmp_path) | {"RANK": str(rank), "WORLD_SIZE": "2"}, cwd=tmp_path,
        )
        for rank in range(2)
    ]  # fmt: skip
    assert [process.wait(timeout=100) for process in processes] == [0, 0]
    folder = only_folder(finished)
    shared = answers_of(folder)
    assert json.loads((folder / "summary.json").read_text())["answered"] == 23
    folder.rename(tmp_path / "shared")
    assert cli(*words_for(finished, path)) == 0
    assert_same_answers(shared, answers_of(only_folder(finished)))


def test_two_shares_are_together_what_one_process_answers(
    cli: Cli, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_histories(tmp_path / "h.parquet", 23)
    with monkeypatch.context() as share:
        share.setenv("WORLD_SIZE", "2")
        for rank in ("1", "0"):
            share.setenv("RANK", rank)
            assert cli(*words_for(finished, path)) == 0
    folder = only_folder(finished)
    shared = answers_of(folder)
    assert json.loads((folder / "summary.json").read_text())["answered"] == 23
    folder.rename(tmp_path / "shared")
    assert cli(*words_for(finished, path)) == 0
    assert_same_answers(shared, answers_of(only_folder(finished)))


def test_a_share_that_another_process_answers_is_refused(
    cli: Cli, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = words_for(finished, write_histories(tmp_path / "h.parquet", 3))
    assert cli(*words) == 0
    folder = only_folder(finished)
    for path in (folder / "shards").iterdir():
        path.unlink()
    lock: FileLock = run_lock(folder / "process-0")
    with lock:
        assert cli(*words) == BUSY
    assert "is being written by another process" in capsys.readouterr().err


def test_a_chunk_decodes_its_own_row_group_only(tmp_path: Path) -> None:
    path = write_histories(tmp_path / "h.parquet", 23)
    chunks = chunks_of(path, 5)
    assert [chunk.row_group for chunk in chunks] == [0, 0, 1, 1, 2, 2, 3]
    assert sum(chunk.num_rows for chunk in chunks) == 23
    catalogue = pl.DataFrame(
        {"item_id": range(10), "title": TITLES, "source_id": [f"s{i}" for i in range(10)]}
    )
    find = ItemFinder(catalogue, clean_titles=True, max_title_characters=None)
    found = [read_chunk(path, chunk, find, 10) for chunk in chunks]
    assert pl.concat([one.users for one in found]).to_list() == [*range(1000, 1023)]
    histories = [history for one in found for history in one.histories]
    expected = [[TITLES.index(t) for t in row] for row in good_histories(23)["history"].to_list()]
    assert histories == expected


@pytest.fixture
def film_finder() -> ItemFinder:
    """Of the catalogue of tests/cases/numeric_titles as it is prepared, ids for item ids."""
    table = pl.read_csv(CASES / "numeric_titles/t.csv")
    by_hand = {117: "Tom & Jerry (1992)", 119: "Line one Line two"}
    titles = [by_hand.get(item, title) for item, title in table.rows()]
    source = table["item_id"].cast(pl.Utf8)
    catalogue = table.with_columns(title=pl.Series(titles), source_id=source)
    return ItemFinder(catalogue, clean_titles=True, max_title_characters=None)


def read_all(path: Path, find: ItemFinder) -> tuple[dict[str, list[int]], dict[str, int]]:
    """Items and skipped entries of the histories of a file that is one chunk."""
    (chunk,) = chunks_of(path, 100)
    read = read_chunk(path, chunk, find, max_history_items=10)
    users = read.users.to_list()
    skipped = dict(zip(users, read.num_skipped, strict=True))
    return dict(zip(users, read.histories, strict=True)), skipped


def test_numbers_are_ids_and_titles_are_found_as_the_users_file_has_them(
    tmp_path: Path, film_finder: ItemFinder
) -> None:
    path = as_parquet(CASES / "histories/raw_titles.jsonl", tmp_path)
    found, skipped = read_all(path, film_finder)
    assert found == {
        "ints": [101, 104, 103],
        "strings": [101, 115, 103],  # "104" is the title of item 115
        "titles": [101, 104, 103],
        "with115": [101, 115, 103],
        "raw_amp": [117],
        "shown_amp": [117],
        "nl": [119],
        "It": [120],
        "IT": [121],
        "it": [120],
        "null": [101],
        "unknown": [101],
    }
    assert {user for user, number in skipped.items() if number} == {"null", "unknown"}


def test_numbers_in_parquet_are_ids(tmp_path: Path, film_finder: ItemFinder) -> None:
    for number, histories in enumerate(
        ([[101, 104], [104, None]], [[101.0, 104.0], [104.0, None]])
    ):
        path = tmp_path / f"{number}.parquet"
        pl.DataFrame({"user_id": ["a", "b"], "history": histories}).write_parquet(path)
        assert read_all(path, film_finder) == ({"a": [101, 104], "b": [104]}, {"a": 0, "b": 1})


def test_an_unknown_title_older_than_what_is_read_changes_nothing(
    tmp_path: Path, film_finder: ItemFinder
) -> None:
    path = as_parquet(CASES / "histories/oldunknown.jsonl", tmp_path)
    found, skipped = read_all(path, film_finder)
    assert found == {"u1": [*range(103, 113)], "u2": [*range(103, 113)]}
    assert skipped == {"u1": 0, "u2": 0}


def test_recommend_says_what_is_wrong_with_a_file(
    cli: Cli, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong, cut = tmp_path / "wrong.csv", tmp_path / "cut.parquet"
    wrong.write_text("items\n1\n")
    cut.write_bytes(b"PAR1 and no more")
    numbers = tmp_path / "numbers.parquet"
    pl.DataFrame({"history": [1, 2]}).write_parquet(numbers)
    for path, part in (
        (wrong, "needs a column 'history'"),
        (tmp_path / "no.csv", "no such file"),
        (finished / "report.md", ".parquet, .jsonl or .csv"),
        (cut, "cannot be read"),
        (numbers, "must hold lists"),
    ):
        assert cli(*words_for(finished, path)) == 2
        assert part in capsys.readouterr().err
    assert cli("task=recommend", f"task.run_folder={finished}", "task.engine=spark") == 2
    assert "task.engine='spark' must be one of local, ray" in capsys.readouterr().err


@pytest.mark.slow
def test_ray_gives_the_shards_of_one_process(
    cli: Cli, finished: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ray = pytest.importorskip("ray", reason="needs pip install -e '.[ray]'")
    pytest.importorskip("ray.data", reason="needs pip install -e '.[ray]'")
    path = write_histories(tmp_path / "h.parquet", 23)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        assert cli(*words_for(finished, path), "task.engine=ray") == 0
        folder = only_folder(finished)
        on_ray = answers_of(folder)
        assert "100%" in capfd.readouterr().err
        first = sorted((folder / "shards").iterdir())[0]
        kept = first.stat().st_mtime_ns
        sorted((folder / "shards").iterdir())[-1].unlink()
        assert cli(*words_for(finished, path), "task.engine=ray") == 0
        assert first.stat().st_mtime_ns == kept
        assert answers_of(folder).equals(on_ray)
        first.unlink()
        words = [word for word in words_for(finished, path) if "num_threads" not in word]
        assert cli(*words, "task.engine=ray", "num_threads=64") == 2
        assert "no room for an actor with 64 CPU" in capfd.readouterr().err
    finally:
        ray.shutdown()
    assert not first.exists()
    folder.rename(tmp_path / "on_ray")
    assert cli(*words_for(finished, path)) == 0
    assert_same_answers(on_ray, answers_of(only_folder(finished)))
