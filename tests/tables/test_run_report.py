"""The report of a synthetic finished run."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from frames import popularity_alone, predictions_frame
from matplotlib.image import imread
from run_folders import curves_frame, make_run

from hatllm.figures.curves import draw_curves
from hatllm.metrics.from_predictions import evaluate_predictions
from hatllm.tables.example_users import describe_examples, pick_examples
from hatllm.tables.numbers import format_value
from hatllm.tables.run_report import write_run_report
from hatllm.tables.writers import markdown_table


def test_report_shows_the_metrics_of_the_run_beside_popularity(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    text = write_run_report(folder, "hatllm").read_text()
    test = json.loads((folder / "metrics.json").read_text())["test"]
    row = next(line for line in text.splitlines() if line.startswith("| NDCG@10"))
    assert f"{test['NDCG@10']:.4f} ± {test['NDCG@10_se']:.4f}" in row
    nll = next(line for line in text.splitlines() if line.startswith("| trie_NLL"))
    assert nll.endswith("| – |")  # the popularity of this folder has none
    assert "NLL in nats a title, a uniform guess among 30 titles has 3.401; by title" in text
    assert f"| head | {test['head/count']:.0f} | {test['head/HR@10']:.4f}" in text
    for name in ("some_shared_words", "seen_transition"):
        hits, error = test[f"{name}/HR@10"], test[f"{name}/HR@10_se"]
        assert f"| {name} | {test[f'{name}/count']:.0f} | {hits:.4f} ± {error:.4f} |" in text


def test_report_names_the_run_its_hashes_and_its_command(tmp_path: Path) -> None:
    text = write_run_report(make_run(tmp_path / "run"), "hatllm").read_text()
    assert "**smollm2_135m** with mask **hatllm** on toys: loss msl, decode beam" in text
    assert "| split_hash | 5f2c |" in text
    assert "| versions | torch 2.11, polars 1.30 |" in text
    assert "python run.py data=toys seed=1" in text


def test_report_says_at_which_temperature_and_of_how_much_of_the_history(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    path = folder / "environment.json"
    found = json.loads(path.read_text())
    found["temperature"] = {"legal": 3.0, "vocabulary": 1.0}
    found["in_place"] = {"items": 30, "not_at_all": 2, "tokens": 200, "shown": 150}
    path.write_text(json.dumps(found))
    text = write_run_report(folder, "hatllm").read_text()
    assert "NLL in nats a title, at temperature 3 over the legal tokens and 1 over all, a" in text
    assert "150 of 200 title tokens are supervised (75%), 2 of 30 items not at all." in text
    assert "| temperature |" not in text


def test_report_says_what_leave_one_out_leaks_and_sliding_windows_do_not(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    texts = {}
    for protocol in ("leave_one_out", "sliding_window"):
        (folder / "split_manifest.json").write_text(json.dumps({"protocol": protocol}))
        texts[protocol] = write_run_report(folder, "hatllm").read_text()
    note = "leaks: train holds interactions of some users that are later than valid and test"
    assert note in texts["leave_one_out"] and note not in texts["sliding_window"]


def test_report_calls_the_run_by_its_label_and_the_split_by_its_name(tmp_path: Path) -> None:
    text = write_run_report(make_run(tmp_path / "run"), "two_phase").read_text()
    assert "| two_phase, test | popularity baseline, test |" in text
    assert "top 5 by two_phase:" in text and "its rank: two_phase " in text
    assert "test (test)" not in text and "by test" not in text and "rank: test" not in text


def test_report_of_short_lists_says_what_is_not_measured(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", top_k=6)
    text = write_run_report(folder, "hatllm").read_text()
    assert "Not measured: @10, of lists of 6 (decode.top_k)." in text
    assert "| HR@5 ↑ |" in text and "| target | examples | HR@5 | NDCG@5 |" in text
    assert "@10 ↑" not in text


def test_report_without_a_recorded_command_gives_back_the_config(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a run")
    (folder / "environment.json").write_text("{}")
    text = write_run_report(folder, "hatllm").read_text()
    assert f"--config-path '{folder.resolve()}' --config-name config" in text


def test_report_does_without_curves_and_examples(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    for name in ("curves.csv", "examples.parquet", "environment.json", "run.json"):
        (folder / name).unlink()
    text = write_run_report(folder, "hatllm").read_text()
    assert "curves.png" not in text
    assert "Example users" not in text
    assert not (folder / "curves.png").exists()


def test_unfinished_run_is_refused_by_the_missing_file(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    (folder / "metrics.json").unlink()
    with pytest.raises(ValueError, match=r"has no metrics\.json"):
        write_run_report(folder, "hatllm")


@pytest.mark.usefixtures("drawn")
def test_curves_are_drawn_into_a_readable_png(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    write_run_report(folder, "hatllm")
    height, width, _ = imread(folder / "curves.png").shape
    assert width > 1200
    assert height > 400


def test_curves_have_a_panel_for_each_column_with_points() -> None:
    curves = curves_frame(np.random.default_rng(0))
    figure = draw_curves(curves.drop("val/NDCG@10"))
    assert figure is not None
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == ["training loss", "validation NLL (nats a title)"]
    assert draw_curves(curves.select("step")) is None


def test_examples_are_different_users_hits_first() -> None:
    frame = predictions_frame([None, 3, 2, 50, 1], user_id=[1, 2, 2, 3, 4])
    assert pick_examples([frame], 3) == [1, 4, 0]


def test_an_example_hit_by_any_model_counts_as_hit() -> None:
    first, second = predictions_frame([None, None, None]), predictions_frame([None, None, 4])
    assert pick_examples([first, second], 1) == [2]


def test_examples_show_titles_ranks_and_the_hit() -> None:
    frame = predictions_frame([2], top_items=[[5, 6]], target_item=[6])
    examples = pl.DataFrame({"example_id": [0], "history": [[7, 5]], "target": [6]})
    items = pl.DataFrame({"item_id": [5, 6, 7], "title": ["Five", "Six", "Seven"]})
    text = describe_examples([0], examples, items, {"hatllm": frame}, shown="hatllm")
    lines = [line.strip() for line in text.splitlines()]
    assert lines[2:4] == ["Seven", "Five"]
    assert lines[lines.index("true next item:") + 1] == "Six"
    assert "its rank: hatllm 2" in lines
    assert lines[-2:] == ["1. Five", "* 2. Six"]


def test_a_bar_in_a_cell_does_not_break_the_table() -> None:
    assert markdown_table(["a", "b"], [["x|y", "1"]]).splitlines()[-1] == "| x\\|y | 1 |"


def test_values_are_written_with_the_digits_they_deserve() -> None:
    assert format_value("NDCG@10", 0.12345, 0.001) == "0.1235 ± 0.0010"
    assert format_value("trie_NLL", 5.4321, 0.05) == "5.432 ± 0.050"
    assert format_value("num_examples", 4794.0) == "4,794"
    assert format_value("trie_NLL", None) == "–"


def test_metrics_survive_json() -> None:
    items = pl.DataFrame({"item_id": [0, 1], "title": ["A", "B"]})
    predictions = predictions_frame([1, None], [-1.0, -2.0])
    slices = popularity_alone(predictions, items)
    metrics = evaluate_predictions(predictions, items, slices, (1, 5, 10))
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics
