"""Tables of several runs, against numbers computed another way from their predictions."""

import json
import math
from io import StringIO
from pathlib import Path

import polars as pl
import pytest
from matplotlib.image import imread
from omegaconf import OmegaConf
from rich.console import Console
from run_folders import make_run

from hatllm.tables.alike_runs import cells_of, load_run
from hatllm.tables.comparison import Comparison, compare_runs
from hatllm.tables.example_users import example_users
from hatllm.tables.paired_arms import NO_SEED
from hatllm.tables.writers import comparison_frame, rich_table, write_comparison


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("runs")
    skills = {"causal": 0.3, "hatllm": 0.5, "reversed": 0.29}
    runs = [
        make_run(root / f"{label}-{seed}", label, seed, skill=skill)
        for label, skill in skills.items()
        for seed in (1, 2, 3)
    ]
    popularity = make_run(
        root / "popularity", "popularity", 42, skill=0.05, has_nll=False, kind="popularity"
    )
    return [*runs, popularity]


@pytest.fixture(scope="module")
def comparison(folders: list[Path]) -> Comparison:
    return compare_runs(folders, "causal")


def _ndcg(folder: Path) -> list[float]:
    ranks = pl.read_parquet(folder / "predictions.parquet")["target_rank"].to_list()
    return [0.0 if rank is None else 1 / math.log2(rank + 1) for rank in ranks]


def test_rows_stand_in_the_order_of_the_folders(comparison: Comparison) -> None:
    assert [row.label for row in comparison.arms] == ["causal", "hatllm", "reversed", "popularity"]
    assert [len(row.seeds) for row in comparison.arms] == [3, 3, 3, 1]
    assert comparison.num_users == 200


def test_a_cell_is_the_mean_over_seeds_with_its_spread(folders: list[Path]) -> None:
    means = [sum(_ndcg(folder)) / 200 for folder in folders[3:6]]
    cell = compare_runs(folders, None).arms[1].numbers["NDCG@10"]
    assert cell.mean == pytest.approx(sum(means) / 3)
    assert cell.std == pytest.approx(pl.Series(means).std())
    by_user = pl.Series([sum(x) / 3 for x in zip(*map(_ndcg, folders[3:6]), strict=True)])
    assert cell.standard_error == pytest.approx(by_user.std() / math.sqrt(200))  # type: ignore[operator]


def test_difference_to_the_reference_is_paired_over_shared_seeds(folders: list[Path]) -> None:
    # Seed 3 of hatllm has no partner: its values must not enter the difference.
    comparison = compare_runs([*folders[:2], *folders[3:6]], "causal")
    difference = comparison.arms[1].tests["NDCG@10"].difference
    sums = [sum(_ndcg(folder)) for folder in folders]
    assert difference.mean == pytest.approx((sums[3] + sums[4] - sums[0] - sums[1]) / 400)
    assert difference.low < difference.mean < difference.high


def test_arms_that_share_no_seed_are_not_compared(folders: list[Path], tmp_path: Path) -> None:
    # Seed 1 of causal, seeds 2 and 3 of hatllm, which is far better.
    found = compare_runs([folders[0], *folders[4:6]], "causal")
    assert not found.arms[1].tests and not found.best
    table = write_comparison(found, tmp_path).read_text()
    row = next(line for line in table.splitlines() if line.startswith("| hatllm"))
    assert [cell.strip() for cell in row.split("|")[10:12]] == ["–", "–"]
    numbers = pl.read_csv(tmp_path / "table.csv")
    assert numbers["NDCG@10_difference"].null_count() == 2
    Console(file=StringIO(), width=80).print(rich_table(found))


@pytest.mark.parametrize("seed", [1, 42])
def test_a_baseline_without_a_seed_is_compared_with_the_mean_of_all(
    folders: list[Path], tmp_path: Path, seed: int
) -> None:
    # An experiment gives it the first seed, though no seed can change it.
    knn = make_run(tmp_path / "knn", "knn", seed, skill=0.5, kind="knn")
    difference = compare_runs([*folders[:3], knn], "causal").arms[1].tests["NDCG@10"].difference
    sums = [sum(_ndcg(folder)) for folder in (*folders[:3], knn)]
    assert difference.mean == pytest.approx(sums[3] / 200 - sum(sums[:3]) / 600)


SETTINGS = {  # of an LLM -> whether a seed can change it
    "model.tuning: lora, trainer.max_steps: -1": True,
    "model.tuning: none, trainer.max_steps: -1": False,
    "model.tuning: lora, trainer.max_steps: 0": False,
    "model.tuning: lora, trainer.max_steps: 0, model.start_from: outputs/msl-s1": True,
    "model.tuning: lora, trainer.max_steps: 0, model.item_vectors: outputs/sasrec-s1": True,
    "model.tuning: lora, trainer.max_steps: 0, decode.assistant_run: outputs/sasrec-s1": True,
}


@pytest.mark.parametrize(("settings", "is_seeded"), SETTINGS.items())
def test_a_run_has_a_seed_where_one_can_change_it(
    tmp_path: Path, settings: str, is_seeded: bool
) -> None:
    folder = make_run(tmp_path / "run", seed=7)
    config = OmegaConf.load(folder / "config.yaml")
    for setting in settings.split(", "):
        name, _, value = setting.partition(": ")
        OmegaConf.update(config, name, int(value) if name == "trainer.max_steps" else value)
    OmegaConf.save(config, folder / "config.yaml")
    assert load_run(folder, (10,), "run").seed == (7 if is_seeded else NO_SEED)


def test_of_runs_that_differ_in_a_seed_that_changes_nothing_the_first_counts(
    folders: list[Path], tmp_path: Path
) -> None:
    knn = [make_run(tmp_path / f"knn-{s}", "knn", s, skill=0.5, kind="knn") for s in (1, 2)]
    for folder, seed in zip(knn, ("1", "2"), strict=True):
        config = folder / "config.yaml"
        config.write_text(config.read_text().replace("seed: 1", f"seed: {seed}\nrun_name: k{seed}"))
    rows = compare_runs([*knn, *folders[:3]], "causal").arms
    assert [row.label for row in rows] == ["knn", "causal"]
    assert rows[0].numbers["NDCG@10"].mean == pytest.approx(sum(_ndcg(knn[0])) / 200)
    # Other settings make another run of it.
    config.write_text(config.read_text().replace("name: toys", "name: toys, train_rows: 9"))
    with pytest.raises(ValueError, match=r"knn-1 and .*knn-2 are both label 'knn', seed -1"):
        compare_runs(knn, None)


def test_an_arm_without_nll_is_compared_by_its_ranks_alone(tmp_path: Path) -> None:
    beam = make_run(tmp_path / "beam", "beam")
    d3 = make_run(tmp_path / "d3", "d3", has_nll=False)
    rows = compare_runs([beam, d3], "beam").arms
    assert "trie_NLL" in rows[0].numbers and "trie_NLL" not in rows[1].numbers
    assert set(rows[1].tests) == {"NDCG@10"}


def test_the_nll_of_weights_that_are_decoded_twice_counts_once(tmp_path: Path) -> None:
    msl = make_run(tmp_path / "msl", "msl")
    folders = [make_run(tmp_path / name, name) for name in ("generate", "further", "other")]
    for folder, steps, start in zip(folders, (0, -1, 0), ("msl", "msl", "elsewhere"), strict=True):
        config = (folder / "config.yaml").read_text()
        model = f"kind: llm, tuning: lora, start_from: /runs/{start}"
        config = config.replace("kind: llm", model) + f"trainer: {{max_steps: {steps}}}\n"
        (folder / "config.yaml").write_text(config)
    rows = compare_runs([msl, *folders], "msl").arms
    assert [row.label for row in rows if "trie_NLL" in row.numbers] == ["msl", "further", "other"]
    assert all("NDCG@10" in row.numbers for row in rows)
    assert [len(row.tests) for row in rows] == [0, 1, 2, 2]
    # Alone it is the only one that tells.
    assert "trie_NLL" in compare_runs(folders[:1], None).arms[0].numbers


def test_lists_of_another_length_are_not_put_under_one_name(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / "ten", "ten"), make_run(tmp_path / "four", "four", top_k=4)]
    comparison = compare_runs(folders, "ten", cut_offs=(1, 3, 10))
    ten, four = comparison.arms
    assert {"HR@3", "HR@10", "NDCG@10"} <= set(ten.numbers)
    assert "HR@3" in four.numbers and not {"HR@10", "NDCG@10"} & set(four.numbers)
    assert set(four.tests) == {"trie_NLL"}
    text = write_comparison(comparison, tmp_path / "table").read_text()
    row = next(line for line in text.splitlines() if line.startswith("| four"))
    assert [cell.strip() for cell in row.split("|")][3] == "–"
    assert "– in HR@K or NDCG@K: lists of fewer than K titles (decode.top_k), in four." in text
    # A column that no run can fill is not there; where nothing is left, it is said.
    alone = compare_runs(folders[1:], None, cut_offs=(3, 10))
    assert alone.metrics == ("HR@3", "NDCG@3", "trie_NLL", "vocab_NLL")
    assert "decode.top_k" not in write_comparison(alone, tmp_path / "alone").read_text()
    with pytest.raises(ValueError, match=r"metrics\.cut_offs must hold a number of at most 4"):
        compare_runs(folders[1:], None, cut_offs=(5, 10))


def test_other_cut_offs_are_measured_of_the_same_answers(folders: list[Path]) -> None:
    cell = compare_runs(folders[:1], None, cut_offs=(7,)).arms[0].numbers["HR@7"]
    ranks = pl.read_parquet(folders[0] / "predictions.parquet")["target_rank"].to_list()
    assert cell.mean == sum(rank is not None and rank <= 7 for rank in ranks) / 200


def test_one_seed_has_its_error_over_users_and_nothing_over_seeds(
    folders: list[Path], tmp_path: Path
) -> None:
    comparison = compare_runs([*folders[:3], folders[9]], None)
    text = write_comparison(comparison, tmp_path).read_text()
    causal, popularity = text.splitlines()[2:4]
    cell = comparison.arms[1].numbers["HR@10"]
    assert f"| {cell.mean:.4f} ± {cell.standard_error:.4f} |" in popularity
    assert "(" not in popularity and causal.count("(") == 6
    assert text.count("± is the standard error over users") == 1


def test_an_arm_without_a_hit_has_no_error_but_a_bound(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / str(seed), "none", seed, skill=-1.0) for seed in (1, 2)]
    text = write_comparison(compare_runs(folders, None), tmp_path / "table").read_text()
    assert (
        "| 0.0000 | 0.0000 | 0.0000 | 0.0000 |" in text
        and "0.0000 ±" not in text
        and "(0.0000)" not in text
    )
    assert "nobody was hit; at 95 % the rate is below 0.0150 (200 users)." in text


def test_bold_needs_an_interval_without_zero(folders: list[Path], comparison: Comparison) -> None:
    assert comparison.best["NDCG@10"] == "hatllm"
    close = compare_runs([*folders[:3], *folders[6:9]], "causal")  # skills 0.30 and 0.29
    assert "NDCG@10" not in close.best


def test_bold_needs_the_better_side_on_shared_seeds(tmp_path: Path) -> None:
    # "a" has the better mean of all seeds, "bb" is better on the seed that both have.
    folders = [tmp_path / name for name in ("a1", "a2", "bb1")]
    for folder, label, seed, skill in zip(
        folders, ("a", "a", "bb"), (1, 2, 1), (0.4, 0.9, 0.55), strict=True
    ):
        make_run(folder, label, seed=seed, skill=skill)
    found = compare_runs(folders, "a")
    mean = {row.label: row.numbers["NDCG@10"].mean for row in found.arms}
    assert mean["a"] > mean["bb"]
    assert found.arms[1].tests["NDCG@10"].difference.low > 0
    assert found.best == {}


def test_lower_nll_is_better(folders: list[Path]) -> None:
    comparison = compare_runs(folders[:6], "causal")
    assert comparison.best["trie_NLL"] == "hatllm"
    assert comparison.arms[1].tests["trie_NLL"].difference.mean < 0


def test_a_label_without_log_probabilities_shows_a_dash(
    comparison: Comparison, tmp_path: Path
) -> None:
    table = write_comparison(comparison, tmp_path / "new").read_text()
    row = next(line for line in table.splitlines() if line.startswith("| popularity"))
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    assert cells[5:7] == ["–", "–"]  # trie_NLL, vocab_NLL
    assert cells[7] == "causal" and cells[8].startswith("-") and cells[9].startswith("-0.")
    assert cells[10:] == ["–", "1"]


@pytest.mark.usefixtures("drawn")
def test_comparison_is_written_as_text_numbers_and_figure(
    comparison: Comparison, tmp_path: Path
) -> None:
    path = write_comparison(comparison, tmp_path)
    text = path.read_text()
    assert "**" in next(line for line in text.splitlines() if "| hatllm" in line)
    assert "NLL in nats a title; a uniform guess among 30 titles has 3.401. Split" in text
    numbers = pl.read_csv(tmp_path / "table.csv")
    assert numbers["NDCG@10"].to_list() == pytest.approx(
        [row.numbers["NDCG@10"].mean for row in comparison.arms]
    )
    assert numbers["trie_NLL"].null_count() == 1
    height, width, _ = imread(tmp_path / "comparison.png").shape
    assert (width > 1000, height > 300) == (True, True)


def test_without_a_reference_there_are_no_differences(folders: list[Path], tmp_path: Path) -> None:
    comparison = compare_runs(folders, None)
    assert not any(row.tests for row in comparison.arms)
    assert "Δ" not in write_comparison(comparison, tmp_path).read_text()
    assert comparison_frame([comparison])["NDCG@10_difference"].null_count() == 4


def test_terminal_table_fits_eighty_columns(comparison: Comparison) -> None:
    out = StringIO()
    Console(file=out, width=80).print(rich_table(comparison))
    assert "…" not in out.getvalue()
    assert all(f"{skill}" in out.getvalue() for skill in ("hatllm", "reversed", "popularity"))


def test_labels_are_not_read_as_markup(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", label="split[7]$x$", num_examples=20)
    comparison = compare_runs([folder], None)
    out = StringIO()
    Console(file=out, width=100).print(rich_table(comparison))
    assert "split[7]$x$" in out.getvalue()
    write_comparison(comparison, tmp_path / "table")


def test_runs_of_another_split_are_refused(folders: list[Path], tmp_path: Path) -> None:
    other = make_run(tmp_path / "other", split_hash="beef")
    with pytest.raises(ValueError, match=r"split_hash beef.*different splits"):
        compare_runs([folders[0], other], None)


def test_runs_of_other_examples_are_refused(folders: list[Path], tmp_path: Path) -> None:
    other = make_run(tmp_path / "other", num_examples=150)
    with pytest.raises(ValueError, match=r"different examples \(150 and 200\)"):
        compare_runs([folders[0], other], None)


def test_two_runs_of_one_cell_are_refused(folders: list[Path], tmp_path: Path) -> None:
    twin = make_run(tmp_path / "twin", "causal", 1)
    with pytest.raises(ValueError, match="both label 'causal', seed 1"):
        compare_runs([folders[0], twin], None)


def test_an_unknown_reference_is_refused_with_the_labels(folders: list[Path]) -> None:
    with pytest.raises(ValueError, match=r"reference='caussal'.*causal, hatllm"):
        compare_runs(folders, "caussal")


def test_an_unfinished_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no run\.json: the run is not finished"):
        compare_runs([tmp_path], None)
    folder = make_run(tmp_path / "run")
    (folder / "config.yaml").unlink()
    with pytest.raises(ValueError, match=r"has no config\.yaml: the run is not finished"):
        compare_runs([folder], None)
    with pytest.raises(ValueError, match="at least one finished run"):
        compare_runs([], None)


def test_example_users_list_the_answers_of_the_last_label(folders: list[Path]) -> None:
    text = example_users(cells_of(folders), ["causal", "hatllm"], n=2)
    assert text.count("top 5 by hatllm") == 2
    first = int(text.split("example ")[1].split()[0])
    ranks = {}
    for folder in (folders[0], folders[3]):
        row = pl.read_parquet(folder / "predictions.parquet").row(first, named=True)
        ranks[json.loads((folder / "run.json").read_text())["label"]] = row["target_rank"] or "–"
    assert f"its rank: causal {ranks['causal']}, hatllm {ranks['hatllm']}" in text
    with pytest.raises(ValueError, match="must be among"):
        example_users(cells_of(folders), ["nobody"])
