"""task=plan counts what the run would do, and leaves nothing behind."""

from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
import torch
from toys import Compose

from hatllm.config import Config
from hatllm.data.prepare import load_dataset
from hatllm.plan.one_run import plan_run
from hatllm.runs.name import run_folder
from hatllm.tasks.plan import plan
from hatllm.tasks.train import train

pytestmark = pytest.mark.long

Cli = Callable[..., int]
Planned = Callable[..., Config]


@pytest.fixture
def composed(compose_config: Compose, shop: list[str], tmp_path: Path) -> Planned:
    """Config of a run on the small shop, in the test's own folders."""
    places = [f"cache_root={tmp_path}/cache", f"output_root={tmp_path}/outputs"]
    words = [word for word in shop if word != "scale=smoke"] + places
    return lambda *more: compose_config(*words, *more)


def texts(config: Config, title: str) -> tuple[bytes, bytes]:
    """A title inside a history and as a target; the tiny backbone's tokens are bytes."""
    prompt = config.data.prompt
    return tuple(
        text.replace("{title}", title).encode() for text in (prompt.history_item, prompt.target)
    )  # type: ignore[return-value]


def lengths_by_text(config: Config, split: str, with_title: bool) -> list[int]:
    dataset, prompt = load_dataset(config), config.data.prompt
    title = dict(dataset.items.select("item_id", "title").iter_rows())
    around = len(prompt.prefix.encode()) + len(prompt.response.encode())
    lengths = []
    for history, target in dataset.splits[split].select("history", "target").iter_rows():
        kept = history[-config.data.max_history_items :]
        length = around + sum(len(texts(config, title[item])[0]) for item in kept)
        # The end token is predicted, never fed.
        lengths.append(length + with_title * len(texts(config, title[target])[1]))
    return lengths


def test_rows_tokens_and_shares_are_those_of_the_texts(composed: Planned) -> None:
    config = composed("decode.users_per_batch=4", "trainer.micro_batch_size=4")
    found, prefix = plan_run(config, {}), len(config.data.prompt.prefix.encode())
    for split in ("train", "valid", "test"):
        lengths, size = lengths_by_text(config, split, split == "train"), found.splits[split]
        assert (size.rows, size.tokens, size.longest) == (len(lengths), sum(lengths), max(lengths))
        assert size.prefix_share == pytest.approx(prefix * len(lengths) / sum(lengths))
    lengths = sorted(lengths_by_text(config, "test", False))
    padded = 4 * lengths[3] + 4 * lengths[7]
    assert found.splits["test"].padding_share == pytest.approx(1 - sum(lengths) / padded)
    # One epoch of 24 rows, 4 a micro-batch; each runs the prefix once.
    own = found.splits["train"].tokens - 24 * prefix
    assert (found.num_steps, found.trained_tokens) == (3, own + 6 * prefix)


def test_the_plain_way_runs_padded_prompts(composed: Planned) -> None:
    config = composed("fast=false", "trainer.micro_batch_size=8")
    found = plan_run(config, {})
    share = found.splits["train"].padding_share
    assert share is not None
    assert found.trained_tokens * (1 - share) == pytest.approx(found.splits["train"].tokens)


def test_trie_states_and_parameters_equal_a_count_by_hand(composed: Planned) -> None:
    config = composed("mask=hatllm_segments", "decode.state_cache=true")
    found = plan_run(config, {})
    pairs = [texts(config, title) for title in load_dataset(config).items["title"]]
    ends = [[*target, -1] for _, target in pairs]
    nodes = {tuple(end[:k]) for end in ends for k in range(len(end) + 1)}
    children = {node: sum(n[:-1] == node for n in nodes if n) for node in nodes}
    assert found.trie is not None
    assert found.trie.nodes == len(nodes)
    assert found.trie.branching == sum(n > 1 for n in children.values())
    assert found.trie.titles == 24
    items = sum(len(item) for item, _ in pairs) + len(config.data.prompt.response.encode())
    assert found.states is not None
    assert found.states.tokens == items + sum(len(end) - 1 for end in ends)
    assert found.states.megabytes == pytest.approx((items + len(nodes)) * 32 * 4 / 2**20)
    assert found.states.used_by == ("valid", "test")
    # Rank 8 on q_proj (32 to 32) and v_proj (32 to 16) of 4 layers.
    assert found.num_tuned == 4 * 8 * (32 + 32 + 32 + 16)
    tied_embedding, attention, mlp = 258 * 32, 32 * (32 + 16 + 16 + 32), 3 * 32 * 64
    assert found.num_frozen == tied_embedding + 4 * (attention + mlp + 2 * 32) + 32


@pytest.mark.parametrize(
    "words",
    [
        ["trainer.max_epochs=2"],
        ["trainer.max_epochs=2", "trainer.max_steps=7"],
        ["trainer.max_epochs=2", "trainer.validate_every_steps=3"],
    ],
)
def test_steps_and_validations_are_those_the_run_then_makes(
    composed: Planned, words: list[str]
) -> None:
    config = composed(*words)
    found = plan_run(config, {})
    curves = pl.read_csv(train(config) / "curves.csv")
    assert found.num_steps == curves["train/loss"].drop_nulls().len()
    assert found.num_validations == curves["val/NDCG@10"].drop_nulls().len()
    again = plan_run(config, {})
    assert (again.status, again.total.high, again.splits) == ("finished", 0.0, {})
    config.task.force = True
    assert plan_run(config, {}).num_steps == found.num_steps


def test_a_broken_run_costs_what_is_left_of_it(composed: Planned) -> None:
    config = composed("trainer.max_epochs=2", "trainer.validate_every_steps=2")
    whole = plan_run(config, {})
    folder = run_folder(config) / "checkpoints"
    folder.mkdir(parents=True)
    torch.save({"global_step": 4}, folder / "last.ckpt")
    left = plan_run(config, {})
    assert left.status == "resumes at step 4"
    assert (whole.num_steps, whole.num_validations) == (6, 3)
    assert (left.num_steps, left.num_validations) == (2, 1)
    assert 0 < left.trained_tokens < whole.trained_tokens


def test_an_experiment_has_one_row_a_cell_and_is_calibrated_once_a_kind(
    composed: Planned, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = ['+experiment.cells.popularity=["model=popularity"]',
             '+experiment.cells.untuned=["mask=causal","trainer.max_steps=0"]',
             '+experiment.cells.hatllm=["mask=hatllm"]', "experiment.seeds=[1,2]",
             "experiment.name=trio"]  # fmt: skip

    def compose(words: list[str]) -> tuple[Config, list[str]]:
        return composed(*cells, *words), words

    first = composed("model=popularity", "seed=1", *cells, "experiment.cell=popularity")
    train(first)
    capsys.readouterr()
    plans = plan(composed("task=plan", *cells), compose)
    assert [(p.label, p.seed, p.status, p.num_steps) for p in plans] == [
        ("popularity", 1, "finished", 0),
        ("untuned", 1, "to run", 0),
        ("hatllm", 1, "to run", 3),
        ("hatllm", 2, "to run", 3),
    ]
    assert [p.calibration_seconds > 0 for p in plans] == [False, True, True, False]
    assert plans[0].total.high == 0
    assert all(p.seconds["evaluate"].middle > 0 for p in plans[1:])
    said = capsys.readouterr().out
    assert "experiment trio" in said
    assert "3 to run" in said


@pytest.mark.parametrize("loss", ["lml", "msl", "msl_ats"])
def test_planning_leaves_nothing_behind(
    cli: Cli, shop: list[str], tmp_path: Path, loss: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = set(tmp_path.rglob("*"))
    words = ["mask=hatllm_segments", "decode.state_cache=true", f"loss={loss}"]
    assert cli("task=plan", *shop, *words) == 0
    new = {path.relative_to(tmp_path).parts[:2] for path in set(tmp_path.rglob("*")) - before}
    assert new == {("cache",), ("cache", "prepared")}
    said = capsys.readouterr().out
    for part in ("predicted cost", "peak memory", "Calibration took", "used for valid and test"):
        assert part in said


def test_popularity_needs_no_calibration(composed: Planned) -> None:
    found = plan_run(composed("model=popularity"), {})
    assert (found.status, found.num_steps, found.calibration_seconds) == ("to run", 0, 0.0)


@pytest.mark.parametrize(
    ("word", "part"),
    [
        ("decode.state_cache=true", "decode.state_cache=true needs segment layers"),
        ("trainer.global_batch_size=400", "trainer.global_batch_size=400 must be at most 24"),
        ("mask.split_layer=9", "mask.split_layer=9"),
    ],
)
def test_a_run_that_would_fail_is_refused_in_one_line(
    cli: Cli, shop: list[str], capsys: pytest.CaptureFixture[str], word: str, part: str
) -> None:
    assert cli("task=plan", *shop, word) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert part in error
