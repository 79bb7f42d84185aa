"""Wrong input: one line that names the field, the value and what would be right; exit code 2."""

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cli import ROOT
from hydra._internal.utils import get_args_parser

import run

Cli = Callable[..., int]

WRONG = {
    "mask.split_layr=3": ["mask.split_layr", "did you mean mask.split_layer?"],
    "mask=hatlm": ["mask='hatlm'", "did you mean 'hatllm'?"],
    "mask.split_layer=abc": ["mask.split_layer='abc'", "Integer"],
    "mask.split_layer=31": ["mask.split_layer=31", "between 0 and 30"],
    "mask.num_cross_layers=29": ["mask.num_cross_layers=29", "30 layers"],
    "mask=custom": ["mask=custom needs mask.layers"],
    "mask.layers=IIX": ["mask.layers='IIX'", "'X'"],
    "mask.layers=IFC": ["mask.layers='IFC'", "3 letters", "30 layers"],
    "mask.shallow=inner": ["mask.shallow='inner'", "intra, full, cross"],
    "model=huggingface": ["model.source=''"],
    "model.lora.dropout=1.5": ["model.lora.dropout=1.5", "between 0.0 and 0.99"],
    "model.quantization_bits=3": ["model.quantization_bits=3", "4, 8 or null"],
    "model.quantization_bits=4": ["model.quantization_bits=4", "GPU"],
    "loss.tau=0": ["loss.tau=0.0", "above 0"],
    "loss=mls": ["loss='mls'", "did you mean 'msl'?"],
    "decode.top_k=20": ["decode.top_k=20", "decode.beam_width=10"],
    "decode.normalize=tree": ["decode.normalize='tree'", "did you mean 'trie'?"],
    "trainer.global_batch_size=10": ["trainer.global_batch_size=10", "multiple of", "8"],
    "trainer.devices=2": ["trainer.devices=2", "trainer=ddp"],
    "trainer=gpu": ["trainer.devices=1", "0 found"],
    "trainer=fsdp": ["trainer.devices=2", "0 found"],
    "data_root=/no/such/folder": ["data_root='/no/such/folder'", "not a folder"],
    "data=msl_books": ["data_root", "msl_books"],
    "data=custom": ["data.interactions_file=null"],
    "task=evaluate": ["task=evaluate needs task.run_folder"],
    "experiment=paper/mian": ["experiment='paper/mian'", "did you mean 'paper/main'?"],
    "experiment=mian": ["experiment='mian'", "paper/main"],
    "experiment.views=[bar]": ["experiment.views='bar'", "did you mean 'bars'?"],
    "task=experiment": ["experiment.cells", "experiment=demo"],
    "task=table": ["holds no finished run"],
    "seed=-1": ["seed=-1"],
    "num_threads=two": ["num_threads='two'"],
}


@pytest.mark.parametrize("word", WRONG)
def test_a_wrong_word_is_answered_in_one_line(
    cli: Cli, capsys: pytest.CaptureFixture[str], word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert cli(word) == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1
    assert said.err.startswith("error: ")
    assert "Traceback" not in said.err + said.out
    for part in WRONG[word]:
        assert part in said.err, said.err


def test_more_answers_than_titles_are_refused_before_the_model_is_loaded(
    cli: Cli, shop: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hatllm.training.assemble.load_proven_lm", None)
    assert cli(*shop, "decode.beam_width=30", "decode.top_k=25") == 2
    assert "decode.top_k=25 must be at most 24" in capsys.readouterr().err


def test_a_lora_target_the_model_lacks_is_named_with_those_it_has(
    cli: Cli, shop: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli(*shop, "model.lora.target_modules=[qkv]") == 2
    assert "holds qkv" in (error := capsys.readouterr().err)
    assert "q_proj" in error


def test_a_finished_run_cannot_be_given_other_data(
    cli: Cli, shop: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli(*shop, "model=popularity", "run_name=done") == 0
    words = ["task=evaluate", f"task.run_folder={tmp_path}/outputs/done"]
    capsys.readouterr()
    assert cli(*words, "mask=causal") == 2
    assert "mask is fixed by the finished run" in capsys.readouterr().err


def test_help_explains_groups_and_settings(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("--help") == 0
    said = capsys.readouterr().out
    for part in ("mask: ", "hatllm", "mask.split_layer=16", "task=prepare"):
        assert part in said


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("a.b=1 -m c=2,3", "-m a.b=1 c=2,3"),
        ("--a.b=1 --seed=2", "a.b=1 seed=2"),
        ("x=1 --config-dir /y=1 --config-name z w=2", "--config-dir /y=1 --config-name z x=1 w=2"),
        ("--config-dir=/y x=1 --cfg job", "--config-dir=/y --cfg job x=1"),
        ("x=1 --info defaults y=2 -i z=3", "--info defaults -i x=1 y=2 z=3"),
        ("~x +y=1 --z=", "~x +y=1 z="),
    ],
)
def test_options_and_settings_may_stand_in_any_order(given: str, wanted: str) -> None:
    assert run.options_first(given.split(), get_args_parser()) == wanted.split()


def test_settings_with_dashes_reach_the_config(
    cli: Cli, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli("--mask.split_layer=31") == 2
    assert "mask.split_layer=31" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--mask.split_layer", "1"], "--mask.split_layer is not an option"),
        (["seed=1", "-x"], "-x is not an option"),
        (["--cfg", "jub"], "argument --cfg/-c: invalid choice: 'jub'"),
    ],
)
def test_a_word_that_is_neither_is_answered_in_one_line(
    cli: Cli, capsys: pytest.CaptureFixture[str], words: list[str], named: str
) -> None:
    assert cli(*words) == 2
    said = capsys.readouterr()
    assert said.err.startswith(f"error: {named}") and said.err.count("\n") == 1
    assert said.out == ""


@pytest.mark.parametrize("buffering", [-1, 0])  # 0: of PYTHONUNBUFFERED
def test_a_reader_that_has_enough_is_no_error(
    cli: Cli, buffering: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with monkeypatch.context() as patch, os.fdopen(writer, "wb", buffering) as pipe:
        patch.setattr(sys, "stdout", io.TextIOWrapper(pipe, write_through=buffering == 0))
        assert cli("--help") == run.NOBODY_READS
    assert capsys.readouterr().err == ""


def test_control_c_while_packages_are_imported_prints_nothing(tmp_path: Path) -> None:
    (tmp_path / "hydra.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGINT)")
    done = subprocess.run(
        [sys.executable, str(ROOT / "run.py")], env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (run.INTERRUPTED, "", "")


@pytest.mark.long  # a process of its own
def test_a_table_of_finished_runs_imports_no_backbone(cli: Cli, shop: list[str]) -> None:
    words = [*shop, "data.train_rows=null"]
    assert cli(*words, "model=popularity") == 0 and cli(*words, "model=knn") == 0
    code = "import sys, run; run.start(); print(*sys.modules, sep='\\n', file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", code, *words, "task=table"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "src")))},
        capture_output=True, text=True,
    )  # fmt: skip
    assert "table and figures: outputs/table" in done.stdout, done.stderr
    loaded = set(done.stderr.splitlines())
    assert "hatllm.tables.comparison" in loaded
    assert not loaded & {"transformers", "peft", "pytorch_lightning", "hatllm.model.masked_lm"}
