"""One seed, one set of numbers: again in this process, in others, and as recorded."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from shop import write_shop

Cli = Callable[..., int]
ROOT = Path(__file__).parents[2]
WORDS = ["scale=smoke", "num_threads=1", "seed=3", "trainer.learning_rate=0.01", "run_name=golden"]
# Of integers and texts: the same on every machine and with every library version.
GOLDEN_HASHES = {
    "data_hash": "08792b3804f5e5530528d04f3908d5dfcea4c7854c7b8459ec4198415ca46695",
    "split_hash": "6d8d68c4e96bef4dd2b7366a70468caa05d0b10b8ad564601d4f795eaf856422",
}
GOLDEN_METRICS = {
    "valid/trie_NLL": 3.378891,
    "valid/vocab_NLL": 68.979496,
    "test/trie_NLL": 3.760478,
    "test/vocab_NLL": 70.085191,
    "test/num_examples": 8,
}
# The same run, every item of a row a target, in both forms.
EVERY = ["data.train_targets=every", "data.target_weights=rising", "loss.tau=3"]
GOLDEN_NLLS = {
    "in_place": {"valid/trie_NLL": 3.185002, "test/trie_NLL": 3.053613},
    "branches": {"valid/trie_NLL": 3.180827, "test/trie_NLL": 3.035534},
}


def in_a_process(folder: Path, data: list[str], threads: str) -> Path:
    """The run folder of `python run.py` with this many threads in its environment."""
    folder.mkdir()
    environment = {
        **os.environ, "HATLLM_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": threads,
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]),
    }  # fmt: skip
    environment.pop("HATLLM_DATA_ROOT", None)
    subprocess.run(
        [sys.executable, str(ROOT / "run.py"), *data, *WORDS],
        cwd=folder, env=environment, check=True, capture_output=True,
    )  # fmt: skip
    return folder / "outputs" / "golden"


@pytest.mark.slow
def test_two_processes_give_the_same_bits_whatever_their_threads(tmp_path: Path) -> None:
    data = write_shop(tmp_path / "shop")
    one, other = (in_a_process(tmp_path / f"t{n}", data, n) for n in ("1", "2"))
    for name in ("metrics.json", "adapter/adapter_model.safetensors", "curves.csv"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    first, second = (pl.read_parquet(folder / "predictions.parquet") for folder in (one, other))
    assert first.equals(second)


def test_the_golden_run_stays_what_it_is(cli: Cli, tmp_path: Path) -> None:
    assert cli(*write_shop(tmp_path / "shop"), *WORDS) == 0
    folder = tmp_path / "outputs" / "golden"
    manifest = json.loads((folder / "split_manifest.json").read_text())
    assert {name: manifest[name] for name in GOLDEN_HASHES} == GOLDEN_HASHES
    assert found_of(folder, GOLDEN_METRICS) == pytest.approx(GOLDEN_METRICS, rel=1e-3)


@pytest.mark.parametrize("form", ["in_place", "branches"])
def test_the_golden_runs_of_every_item_stay_what_they_are(
    cli: Cli, tmp_path: Path, form: str
) -> None:
    words = [*WORDS, *EVERY, f"data.target_form={form}"]
    assert cli(*write_shop(tmp_path / "shop"), *words) == 0
    found = found_of(tmp_path / "outputs" / "golden", GOLDEN_NLLS[form])
    assert found == pytest.approx(GOLDEN_NLLS[form], rel=1e-3)


def found_of(folder: Path, golden: dict[str, float]) -> dict[str, float]:
    """The run's metrics that were recorded once.

    Another machine's float32 sums differ in the fifth digit at most.
    """
    metrics = json.loads((folder / "metrics.json").read_text())
    return {key: metrics[key.split("/")[0]][key.split("/")[1]] for key in golden}


def test_a_result_says_what_made_it(cli: Cli, tmp_path: Path) -> None:
    assert cli(*write_shop(tmp_path / "shop"), *WORDS, "model=popularity") == 0
    found = json.loads((tmp_path / "outputs/golden/environment.json").read_text())
    assert {"command", "commit", "code_hash", "python", "versions", "hardware", "data_hash",
            "split_hash"} <= set(found)  # fmt: skip
    assert {"platform", "processor", "cores", "torch_threads"} <= set(found["hardware"])
    run = json.loads((tmp_path / "outputs/golden/run.json").read_text())
    assert {"config_hash", "data_hash", "split_hash", "seed"} <= set(run)
