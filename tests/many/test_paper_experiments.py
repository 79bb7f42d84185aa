"""Every experiment of the paper, from its cells to its tables and figures, on made-up data."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import polars as pl
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from safetensors.torch import load_file
from toys import CONF, Compose

from hatllm.config import Config
from hatllm.many.experiment_cells import (
    chosen_cells,
    grid_cells,
    plan_cells,
    words_without_effect,
)
from hatllm.many.experiment_tables import _rows_trained, write_results_of
from hatllm.runs.cell import Cell
from hatllm.runs.folder import write_config
from hatllm.runs.name import config_hash, of_any_seed
from hatllm.tasks.train import train

pytestmark = pytest.mark.long

Cli = Callable[..., int]

NAMES = sorted(path.stem for path in (CONF / "experiment" / "paper").glob("*.yaml"))
LABELS = {
    "ablation": 11, "attention": 5, "baselines": 6, "beam": 3, "bert4rec": 5, "efficiency": 5,
    "floors": 12, "main": 25, "sasrec": 6, "sensitivity": 4,
}  # fmt: skip
FILES = {
    "ablation": {"bars.png"},
    "attention": set(),  # its own figure: tests/tasks/test_attention.py
    "baselines": {"bars.png"},
    "beam": set(),  # its own figure: tests/experiments/test_beam.py
    "bert4rec": {"bars.png"},
    "efficiency": {"efficiency.csv", "efficiency.md"},
    "floors": {"bars.png"},
    "main": {"bars.png"},
    "sasrec": {"bars.png"},
    "sensitivity": {
        "grid-msl_books.csv", "grid-msl_books-NDCG10.png", "grid-msl_books-trie_NLL.png",
        "lines-msl_books-NDCG10.png", "lines-msl_books-trie_NLL.png",
    },
}  # fmt: skip
PUBLISHED = CONF.parent / "experiments" / "paper" / "published.csv"


def write_windows(root: Path) -> None:
    """Two data sets of 24 titles in the form of MSL's files, made by arithmetic."""
    for shift, name in enumerate(("msl_toys", "msl_books")):
        (root / name).mkdir(parents=True)
        titles = {str(i): f"{'Red Blue Old New'.split()[i % 4]} {i}" for i in range(24)}
        (root / name / "id2name4Rec.json").write_text(json.dumps(titles))
        for split, users in (("train", range(24)), ("valid", range(24, 32)), ("test", range(32))):
            rows = [
                f'{user},"{[(user * 5 + step * (1 + user % 3) + shift) % 24 for step in range(6)]}"'
                f",{100 * user + len(split)}"
                for user in users
            ]
            (root / name / f"{split}.csv").write_text(
                "\n".join(["user_id,item_ids,timestamp", *rows]) + "\n"
            )


def dataset_of(name: str) -> str:
    return "msl_toys" if name in ("beam", "bert4rec") else "msl_books"


def words_of(name: str, folder: Path) -> list[str]:
    """The command line of a small version of an experiment."""
    dataset = dataset_of(name)
    words = [
        f"experiment=paper/{name}",
        f"experiment.datasets=[{dataset}]",
        f"experiment.folder={folder}/tables-{name}",
        "experiment.seeds=[1]",
        f"data_root={folder}/data",
        f"cache_root={folder}/cache",
        f"output_root={folder}/outputs",
        "model.lora.dropout=0.0",
        "num_threads=1",
    ]
    if name in ("baselines", "floors", "main"):
        sequence_models = {
            "baselines": ("sasrec", "gru4rec", "bert4rec", "sasrec_dros"),
            "floors": ("sasrec", "sasrec_ss"),
        }
        for model in sequence_models.get(name, ("sasrec",)):
            quick = [f"model={model}", "model.sequence.max_epochs=1"]
            if name == "baselines":
                quick += [f"data.{split}_rows=null" for split in ("train", "valid", "test")]
            words.append(f"experiment.cells.{model}={json.dumps(quick)}")
        words.append(f"experiment.published={PUBLISHED}")
    if name in ("bert4rec", "sasrec"):
        quick = [f"model={name}", "model.sequence.max_epochs=1"]
        words.append(f"experiment.data_overrides.{dataset}={json.dumps(quick)}")
        words.append(f"experiment.published={PUBLISHED}")
    if name == "sensitivity":
        words += ["experiment.grid.split_layer=[0,0.5]", "experiment.grid.num_cross_layers=[0,0.3]"]
    return words


def cells_of(compose_config: Compose, words: list[str]) -> list[Cell]:
    def compose(more: list[str]) -> tuple[Config, list[str]]:
        keys = {word.split("=")[0] for word in more}
        every = [*(word for word in words if word.split("=")[0] not in keys), *more]
        return compose_config(*every), every

    return plan_cells(compose_config(*words), compose)


def run_cells(compose_config: Compose, cells: list[Cell]) -> None:
    """What task=experiment does, without a process for each cell."""
    for cell in cells:
        train(compose_config(*cell.words))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, and runs that the experiments share as they do in earnest."""
    folder = tmp_path_factory.mktemp("paper")
    write_windows(folder / "data")
    return folder


# Of those that end in the files of another, with fewer arms, only the cells are planned below.
ALIKE = [name for name in NAMES if name != "sensitivity"]


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in ALIKE else n for n in NAMES]
)
def test_an_experiment_of_the_paper_ends_in_its_tables_and_figures(
    compose_config: Compose, root: Path, name: str
) -> None:
    words = words_of(name, root)
    cells = cells_of(compose_config, words)
    run_cells(compose_config, cells)
    tables = write_results_of(compose_config(*words), cells)
    expected = {"results.md", "results.tex", "results.csv", "slices.md", "slices.csv"}
    expected |= {dataset_of(name), *FILES[name]}
    assert {path.name for path in tables.iterdir()} == expected
    frame = pl.read_csv(tables / "results.csv")
    assert frame["num_seeds"].to_list() == [1] * LABELS[name]
    for path in tables.glob("*.png"):
        assert min(imread(path).shape[:2]) > 200
    has_published = name in ("baselines", "bert4rec", "floors", "main", "sasrec")
    assert ("arXiv:2504.04178" in (tables / "results.md").read_text()) == has_published
    assert (tables / dataset_of(name) / "comparison.png").exists()


@pytest.mark.parametrize("name", ALIKE)
def test_an_experiment_of_the_paper_has_its_cells(
    compose_config: Compose, root: Path, name: str
) -> None:
    cells = cells_of(compose_config, words_of(name, root))
    assert len({cell.label for cell in cells}) == len(cells) == LABELS[name]
    assert len({cell.folder for cell in cells}) == LABELS[name]


def tables_of(
    compose_config: Compose, root: Path, name: str, more: Sequence[str] = ()
) -> tuple[list[Cell], Path]:
    """The chosen cells of an experiment, finished, and the folder of its tables."""
    words = [*words_of(name, root), *more]
    cells = cells_of(compose_config, words)
    chosen = chosen_cells(compose_config(*words), cells)
    run_cells(compose_config, chosen)
    return chosen, write_results_of(compose_config(*words), cells)


# A baseline, the LLM under two losses and masks, another decoder, an assistant, vectors.
FEW = ("popularity", "sasrec", "untuned", "bigrec", "msl_hatllm", "msl_generate_hatllm", "d3",
       "llara_hatllm")  # fmt: skip


@pytest.fixture(scope="module", params=["few", pytest.param("all", marks=pytest.mark.slow)])
def main(
    compose_config: Compose, root: Path, request: pytest.FixtureRequest
) -> tuple[list[Cell], Path]:
    """The largest of them, run and shown once for all that look at it."""
    if request.param == "all":
        return tables_of(compose_config, root, "main")
    more = [f"experiment.only=[{','.join(FEW)}]", f"experiment.folder={root}/tables-few"]
    return tables_of(compose_config, root, "main", more)


def metrics_of(folder: Path) -> dict[str, float]:
    return dict(json.loads((folder / "metrics.json").read_text())["test"])


def test_the_grid_of_the_paper_shows_each_cell_in_its_place(
    compose_config: Compose, root: Path, figures: dict[str, Figure]
) -> None:
    cells, _ = tables_of(compose_config, root, "sensitivity")
    for metric in ("NDCG@10", "trie_NLL"):
        name = f"msl_books-{metric.replace('@', '')}.png"
        axes = figures[f"grid-{name}"].axes[0]
        assert (axes.get_ylabel(), axes.get_xlabel()) == ("split_layer", "num_cross_layers")
        rows = [label.get_text() for label in axes.get_yticklabels()]
        columns = [label.get_text() for label in axes.get_xticklabels()]
        tiles = axes.images[0].get_array()
        handles, groups = figures[f"lines-{name}"].axes[0].get_legend_handles_labels()
        for cell in cells:
            assert cell.config is not None
            mask = cell.config.mask
            row, column = rows.index(str(mask.split_layer)), str(mask.num_cross_layers)
            expected = pytest.approx(metrics_of(cell.folder)[metric], abs=1e-6)
            assert tiles[row, columns.index(column)] == expected
            # Both lines go through the two settings of split_layer.
            assert handles[groups.index(column)][0].get_ydata()[row] == expected
    assert len({metrics_of(cell.folder)["trie_NLL"] for cell in cells}) == 4


def test_the_slices_of_the_paper_are_those_of_the_runs_and_d3_has_no_nll(
    main: tuple[list[Cell], Path],
) -> None:
    cells, tables = main
    frame = pl.read_csv(tables / "slices.csv")
    for cell in cells:
        expected = metrics_of(cell.folder)
        for row in frame.filter(pl.col("label") == cell.label, pl.col("slice") != "all").to_dicts():
            assert row["count"] == expected[f"{row['slice']}/count"]
            for metric in ("HR@10", "NDCG@10", "trie_NLL"):
                value = expected.get(f"{row['slice']}/{metric}")
                if metric == "trie_NLL" and cell.label.startswith("msl_generate"):
                    value = None  # that of msl's weights, which stands there
                assert row[metric] == (value if value is None else pytest.approx(value))
    seen = frame.filter(pl.col("count") > 0, pl.col("trie_NLL").is_not_null())
    with_nll = set(seen["label"])
    assert {"popularity", "msl_hatllm", "bigrec", "llara_hatllm"} < with_nll
    assert not {"sasrec", "d3", "d3_hatllm"} & with_nll


@pytest.mark.parametrize("masks", [pytest.param("", marks=pytest.mark.slow), "_hatllm"])
def test_another_decoder_is_an_arm_without_another_training(
    main: tuple[list[Cell], Path], masks: str
) -> None:
    folders = {cell.label: cell.folder for cell in main[0]}
    trained, decoded = folders[f"msl{masks}"], folders[f"msl_generate{masks}"]
    weights, decoded_weights = (
        load_file(folder / "adapter/adapter_model.safetensors") for folder in (trained, decoded)
    )
    assert weights.keys() == decoded_weights.keys()
    assert all(value.equal(decoded_weights[name]) for name, value in weights.items())
    assert any(value.any() for name, value in weights.items() if "lora_B" in name)  # 0 untuned
    nll = pytest.approx(metrics_of(trained)["trie_NLL"], rel=1e-5)
    assert metrics_of(decoded)["trie_NLL"] == nll
    beam, generate = (
        pl.read_parquet(folder / "predictions.parquet") for folder in (trained, decoded)
    )
    assert beam["example_id"].equals(generate["example_id"])
    assert not beam["top_log_probs"].equals(generate["top_log_probs"])


def test_the_speed_of_the_paper_is_rows_and_users_by_the_runs_clocks(
    compose_config: Compose, root: Path
) -> None:
    more = ["experiment.only=[causal,hatllm,lml]"]
    cells, tables = tables_of(compose_config, root, "efficiency", more)
    frame = pl.read_csv(tables / "efficiency.csv")
    assert frame["label"].to_list() == [cell.label for cell in cells]
    for cell, row in zip(cells, frame.to_dicts(), strict=True):
        seconds = json.loads((cell.folder / "environment.json").read_text())["seconds"]
        assert row["train_s"] == seconds["train"] and row["evaluate_s"] == seconds["evaluate"]
        assert row["rows_per_s"] == pytest.approx(16 / seconds["train"])  # one epoch
        assert row["users_per_s"] == pytest.approx((8 + 8) / seconds["evaluate"])
    assert "was not resumed" in (tables / "efficiency.md").read_text()


@pytest.mark.parametrize(
    ("words", "num_rows"),
    [
        ([], 16),  # two whole batches of 8
        (["trainer.max_epochs=3"], 48),
        (["trainer.max_steps=1"], 8),
        (["trainer.max_steps=0"], 0),
        (["model.tuning=none"], None),
        (["trainer.early_stopping_patience=2"], None),
        (["model=sasrec"], None),
        (["model=popularity"], None),
    ],
)
def test_rows_trained_are_known_where_nothing_stops_early(
    compose_config: Compose, tmp_path: Path, words: list[str], num_rows: int | None
) -> None:
    write_config(tmp_path, compose_config(*words))
    manifest = {"rows": {"train": {"before_sampling": 90, "after_sampling": 20}}}
    (tmp_path / "split_manifest.json").write_text(json.dumps(manifest))
    runs = [Cell("a", 1, tmp_path)]
    assert _rows_trained(runs) == {}  # not finished
    (tmp_path / "run.json").write_text("{}")
    assert _rows_trained(runs) == ({} if num_rows is None else {tmp_path: num_rows})


def test_plain_cells_stand_beside_those_of_a_grid(compose_config: Compose, root: Path) -> None:
    words = [
        *words_of("sensitivity", root),
        '+experiment.cells.sasrec=["model=sasrec"]',
        "+experiment.compared_with.split2-cross0=sasrec",
    ]
    labels = {cell.label for cell in cells_of(compose_config, words)}
    assert labels == {"sasrec", "split0-cross0", "split0-cross1", "split2-cross0", "split2-cross1"}
    choices = "must be one of sasrec, split0-cross0"
    for word, what in (
        ("experiment.reference=split9", "reference='split9'"),
        ("+experiment.compared_with.split9=sasrec", "compared_with='split9'"),
        ("+experiment.compared_with.sasrec=split9", r"compared_with\.sasrec='split9'"),
    ):
        with pytest.raises(ValueError, match=rf"experiment\.{what} {choices}"):
            cells_of(compose_config, [*words, word])


def test_a_grid_of_which_no_cell_is_finished_has_a_table_and_no_figure(
    compose_config: Compose, root: Path, tmp_path: Path
) -> None:
    words = [
        *words_of("sensitivity", root),
        '+experiment.cells.popularity=["model=popularity"]',
        "experiment.reference=popularity",
        f"experiment.folder={tmp_path}/tables",
        f"output_root={tmp_path}/outputs",
    ]
    cells = cells_of(compose_config, words)
    run_cells(compose_config, [cell for cell in cells if cell.label == "popularity"])
    tables = write_results_of(compose_config(*words), cells)
    assert len(pl.read_csv(tables / "grid-msl_books.csv")) == 4
    assert not list(tables.glob("*.png"))
    assert (tables / "results.md").read_text().count("| missing |") == 4


def test_the_arms_of_one_experiment_are_the_runs_of_another(
    compose_config: Compose, root: Path
) -> None:
    main, ablation = (
        {cell.label: cell.folder for cell in cells_of(compose_config, words_of(name, root))}
        for name in ("main", "ablation")
    )
    assert ablation["causal"] == main["msl"] and ablation["hatllm"] == main["msl_hatllm"]


@pytest.mark.slow
def test_chosen_cells_run_in_the_order_given_within_a_seed(
    compose_config: Compose, root: Path
) -> None:
    words = [*words_of("main", root), "experiment.seeds=[1,2]"]
    cells = cells_of(compose_config, words)
    config = compose_config(*words, "experiment.only=[msl_hatllm,msl]")
    chosen = [(cell.seed, cell.label) for cell in chosen_cells(config, cells)]
    each = [(seed, label) for seed in (1, 2) for label in ("msl_hatllm", "msl")]
    assert chosen == each * (len(chosen) // 4) and chosen
    assert chosen_cells(compose_config(*words), cells) == cells
    # Also where only the tables are made, before they are written.
    with pytest.raises(ValueError, match=r"experiment\.only='mls' .* did you mean 'msl'"):
        cells_of(compose_config, [*words, "experiment.only=[mls]"])


def test_the_grid_of_a_laptop_has_sixteen_cells_that_fit(compose_config: Compose) -> None:
    config = compose_config("experiment=paper/sensitivity", "scale=laptop", "model=smollm2_135m")
    cells = grid_cells(config)
    assert len(cells) == 16
    assert cells["split7-cross3"] == [
        "mask=hatllm", "mask.split_layer=7", "mask.num_cross_layers=3",
    ]  # fmt: skip
    config.model.num_layers = None
    with pytest.raises(ValueError, match=r"model\.num_layers is null"):
        grid_cells(config)


PAIR = [
    "task=table",
    "experiment.name=pair",
    "experiment.folder=pair",
    "experiment.reference=popularity",
    '+experiment.cells.popularity=["model=popularity"]',
    '+experiment.cells.knn=["model=knn"]',
    '+experiment.cells.gru4rec=["model=gru4rec","model.sequence.max_epochs=1"]',
]


def finish(cli: Cli, words: list[str], label: str) -> Path:
    """Run one of the baselines above that need no training; returns its folder."""
    before = set(Path("outputs").glob("[!.]*"))
    assert cli(*words, f"model={label}") == 0
    (folder,) = set(Path("outputs").glob("[!.]*")) - before
    return folder


def test_the_table_of_an_experiment_runs_nothing_and_shows_what_is_missing(
    cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_windows(tmp_path / "data")
    words = ["scale=smoke", f"data_root={tmp_path}/data"]
    pair = [*words, *PAIR, "experiment.datasets=[msl_toys,msl_books]"]
    assert cli(*pair) == 2
    assert "experiment=pair: none of its 6 runs is finished" in capsys.readouterr().err
    for data, label in (("toys", "popularity"), ("toys", "knn"), ("books", "knn")):
        finish(cli, [*words, f"data=msl_{data}"], label)
    assert cli(*pair) == 0
    assert "msl_books: popularity: 0 of 1 runs finished" in capsys.readouterr().out
    assert len(list((tmp_path / "outputs").glob("[!.]*"))) == 3
    frame = pl.read_csv(tmp_path / "pair" / "results.csv")
    assert frame["data"].to_list() == ["msl_toys"] * 3 + ["msl_books"] * 3
    assert frame["num_seeds"].to_list() == [1, 1, 0, 0, 1, 0]
    assert frame["compared_with"].to_list() == [None, "popularity", None, None, None, None]
    text = (tmp_path / "pair" / "results.md").read_text()
    assert text.count("| missing |") == 3
    assert {path.name for path in (tmp_path / "pair").iterdir()} == {
        "results.md", "results.tex", "results.csv", "slices.md", "slices.csv", "msl_toys",
        "msl_books",
    }  # fmt: skip


def test_runs_of_other_code_are_refused_and_of_unknown_code_warned_about(
    cli: Cli, shop: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [finish(cli, shop, label) for label in ("popularity", "knn")]
    path = folders[1] / "environment.json"
    environment = json.loads(path.read_text())
    assert len(environment.pop("code_hash")) == 12
    path.write_text(json.dumps(environment))
    assert cli(*shop, *PAIR) == 0
    assert "code hash unknown for 1 of 2 runs" in capsys.readouterr().out
    path.write_text(json.dumps(environment | {"code_hash": "0ddc0de"}))
    assert cli(*shop, *PAIR) == 2
    assert "code_hash 0ddc0de" in (said := capsys.readouterr().err)
    assert "different code do not belong in one table" in said
    assert cli(*shop, *PAIR, "task=experiment") == 2
    assert "was made by code 0ddc0de, what is still to run" in capsys.readouterr().err


def test_published_numbers_that_are_not_there_are_named(
    cli: Cli, shop: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    # Before the first cell runs, too.
    assert cli(*shop, *PAIR, "experiment.published=no.csv", "task=experiment") == 2
    assert "experiment.published='no.csv': no such file" in capsys.readouterr().err
    assert not list(Path("outputs").glob("[!.]*"))
    finish(cli, shop, "knn")
    capsys.readouterr()
    assert cli(*shop, *PAIR, "experiment.published=no.csv") == 2
    assert "experiment.published='no.csv': no such file" in capsys.readouterr().err


def test_an_experiment_takes_no_run_name(
    cli: Cli, shop: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli(*shop, *PAIR, "task=experiment", "run_name=one") == 2
    assert "run_name='one' must be null with an experiment" in capsys.readouterr().err


def test_a_name_given_twice_does_not_pass_one_run_for_another(
    cli: Cli, shop: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*shop, "model=knn", "run_name=mine"]
    assert cli(*words) == 0 and cli(*words) == 0
    assert "finished already" in capsys.readouterr().out
    assert cli(*words, "model.knn.shrinkage=5") == 2
    assert "run_name='mine': " in capsys.readouterr().err
    assert cli(*words, "model.knn.shrinkage=5", "task.force=true") == 0


def test_a_table_names_runs_of_one_label_by_what_differs(
    cli: Cli, shop: list[str], tmp_path: Path
) -> None:
    for shrinkage in (5, 80):
        assert cli(*shop, "model=knn", f"model.knn.shrinkage={shrinkage}") == 0
    assert cli(*shop, "model=popularity") == 0
    assert cli(*shop, "task=table", f"experiment.folder={tmp_path}/table") == 0
    labels = pl.read_csv(tmp_path / "table/table.csv")["label"].to_list()
    assert sorted(labels) == [
        "knn model.knn.shrinkage=5.0", "knn model.knn.shrinkage=80.0", "popularity",
    ]  # fmt: skip


def test_runs_that_no_seed_can_change_count_once_in_a_table(
    cli: Cli, shop: list[str], tmp_path: Path
) -> None:
    for name in ("first", "second"):
        finish(cli, [*shop, f"run_name={name}"], "popularity")
    assert cli(*shop, "task=table", f"experiment.folder={tmp_path}/table") == 0
    table = pl.read_csv(tmp_path / "table/table.csv")
    assert table.select("label", "num_seeds").rows() == [("popularity", 1)]


def test_a_cell_is_planned_for_every_seed_that_can_change_it(
    compose_config: Compose, tmp_path: Path
) -> None:
    cells = {
        "sasrec": ["model=sasrec"],
        "popularity": ["model=popularity"],
        "frozen": ["model.tuning=none"],
        "untuned": ["trainer.max_steps=0"],
        "d3": ["trainer.max_steps=0", "decode=d3", "decode.assistant_run=run:sasrec"],
        "msl": ["mask=causal"],
        "further": ["mask=causal", "model.start_from=run:msl", "trainer.max_steps=0"],
        "llara": ["model.item_vectors=run:sasrec", "trainer.max_steps=0"],
    }
    words = [f"+experiment.cells.{label}={json.dumps(more)}" for label, more in cells.items()]
    named = ["experiment.name=seeds", "experiment.seeds=[1,2]", f"output_root={tmp_path}"]
    planned = [(cell.label, cell.seed) for cell in cells_of(compose_config, [*named, *words])]
    once = {"popularity", "frozen", "untuned"}
    assert planned == [
        (label, seed) for seed in (1, 2) for label in cells if seed == 1 or label not in once
    ]


def test_a_table_puts_the_seeds_of_an_arm_together_that_needs_other_runs(
    cli: Cli, shop: list[str], tmp_path: Path
) -> None:
    for seed in ("seed=1", "seed=2"):
        ids = finish(cli, [*shop, seed, "model.sequence.max_epochs=1"], "sasrec")
        assert cli(*shop, seed, "mask=causal", "decode=d3", f"decode.assistant_run={ids}") == 0
    moved = Path("outputs").rename(tmp_path / "moved")  # the folders of the settings are gone
    folder = f"experiment.folder={tmp_path}/table"
    assert cli(*shop, "task=table", f"task.run_folder={moved}", folder) == 0
    table = pl.read_csv(tmp_path / "table/table.csv")
    assert dict(table.select("label", "num_seeds").iter_rows()) == {"sasrec": 2, "causal": 2}


def test_runs_of_any_seed_need_the_runs_of_any_seed(compose_config: Compose) -> None:
    def chain(seed: int, epochs: int = 1) -> str:
        word = f"seed={seed}"
        ids = compose_config(word, "model=sasrec", f"model.sequence.max_epochs={epochs}")
        first = compose_config(word, f"model.item_vectors=ids-{seed}")
        words = ["loss=sdpo", "decode.normalize=vocab", f"model.item_vectors=ids-{seed}"]
        second = compose_config(word, *words, f"model.start_from=first-{seed}")
        runs = {f"ids-{seed}": ids, f"first-{seed}": first}
        return config_hash(of_any_seed(second, runs.get))

    assert chain(1) == chain(2) != chain(1, epochs=2)


def test_where_another_run_lies_changes_no_hash(compose_config: Compose) -> None:
    arm = ["loss=sdpo", "decode.normalize=vocab"]
    here, there, other = (
        config_hash(compose_config(*arm, f"model.start_from={folder}"))
        for folder in ("outputs/run-1", "/elsewhere/run-1", "outputs/run-2")
    )
    assert here == there != other


def test_words_that_cells_set_themselves_are_named(compose_config: Compose) -> None:
    def lines(*words: str) -> list[str]:
        return words_without_effect(compose_config(*words).experiment, list(words))

    few = ["experiment=paper/main", "experiment.only=[msl,sdpo]", "experiment.datasets=[msl_toys]"]
    tau, toys = "loss.tau=2", "experiment.data_overrides.msl_toys (loss.tau=4.5)"
    assert lines(*few, tau, "data.test_rows=9") == [f"{tau} does not reach {toys}"]
    assert lines(*few, "loss.tau=4.5") == []
    rate = "trainer.learning_rate=0.01"
    sdpo = "experiment.cells.sdpo (trainer.learning_rate=1.0e-5)"
    assert lines(*few, rate) == [f"{rate} does not reach {sdpo}"]
    assert lines("experiment=paper/main", "experiment.only=[msl]", rate) == []
    (depth,) = lines("experiment=paper/sensitivity", "mask.split_layer=16")
    assert depth.startswith(
        "mask.split_layer=16 does not reach experiment.grid (mask.split_layer=["
    )
    assert lines("data=toys", "seed=3") == []  # no experiment
    assert lines("experiment=demo", "data=toys") == []  # whose data it leaves open
    for word, own in (("data=toys", "datasets=['msl_toys']"), ("seed=7", "seeds=[1, 2, 3]")):
        with pytest.raises(ValueError, match=rf"{word} has no effect on .*experiment\.") as error:
            lines(*few, word)
        assert f"experiment.{own}: set that instead" in str(error.value)


@pytest.mark.usefixtures("cells_here")
def test_the_command_line_tells_which_words_have_no_effect(
    cli: Cli, shop: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cell = '+experiment.cells.one=["model=popularity"]'
    named = ["experiment.name=x", f"experiment.folder={tmp_path}/x", "task=experiment", cell]
    assert cli(*shop, *named, "model=knn", "experiment.seeds=[1]") == 0
    note = "note: model=knn does not reach experiment.cells.one (model=popularity)"
    assert note in capsys.readouterr().err
    assert cli(*shop, *named, "seed=4") == 2
    assert "seed=4 has no effect on experiment=x" in capsys.readouterr().err


def test_a_cell_starts_from_the_run_of_another_with_its_seed_and_data(
    compose_config: Compose, root: Path
) -> None:
    words = words_of("main", root)
    cells = {cell.label: cell for cell in cells_of(compose_config, words)}
    started = compose_config(*cells["sdpo_hatllm"].words).model.start_from
    assert started == str(cells["bigrec_hatllm"].folder)
    unknown = 'experiment.cells.d3=["model.start_from=run:later"]'
    with pytest.raises(ValueError, match="must name a cell that stands before it: popularity, knn"):
        cells_of(compose_config, [*words, unknown])
