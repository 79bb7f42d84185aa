"""task=train with models that know items by id only."""

import json
import re
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from cli import call_cli, smoke_words
from encoders import write_encoder
from safetensors.torch import load_file
from toys import Compose

from experiments.paper.baselines import published_choices
from experiments.paper.main import on_sample
from hatllm.baselines.sasrec import SASRec
from hatllm.many.experiment_cells import plan_cells

pytestmark = pytest.mark.long

Cli = Callable[..., int]
CASES = Path(__file__).parents[1] / "cases"
LEARNED = (
    "sasrec",
    "sasrec_ss",
    "sasrec_rectools",
    "sasrec_dros",
    "esasrec",
    "gru4rec",
    "bert4rec",
)
SHORT = ("model.sequence.max_epochs=2", "model.sequence.batch_size=16")


def files_of(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def runs(cli: Cli, shop: list[str], name: str, *words: str) -> Path:
    assert cli(*shop, f"run_name={name}", *words) == 0
    return Path("outputs") / name


def ranks(folder: Path) -> list[int | None]:
    return pl.read_parquet(folder / "predictions.parquet")["target_rank"].to_list()


@pytest.fixture(scope="module")
def popularity(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of popularity, made once."""
    folder = tmp_path_factory.mktemp("popularity")
    with pytest.MonkeyPatch.context() as patch:
        words = [*smoke_words(folder), "model=popularity", "run_name=popularity"]
        assert call_cli(patch, folder, *words) == 0
    return folder / "outputs" / "popularity"


@pytest.mark.parametrize("model", ["knn", "titles", "titles_graph", "sentences", *LEARNED])
def test_a_run_folder_holds_what_that_of_popularity_holds(
    cli: Cli, shop: list[str], popularity: Path, model: str, tmp_path: Path
) -> None:
    expected = popularity
    words = [f"model={model}", *(SHORT if model in LEARNED else ())]
    if model == "sentences":
        words.append(f"model.titles.encoder={write_encoder(tmp_path / 'encoder')}")
    folder = runs(cli, shop, "baseline", *words)
    more = {"curves.csv", "curves.png", "model.safetensors"} if model in LEARNED else set()
    learned = {
        "knn": {"neighbours.parquet"},
        "titles_graph": {"transitions.parquet"},
        "sentences": {"sentence_vectors.safetensors"},
    }
    more |= learned.get(model, set())
    assert files_of(folder) == files_of(expected) - {"popularity.parquet"} | more
    tables = [pl.read_parquet(f / "predictions.parquet") for f in (expected, folder)]
    assert tables[0].schema == tables[1].schema
    same = ["example_id", "user_id", "target_item", "history_length", "ambiguous"]
    assert tables[0].select(same).equals(tables[1].select(same))
    metrics = [json.loads((f / "metrics.json").read_text()) for f in (expected, folder)]
    assert metrics[0]["popularity"] == metrics[1]["popularity"]
    of_popularity_alone = {name for name in metrics[0]["test"] if "NLL" in name}
    assert "trie_NLL" in of_popularity_alone
    assert metrics[1]["test"].keys() == metrics[0]["test"].keys() - of_popularity_alone
    assert json.loads((folder / "run.json").read_text())["label"] == model
    assert f"**{model}** on" in (folder / "report.md").read_text()


@pytest.mark.parametrize("model", ["knn", "popularity"])
def test_rows_exported_twice_change_no_number(cli: Cli, model: str) -> None:
    found = {}
    for case in ("base", "dup_rows"):
        words = ["data=custom", f"data.interactions_file={CASES / case / 'i.csv'}",
                 f"data.items_file={CASES / case / 't.csv'}", f"model={model}"]  # fmt: skip
        rows = [f"data.{split}_rows=null" for split in ("train", "valid", "test")]
        folder = runs(cli, words, case, *rows)
        found[case] = json.loads((folder / "metrics.json").read_text())
    assert found["dup_rows"] == found["base"]
    if model == "knn":
        assert found["base"]["test"]["HR@10"] == 0.45


def test_popularity_counts_train_interactions_or_train_targets_once(
    cli: Cli, shop: list[str]
) -> None:
    plays = pl.read_csv(shop[1].split("=")[1])
    train = [row for _, own in plays.group_by("who") for row in own.sort("when")["sku"][:-2]]
    targets = [row for _, own in plays.group_by("who") for row in own.sort("when")["sku"][4:-2]]
    for count, expected in (("interactions", Counter(train)), ("targets", Counter(targets))):
        folder = runs(cli, shop, count, "model=popularity", f"model.popularity.count={count}")
        sku_of = dict(pl.read_parquet(folder / "items.parquet")["item_id", "source_id"].rows())
        ranked = pl.read_parquet(folder / "predictions.parquet")["top_items"][0].to_list()
        counts = [expected[sku_of[item]] for item in ranked]
        most = sorted(expected.values(), reverse=True)
        assert counts == [*most, *[0] * len(ranked)][: len(ranked)]
        metrics = json.loads((folder / "metrics.json").read_text())
        assert (metrics["test"] == metrics["popularity"]) == (count == "interactions")


def test_leave_one_out_asks_sasrec_for_every_train_interaction_but_the_first_of_a_user(
    cli: Cli, shop: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def asked(
        self: SASRec, *rows: torch.Tensor, was: Any = SASRec.training_states
    ) -> tuple[torch.Tensor, torch.Tensor]:
        states_MD, target_M = was(self, *rows)
        seen.extend(target_M.tolist())
        return states_MD, target_M

    monkeypatch.setattr(SASRec, "training_states", asked)
    words = ["model=sasrec", "model.sequence.max_epochs=1", "data.max_history_items=4"]
    folder = runs(cli, shop, "one", *words)
    plays = pl.read_csv(shop[1].split("=")[1])
    expected = [row for _, own in plays.group_by("who") for row in own.sort("when")["sku"][1:-2]]
    sku_N = pl.read_parquet(folder / "items.parquet").sort("item_id")["source_id"].to_list()
    assert Counter(sku_N[number] for number in seen) == Counter(expected)


def test_equal_seeds_give_equal_predictions_and_curves(cli: Cli, shop: list[str]) -> None:
    first, second, other = (
        runs(cli, shop, f"run{number}", "model=sasrec", f"seed={seed}", *SHORT)
        for number, seed in enumerate((1, 1, 2))
    )
    tables = [pl.read_parquet(f / "predictions.parquet") for f in (first, second, other)]
    assert tables[0].equals(tables[1]) and not tables[0].equals(tables[2])
    assert (first / "curves.csv").read_text() == (second / "curves.csv").read_text()


def test_a_run_that_is_made_again_starts_its_curves_anew(cli: Cli, shop: list[str]) -> None:
    folder = runs(cli, shop, "again", "model=gru4rec", *SHORT)
    before = (folder / "curves.csv").read_text()
    runs(cli, shop, "again", "model=gru4rec", *SHORT, "task.force=true")
    assert (folder / "curves.csv").read_text() == before


def test_a_killed_run_goes_on_from_its_checkpoint(
    cli: Cli, shop: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = [*shop, "trainer.checkpoint_every_seconds=1e-9"]
    whole = runs(cli, shop, "whole", "model=sasrec", *SHORT)
    steps: list[int] = []

    class Killed(BaseException):
        pass

    def killed(
        self: SASRec, *rows: torch.Tensor, was: Any = SASRec.training_states
    ) -> tuple[torch.Tensor, torch.Tensor]:
        steps.append(1)
        if len(steps) == num_steps // 2 + 1:
            raise Killed
        result: tuple[torch.Tensor, torch.Tensor] = was(self, *rows)
        return result

    num_steps = pl.read_csv(whole / "curves.csv")["step"].to_list()[-1]
    monkeypatch.setattr(SASRec, "training_states", killed)
    with pytest.raises(Killed):
        runs(cli, shop, "broken", "model=sasrec", *SHORT)
    assert (whole.parent / "broken" / "checkpoints" / "last.ckpt").exists()
    again = runs(cli, shop, "broken", "model=sasrec", *SHORT)
    assert len(steps) < num_steps // 2 + 1 + num_steps  # it did not start over
    for name in ("curves.csv", "model.safetensors"):
        assert (again / name).read_bytes() == (whole / name).read_bytes()
    assert files_of(again) == files_of(whole)
    resumed = [json.loads((f / "environment.json").read_text())["resumed"] for f in (whole, again)]
    assert resumed == [False, True]


@pytest.mark.parametrize(("model", "is_shared"), [("sasrec", True), ("gru4rec", False)])
def test_the_saved_vectors_are_those_of_the_catalogue(
    cli: Cli, shop: list[str], model: str, is_shared: bool
) -> None:
    folder = runs(cli, shop, "one", f"model={model}", *SHORT)
    weights = load_file(folder / "model.safetensors")
    num_items = len(pl.read_parquet(folder / "items.parquet"))
    assert weights["items.weight"].shape == (num_items + 1, 64)  # and the padding
    assert ("answers.weight" not in weights) == is_shared
    assert is_shared or weights["answers.weight"].shape == (num_items, 64)


@pytest.mark.parametrize("group", ["knn", "sequence"])
def test_the_sample_of_train_is_used_only_where_it_is_asked_for(
    cli: Cli, shop: list[str], group: str
) -> None:
    model = "knn" if group == "knn" else "sasrec"
    words = [f"model={model}", "data.valid_rows=4", *(SHORT if group == "sequence" else ())]
    found = {}
    for rows in (8, 30):
        for use in ("full", "sampled"):
            folder = runs(
                cli, shop, f"{use}{rows}", *words, f"data.train_rows={rows}",
                f"model.{group}.train_on={use}",
            )  # fmt: skip
            found[use, rows] = pl.read_parquet(folder / "predictions.parquet")["top_items"]
    assert found["full", 8].to_list() == found["full", 30].to_list()
    assert found["sampled", 8].to_list() != found["sampled", 30].to_list()


@pytest.mark.parametrize(
    ("logger", "left"),
    [("wandb", "wandb/offline-run-*/*.wandb"), ("tensorboard", "tensorboard/events*")],
)
def test_curves_go_to_the_logger_too(
    cli: Cli,
    shop: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    logger: str,
    left: str,
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = runs(cli, shop, "logged", "model=sasrec", f"logger={logger}", *SHORT)
    assert list(folder.glob(left))


def test_an_experiment_runs_learned_baselines_once_a_seed(compose_config: Compose) -> None:
    cells = {
        "knn": ["model=knn"],
        "untuned": ["trainer.max_steps=0"],
        "sasrec": ["model=sasrec", "trainer.max_steps=0"],  # a setting of the LLM arms
        "hatllm": ["mask=hatllm"],
    }
    config = compose_config()
    config.experiment = replace(config.experiment, cells=cells, seeds=[1, 2])
    planned = plan_cells(config, lambda words: (compose_config(*words), words))
    assert [(cell.label, cell.seed) for cell in planned] == [
        ("knn", 1), ("untuned", 1), ("sasrec", 1), ("hatllm", 1), ("sasrec", 2), ("hatllm", 2),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["model=sasrec", "model.sequence.loss=bpr"], "model.sequence.loss='bpr' must be one of"),
        (["model=sasrec", "model.sequence.train_on=all"], "model.sequence.train_on='all'"),
        (["model=sasrec", "model.sequence.hidden_size=63", "model.sequence.num_heads=2"],
         "model.sequence.hidden_size=63 must be a multiple of num_heads=2"),
        (["model=sasrec", "model.sequence.learning_rate=0"],
         "model.sequence.learning_rate=0.0 must be above 0"),
        (["model=gru4rec", "model.sequence.num_negatives=null"],
         "model.sequence.num_negatives=null must be a number"),
        (["model=bert4rec", "model.sequence.cloze=null"],
         "model.sequence.cloze=null must be set for model=bert4rec"),
        (["model=gru4rec", "model.sequence.positions_from=newest"],
         "model.sequence.positions_from=newest must be null for model=gru4rec"),
        (["model=bert4rec", "model.sequence.reads_padding=true"],
         "model.sequence.reads_padding=True must be null for model=bert4rec"),
        (["model=sasrec_rectools", "model.sequence.reads_padding=null"],
         "model.sequence.reads_padding=null must be set for model=sasrec_rectools"),
        (["model=sasrec_rectools", "model.sequence.item_dropout=1"],
         "model.sequence.item_dropout=1.0 must be between 0.0 and 0.99"),
        (["model=sasrec_dros", "model.sequence.dros.radius=0"],
         "model.sequence.dros.radius=0.0 must be above 0"),
        (["model=knn", "model.knn.balance=2"], "model.knn.balance=2.0 must be between 0.0 and 1.0"),
        (["model=sasrec_ss", "model.sequence.num_negatives=null"],
         "model.sequence.num_negatives=null must be a number with loss=sampled_softmax"),
        (["model=titles_graph", "model.transitions.weight=-1"],
         "model.transitions.weight=-1.0 must be"),
        (["model=titles", "model.kind=titles_graph"], "model.transitions must be given for"),
        (["model=sentences"], "model.titles.encoder=None must be the folder of a sentence encoder"),
        (["model=sentences", "model.titles.encoder=no/where"],
         "model.titles.encoder='no/where': no such folder"),
        (["model=titles", "model.titles.encoder=a"], "model.titles.encoder='a' must be the folder"),
        (["model=knn", "model.kind=sasrec"], "model.knn must be given for model.kind=knn"),
        (["model=popularity", "model.kind=bert4rec"], "model.sequence must be given for"),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_refused_by_name(
    cli: Cli, shop: list[str], capsys: pytest.CaptureFixture[str], words: list[str], part: str
) -> None:
    assert cli(*shop, *words) == 2
    assert part in capsys.readouterr().err


def test_plan_says_what_an_epoch_takes_but_not_how_many_there_will_be(
    cli: Cli, shop: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*shop, "task=plan", "model=sasrec"]
    assert cli(*words, "model.sequence.max_epochs=50", "model.sequence.patience=4") == 0
    said = capsys.readouterr()
    assert re.search(r"5 to 50 epochs\s+of [\d.]+ s", said.out) and "train:" not in said.err
    assert cli(*words, "model.sequence.max_epochs=3", "model.sequence.patience=4") == 0
    assert re.search(r"to run: 3 epochs", capsys.readouterr().out)


@pytest.mark.parametrize("rows", ["train and valid", "train"])
def test_a_run_is_made_again_and_its_epoch_chosen_on_test(
    rows: str, cli: Cli, shop: list[str], capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    folder = runs(cli, shop, "one", "model=sasrec", *SHORT)
    monkeypatch.setattr(sys, "argv", ["published_choices.py", str(folder), "--rows", rows])
    capsys.readouterr()
    published_choices.main()
    lines = capsys.readouterr().out.splitlines()
    names = [line.split(": ")[1].split(",")[0] for line in lines]
    assert names == ["the run", *[rows] * 4]
    run, again, again_new, chosen, _ = (
        [float(x) for x in re.findall(r"0\.\d{4}", line)] for line in lines
    )
    test = json.loads((folder / "metrics.json").read_text())["test"]
    assert run == [round(test[metric], 4) for metric in published_choices.METRICS]
    assert (run == again) == (rows == "train")
    assert chosen[3] >= again[3] and again_new[3] >= again[3]


def test_a_run_is_trained_on_for_as_long_as_asked(
    cli: Cli, shop: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = runs(cli, shop, "one", "model=sasrec", *SHORT)
    names = list(published_choices.lines_of(folder, "train", 5))
    assert " of 5, chosen on test" in names[-1]
    monkeypatch.setattr(sys, "argv", ["script", str(folder), "--epochs", "0"])
    with pytest.raises(SystemExit):
        published_choices.main()
    assert "--epochs=0 must be at least" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["script", str(folder), "--rows", "none", "--epochs", "5"])
    with pytest.raises(SystemExit):
        published_choices.main()
    assert "--epochs=5 must be left out" in capsys.readouterr().err


def test_the_kept_weights_rank_as_the_run_did(cli: Cli, shop: list[str]) -> None:
    folder = runs(cli, shop, "one", "model=bert4rec", *SHORT)
    whole, new = published_choices.lines_of(folder, "none").values()
    test = json.loads((folder / "metrics.json").read_text())["test"]
    assert whole == pytest.approx({name: test[name] for name in published_choices.METRICS})
    assert new["NDCG@10"] >= whole["NDCG@10"]


def test_metrics_of_ranks_are_the_fractions_of_their_definition() -> None:
    found = published_choices.metrics_of(torch.tensor([1, 3, 7, 11]))
    assert found["HR@5"] == 0.5 and found["HR@10"] == 0.75
    assert found["NDCG@5"] == pytest.approx((1 + 1 / 2) / 4)
    assert found["NDCG@10"] == pytest.approx((1 + 1 / 2 + 1 / 3) / 4)


def test_items_of_the_history_fall_below_all_others_but_the_target_stays() -> None:
    scores = torch.tensor([[3.0, 1.0, 2.0, 0.0], [3.0, 1.0, 2.0, 0.0]])
    history = torch.tensor([[0, 2, 4], [0, 4, 4]])  # 4 is padding
    found = published_choices.without_history(scores, history, torch.tensor([1, 0]))
    assert found.tolist() == [[-1.0, 1.0, -1.0, 0.0], [3.0, 1.0, 2.0, 0.0]]


def test_a_run_cut_to_a_sample_is_the_run_of_that_sample(
    cli: Cli, shop: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = runs(cli, shop, "whole", "model=sasrec", "data.test_rows=null", *SHORT)
    sample = runs(cli, shop, "sample", "model=sasrec", "data.test_rows=6", *SHORT)
    expected = json.loads((sample / "metrics.json").read_text())["test"]
    found = on_sample.metrics_on_sample(whole, 6)
    assert found == pytest.approx({name: expected[name] for name in on_sample.METRICS})
    assert found != on_sample.metrics_on_sample(whole, 5)
    with pytest.raises(ValueError, match="answered 6 of these 7 rows"):
        on_sample.metrics_on_sample(sample, 7)
    words = ["on_sample.py", "--test-rows", "6", str(whole), str(whole)]
    monkeypatch.setattr(sys, "argv", words)
    capsys.readouterr()
    on_sample.main()
    line = capsys.readouterr().out.splitlines()[-1]
    assert f"HR@10 {expected['HR@10']:.4f} (0.0000)" in line


@pytest.mark.parametrize("script, words", [
    (published_choices, []), (on_sample, ["--test-rows", "6"]),
])  # fmt: skip
def test_a_script_names_the_run_that_is_not_there(
    script: Any, words: list[str], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["script", *words, "outputs/none"])
    with pytest.raises(SystemExit):
        script.main()
    assert "runs='outputs/none': no such folder" in capsys.readouterr().err


def test_choices_are_measured_for_models_that_learn(cli: Cli, shop: list[str]) -> None:
    folder = runs(cli, shop, "one", "model=popularity")
    with pytest.raises(ValueError, match="model=popularity must be sasrec or its like"):
        published_choices.config_of(folder)
