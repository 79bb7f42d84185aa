"""One seed, one set of numbers: again in this process, in others, and as recorded."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from .shop import write_shop

Cli = Callable[..., int]
ROOT = Path(__file__).parents[2]
WORDS = ["scale=smoke", "num_threads=1", "seed=3", "trainer.learning_rate=0.01", "run_name=golden"]
# Of integers and texts: the same on every machine and with every library version.
GOLDEN_HASHES = {
    "data_hash": "9ed07e64fb483f9272eda0a5669670f674467d4eff3af3d0f01fe253af125c6c",
    "split_hash": "1e3e53ee0a4f259375c897715e1b0ad860dac95dd5fa1a7bec5b296af0f7de09",
}
GOLDEN_METRICS = {
    "valid/trie_NLL": 3.364448,
    "valid/vocab_NLL": 69.529560,
    "test/trie_NLL": 3.630280,
    "test/vocab_NLL": 65.722687,
    "test/num_examples": 8,
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
    metrics = json.loads((folder / "metrics.json").read_text())
    # Recorded once; another machine's float32 sums differ in the fifth digit at most.
    found = {f"{split}/{name}": metrics[split][name] for split, name in
             (key.split("/") for key in GOLDEN_METRICS)}  # fmt: skip
    assert found == pytest.approx(GOLDEN_METRICS, rel=1e-3)


def test_a_result_says_what_made_it(cli: Cli, tmp_path: Path) -> None:
    assert cli(*write_shop(tmp_path / "shop"), *WORDS, "model=popularity") == 0
    found = json.loads((tmp_path / "outputs/golden/environment.json").read_text())
    assert {"command", "commit", "code_hash", "python", "versions", "hardware", "data_hash",
            "split_hash"} <= set(found)  # fmt: skip
    assert {"platform", "processor", "cores", "torch_threads"} <= set(found["hardware"])
    run = json.loads((tmp_path / "outputs/golden/run.json").read_text())
    assert {"config_hash", "data_hash", "split_hash", "seed"} <= set(run)
