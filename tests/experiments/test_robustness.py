"""The scripts of experiments/robustness at a size of seconds."""

import json
from pathlib import Path

import pytest
from shop import write_shop

from experiments.robustness import invariance, scaling


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The small shop, work and results in a folder of the test's own."""
    monkeypatch.delenv("HATLLM_DATA_ROOT", raising=False)
    settings = [word for word in write_shop(tmp_path / "shop") if not word.startswith("data=")]
    settings.append(f"cache_root={tmp_path / 'cache'}")
    words = [word for setting in settings for word in ("--set", setting)]
    return [*words, "--data", "custom", "--work", str(tmp_path / "work"),
            "--output", str(tmp_path / "results"), "--test-rows", "8"]  # fmt: skip


@pytest.mark.slow
def test_a_killed_run_is_in_the_table_with_the_numbers_of_one_never_killed(
    words: list[str], tmp_path: Path
) -> None:
    invariance.main([*words, "--processes", "1", "--batches", "1", "--train-rows", "48"])
    content = json.loads((tmp_path / "results" / "invariance.json").read_text())
    whole, killed = content["rows"]
    assert content["sets_of_rank_metrics"] == 1
    assert killed["same_answers"] and killed["adapter_difference"] < 1e-5
    first, second = killed["steps_at_kill"]
    assert 0 < first < second <= killed["steps"] == whole["steps"]
    assert 0 < killed["users_at_kill"] < killed["users"] == 8
    assert "| 1 | 1 | step" in (tmp_path / "results" / "invariance.md").read_text()


def test_rates_are_those_between_the_warm_up_and_the_end() -> None:
    seen = [(0.0, 0), (10.0, 4), (11.0, 8), (13.0, 16)]
    assert scaling.rate(seen, 1) == pytest.approx(12 / 3)
    assert scaling.rate(seen, 2) == pytest.approx(8 / 2)
    with pytest.raises(ValueError, match="too few"):
        scaling.rate(seen, 3)


@pytest.mark.slow
def test_scaling_writes_rates_of_each_count_of_processes(words: list[str], tmp_path: Path) -> None:
    scaling.main([*words, "--model", "tiny", "--processes", "1", "--train-rows", "48",
                  "--set", "decode.users_per_batch=1"])  # fmt: skip
    (row,) = json.loads((tmp_path / "results" / "scaling.json").read_text())["rows"]
    assert row["rows_per_s"] > 0 and row["users_per_s"] > 0
    assert "rows/s" in (tmp_path / "results" / "scaling.md").read_text()
