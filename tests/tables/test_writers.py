"""The table of an experiment against numbers made another way."""

import json
from pathlib import Path

import polars as pl
import pytest
from run_folders import make_run

from hatllm.metrics.uncertainty import PairedDifference, holm
from hatllm.runs.cell import Cell
from hatllm.tables.alike_runs import refuse_other_origins
from hatllm.tables.comparison import Comparison, compare, compare_runs
from hatllm.tables.paired_arms import Tested as Difference
from hatllm.tables.published import read_published
from hatllm.tables.writers import comparison_frame, latex, markdown

SKILLS = {"msl": 0.3, "msl_hatllm": 0.6, "other_arm": 0.31}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Cell]:
    """Two seeds of three arms; the second seed of the last is not there, nor any of `late`."""
    root = tmp_path_factory.mktemp("runs")
    planned = []
    for label in (*SKILLS, "late"):
        for seed in (1, 2):
            run = Cell(label, seed, root / f"{label}-{seed}")
            planned.append(run)
            if label != "late" and (label, seed) != ("other_arm", 2):
                # Runs call themselves by other names: the experiment's labels count.
                make_run(run.folder, f"{label}?", seed, skill=SKILLS[label])
    return planned


@pytest.fixture(scope="module")
def results(runs: list[Cell]) -> Comparison:
    return compare(runs, "msl", {"msl_hatllm": "msl"}, None, "toys")


def test_every_planned_arm_has_a_row_in_order(results: Comparison) -> None:
    assert [arm.label for arm in results.arms] == [*SKILLS, "late"]
    assert [len(arm.seeds) for arm in results.arms] == [2, 2, 1, 0]
    assert [arm.compared_with for arm in results.arms] == [None, "msl", "msl", None]


def test_p_values_are_corrected_over_the_arms_and_the_clear_best_is_named(
    results: Comparison,
) -> None:
    tested = {arm.label: arm.tests["NDCG@10"] for arm in results.arms if arm.tests}
    raw = {label: test.p_value for label, test in tested.items()}
    assert {label: test.corrected for label, test in tested.items()} == holm(raw)
    assert tested["msl_hatllm"].holds and not tested["other_arm"].holds
    assert results.best["NDCG@10"] == "msl_hatllm"


def test_no_arm_is_best_when_the_runner_up_is_as_good(tmp_path: Path) -> None:
    runs = [Cell(label, 1, tmp_path / label) for label in ("a", "bb")]
    for run in runs:
        make_run(run.folder, run.label, skill=0.4)
    found = compare(runs, "a", {}, None, "toys")
    assert "HR@10" not in found.best and "NDCG@10" not in found.best


def test_the_gain_is_relative_to_the_arm_compared_with(results: Comparison) -> None:
    first, second, third, _ = results.arms
    whole, seed_1 = (
        (
            [arm.numbers["NDCG@10"].mean, arm.numbers["NDCG@10"].by_seed[1]]
            for arm in (first, second)
        ),
        third.numbers["NDCG@10"].mean,
    )
    (base, base_1), (mean, _) = whole
    assert results.gain(second) == pytest.approx(mean / base - 1)
    # The third arm has one seed of two: the gain is over that one, as the difference is.
    assert results.gain(third) == pytest.approx(seed_1 / base_1 - 1)
    assert results.gain(first) is None


def test_a_star_needs_an_interval_that_agrees_with_the_test() -> None:
    # 440 users a little lower, 60 much higher: Wilcoxon is sure of lower, the mean is higher.
    rest = {"high": 0.258, "standard_error": 0.03, "p_value": 0.1} | {
        "num_examples": 500, "num_users": 500
    }  # fmt: skip
    unclear, clear = (PairedDifference(0.195, low=low, **rest) for low in (-0.01, 0.137))
    assert not Difference(unclear, 1e-26, 1e-26, 1.0).holds
    assert Difference(clear, 1e-26, 1e-26, 1.0).holds


def test_missing_cells_are_shown_as_missing(results: Comparison) -> None:
    lines = markdown([results]).splitlines()
    guess = "NLL in nats a title; a uniform guess among 30 titles has 3.401."
    assert any(guess in line for line in lines)
    row = {label: next(x for x in lines if x.startswith(f"| {label} ")) for label in
           ("other_arm", "late")}  # fmt: skip
    assert row["late"].split("|")[2].strip() == "missing" and "0 of 2" in row["late"]
    assert "1 of 2" in row["other_arm"]
    for part in markdown([results]).split("\n\n"):  # one table each, its rows of one width
        assert len({line.count("|") for line in part.splitlines() if line.startswith("|")}) <= 1
    frame = comparison_frame([results])
    assert frame.filter(label="late")["NDCG@10"].to_list() == [None]


def test_an_arm_that_shares_no_seed_is_not_tested_and_the_others_are(
    runs: list[Cell], tmp_path: Path
) -> None:
    # The arm with seed 2 alone is better than msl by far; it has one seed of two, the other failed.
    alone = [Cell("seed_2", seed, tmp_path / f"seed_2-{seed}") for seed in (1, 2)]
    make_run(alone[1].folder, "seed_2", 2, skill=0.9)
    kept = [run for run in runs if (run.label, run.seed) != ("msl", 2)]
    found = compare([*kept, *alone], "msl", {}, None, "toys")
    arms = {arm.label: arm for arm in found.arms}
    assert not arms["seed_2"].tests and found.gain(arms["seed_2"]) is None
    # Holm's correction is over the two arms that are tested.
    tested = {label: arm.tests["NDCG@10"] for label, arm in arms.items() if arm.tests}
    assert set(tested) == {"msl_hatllm", "other_arm"}
    raw = {label: test.p_value for label, test in tested.items()}
    assert {label: test.corrected for label, test in tested.items()} == holm(raw)
    assert "NDCG@10" not in found.best
    lines = markdown([found]).splitlines()
    row = next(line for line in lines if line.startswith("| seed_2 "))
    assert [cell.strip() for cell in row.split("|")[8:13]] == ["msl", "–", "–", "–", "1 of 2"]
    lines = latex([found]).splitlines()
    row = next(line for line in lines if line.startswith(r"seed\_2 "))
    assert row.removesuffix(r" \\").split(" & ")[7:] == ["msl", "--", "--", "--", "1 of 2"]
    numbers = comparison_frame([found]).filter(label="seed_2").select("gain", "^.*_(diff|p_).*$")
    assert numbers.row(0) == (None,) * 13


def test_latex_has_as_many_cells_in_every_row_and_no_bare_special_characters(
    results: Comparison,
) -> None:
    published = pl.DataFrame(
        {"data": ["toys"], "method": ["A_B"], "source": ["x"], "HR@5": [0.1], "HR@10": [0.2],
         "NDCG@5": [0.1], "NDCG@10": [None]}
    )  # fmt: skip
    text = latex([results], published)
    rows = [line for line in text.splitlines() if line.endswith(r"\\") and "multi" not in line]
    assert {row.count("&") for row in rows} == {11}
    assert "1 of 2" in text  # of the arm that is not complete
    assert r"other\_arm" in text and r"A\_B" in text and r"\textbf{" in text
    assert "±" not in text and "Δ" not in text
    assert text.count(r"\toprule") == text.count(r"\bottomrule") == 1


@pytest.mark.parametrize(("key", "name"), [("data_hash", "data"), ("code_hash", "code")])
def test_runs_of_other_origin_are_refused_and_unknown_ones_warned_about(
    tmp_path: Path, key: str, name: str
) -> None:
    folders = [make_run(tmp_path / str(number), seed=number) for number in range(3)]

    def write(folder: Path, value: str) -> None:
        path = folder / "environment.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))

    write(folders[0], "aa")
    warnings = refuse_other_origins(folders)
    assert f"{name} hash unknown for 2 of 3 runs, such as 1" in warnings
    write(folders[2], "bb")
    with pytest.raises(ValueError, match=rf"2 has {key} bb, .*0 has aa: runs of different {name}"):
        refuse_other_origins(folders)


def test_published_numbers_need_their_columns(tmp_path: Path) -> None:
    path = tmp_path / "published.csv"
    path.write_text("data,method\n")
    with pytest.raises(ValueError, match="has no column 'source'"):
        read_published(path)


def test_an_experiment_and_a_folder_of_runs_have_one_rule_for_the_best_arm_and_for_the_sign(
    results: Comparison, runs: list[Cell]
) -> None:
    finished = [run for run in runs if run.is_finished]
    folders, names = [run.folder for run in finished], [run.label for run in finished]
    comparison = compare_runs(folders, "msl", names)
    assert {name: comparison.best.get(name) for name in results.metrics} == {
        name: results.best.get(name) for name in results.metrics
    }
    assert results.best["NDCG@10"] == "msl_hatllm"
    ours, theirs = markdown([results]), markdown([comparison])
    for arm in results.arms[:3]:
        rows = [
            next(line for line in text.splitlines() if line.startswith(f"| {arm.label} |"))
            for text in (ours, theirs)
        ]
        assert rows[0].split("|")[2:8] == rows[1].split("|")[2:8]  # HR@5 to vocab_NLL
