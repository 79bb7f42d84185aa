"""Every file in conf/ composes, validates and says what it is."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from hatllm.compose import checked, register_schema
from hatllm.config import Config
from hatllm.masks.schedule import build_schedule
from hatllm.runs.name import run_folder

CONF = Path(__file__).resolve().parents[1] / "conf"
FILES = sorted(path.relative_to(CONF) for path in CONF.glob("*/**/*.yaml"))
CHOICES = [path for path in FILES if not path.stem.startswith("_")]
NEEDED = {  # what a choice asks its user for
    "data/custom": ["data.interactions_file=a.csv", "data.items_file=b.csv"],
    "data/amazon": ["data.category=Video_Games"],
    # scale=laptop chooses its step by an NLL, which d3 does not have.
    "decode/d3": ["decode.assistant_run=outputs/sasrec", "trainer.monitor=val/NDCG@10"],
    "loss/sdpo": ["data.target_form=branches"],  # scale=laptop has every item as a target
    "mask/custom": ["mask.layers=IFFC", "model=tiny"],
    "model/huggingface": ["model.source=somebody/model"],
    "model/sentences": ["model.titles.encoder=a/folder"],
    "model/fusion": ["model.first_run=outputs/a", "model.second_run=outputs/b"],
    "task/evaluate": ["task.run_folder=outputs/run"],
    "task/recommend": ["task.run_folder=outputs/run"],
    "task/serve": ["task.run_folder=outputs/run"],
}


@pytest.mark.parametrize("path", CHOICES, ids=str)
def test_every_choice_composes_and_validates(path: Path) -> None:
    group, choice = path.parts[0], "/".join(path.with_suffix("").parts[1:])
    if path == Path("sweep/optuna.yaml"):
        pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    register_schema()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        words = [f"{group}={choice}", *NEEDED.get(f"{group}/{choice}", [])]
        config = checked(compose("config", overrides=words))
    named = config.scale if group == "scale" else getattr(config, group).name
    assert named == (None if choice == "none" else choice) or group == "data"
    if config.model.num_layers is not None:
        assert len(build_schedule(config.mask, config.model.num_layers).patterns) > 0


@pytest.mark.parametrize("path", FILES, ids=str)
def test_every_file_begins_with_its_own_name(path: Path) -> None:
    lines = (CONF / path).read_text().splitlines()
    assert any(line.startswith(f"# conf/{path}: ") for line in lines[:2])


def test_the_readme_command_puts_intra_layers_below_the_split() -> None:
    register_schema()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = checked(compose("config", overrides=["mask.split_layer=16", "data=sports"]))
    letters = build_schedule(config.mask, 30).letters
    assert letters == "I" * 16 + "F" * 7 + "C" * 7


def test_an_experiment_may_change_what_its_scale_sets() -> None:
    register_schema()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = checked(compose("config", overrides=["experiment=demo", "task=train"]))
        assert (config.data.train_rows, config.data.test_rows) == (160, 200)
        typed = checked(compose("config", overrides=["experiment=demo", "data.test_rows=7"]))
    assert typed.data.test_rows == 7


def composed(*words: str) -> Config:
    register_schema()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return checked(compose("config", overrides=list(words)))


def test_cut_offs_are_those_that_the_lists_are_long_enough_for() -> None:
    assert composed().cut_offs == (1, 5, 10)
    assert composed("model=popularity", "decode.top_k=4").cut_offs == (1,)
    words = ("metrics.cut_offs=[5,20]", "decode.top_k=20", "decode.beam_width=20")
    config = composed(*words, "trainer.monitor=null")  # the laptop's scale monitors an NLL
    assert config.cut_offs == (5, 20)
    assert config.validation_cut_offs == (10, 20)  # what chooses the checkpoint is always there
    short = composed("decode.top_k=4", "trainer.monitor=null")
    assert (short.cut_offs, short.validation_cut_offs) == ((1,), (1, 4))


@pytest.mark.parametrize(
    ("words", "said"),
    {
        ("metrics.cut_offs=[]",): "must hold at least one number",
        ("metrics.cut_offs=[5,1]",): "ascending order, such as",
        ("metrics.cut_offs=[0,5]",): "metrics.cut_offs=0 must be at least 1",
        ("metrics.cut_offs=[5]", "decode.top_k=4", "model=popularity"): "at most decode.top_k=4",
        (
            "decode.top_k=4",
            "trainer.monitor=val/NDCG@10",
        ): "trainer.monitor=val/NDCG@4 or trainer.monitor=val/trie_NLL",
        ("sweep.objective=valid/HIT@10",): "such as valid/NDCG@10",
        ("sweep.is_search=true", "sweep.objective=valid/NDCG@7"): "7 must be in metrics.cut_offs",
    }.items(),
)
def test_lists_too_short_for_what_is_asked_of_them_are_refused(
    words: tuple[str, ...], said: str
) -> None:
    with pytest.raises(ValueError) as refusal:
        composed(*words)
    assert said in str(refusal.value)


def test_lists_may_be_short_where_no_checkpoint_is_chosen_by_them() -> None:
    assert composed("decode.top_k=4", "trainer.max_steps=0").cut_offs == (1,)
    answers = composed("task=recommend", "task.run_folder=x", "decode.top_k=3")
    assert answers.decode.top_k == 3


def test_cut_offs_do_not_change_the_folder_of_a_run() -> None:
    assert run_folder(composed()) == run_folder(composed("metrics.cut_offs=[3]"))
