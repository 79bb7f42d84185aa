"""The numbers of the serving experiments, and a soak of seconds."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments.serving import soak
from experiments.serving.new_titles import recombined_titles
from experiments.serving.soak import counted, slope_of, verdict

ROOT = Path(__file__).resolve().parents[2]


def samples(memory_mb: np.ndarray) -> list[dict[str, float]]:
    seconds = np.linspace(0, 1800, len(memory_mb)).tolist()
    return [
        {"seconds": second, "memory_mb": float(memory)}
        for second, memory in zip(seconds, memory_mb, strict=True)
    ]


def test_a_slope_is_that_of_the_line_after_warming_up() -> None:
    hours = np.linspace(0, 0.5, 361)
    noise = np.random.default_rng(1).normal(0, 0.5, 361)
    warming = 50 * np.exp(-hours / 0.01)  # gone before the fifth of the time
    found = slope_of(samples(600 + 20 * hours + warming + noise), np.mean)
    assert found.mb_per_hour == pytest.approx(20, abs=2 * found.half_width)
    assert 0.1 < found.half_width < 2 and found.grows
    assert found.at_start == pytest.approx(600, abs=1)
    flat = slope_of(samples(600 + noise), np.mean)
    assert abs(flat.mb_per_hour) < flat.half_width and not flat.grows
    assert not slope_of(samples(600 - 20 * hours + noise), np.mean).grows


def test_batches_that_come_and_go_are_no_growth_of_what_stays() -> None:
    draw, hours = np.random.default_rng(3), np.linspace(0, 0.5, 361)
    batches = np.where(draw.random(361) < hours, 30.0, 0.0)  # more and more often
    assert slope_of(samples(600 + batches), np.mean).grows
    assert not slope_of(samples(600 + batches), np.min).grows
    assert slope_of(samples(600 + batches + 20 * hours), np.min).grows


def test_means_that_hang_together_have_a_wider_interval(monkeypatch) -> None:
    draw = np.random.default_rng(2).normal(0, 1, 361)
    walk = np.cumsum(draw)  # no trend, though a line through it looks like one
    wide = [slope_of(samples(600 + memory), np.mean).half_width for memory in (walk, draw)]
    monkeypatch.setattr(soak, "MOST_ALIKE", 0.0)
    narrow = [slope_of(samples(600 + memory), np.mean).half_width for memory in (walk, draw)]
    assert wide[0] > 2 * narrow[0] and wide[1] < 1.5 * narrow[1]


def test_a_verdict_names_every_fault() -> None:
    hours = np.linspace(0, 0.5, 361)
    grows, flat = (slope_of(samples(600 + rate * hours), np.min) for rate in (9, 0))
    found = {"wrong": 0, "busy": 0, "requests": 10, "exit_code": 0}
    assert verdict(found, flat).startswith("Sound: 10 requests, each with a right answer; no")
    assert "of which 2 that there was too much" in verdict(found | {"busy": 2}, flat)
    assert "memory that stays grows by 9.0 MB an hour" in verdict(found, grows)
    assert "3 of 10 answers are wrong" in verdict(found | {"wrong": 3}, flat)
    assert "exit code 1" in verdict(found | {"exit_code": 1}, flat)


def test_an_answer_that_its_kind_may_not_have_is_wrong_and_a_busy_server_is_not() -> None:
    kinds = {"good": {"200": 5, "504": 2, "500": 1}, "no JSON": {"400": 3, "200": 1}}
    kinds |= {"client leaves": {"0": 2, "200": 1, "-1": 1}}
    assert counted(kinds) == {"wrong": 3, "busy": 2}


def test_recombined_titles_are_new_different_and_of_words_that_were_there() -> None:
    titles = ["Red Boat (1990)", "Blue Lamp of the Sea (1991)", "Old Book", "Rain"]
    found = recombined_titles(titles, 8, 3)
    assert len({*found}) == 8 and not {*found} & {*titles}
    assert {word for title in found for word in title.split()} <= {*" ".join(titles).split()}
    assert found == recombined_titles(titles, 8, 3)
    with pytest.raises(ValueError, match="1000 titles asked for"):
        recombined_titles(["A B", "C"], 1000, 3)


@pytest.mark.slow
def test_a_soak_of_seconds_ends_with_a_verdict(finished: Path, tmp_path: Path) -> None:
    words = ["--minutes", "0.4", "--rate", "10", "--every", "0.2", "--output", str(tmp_path)]
    command = [sys.executable, "-m", "experiments.serving.soak", "--run", str(finished), *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "soak.json").read_text())
    assert found["wrong"] == 0 and found["exit_code"] == 0
    assert found["requests"] == sum(
        count for answers in found["kinds"].values() for count in answers.values()
    )
    assert math.isfinite(found["slope"]["mb_per_hour"])
    assert (tmp_path / "soak.png").exists() and "MB an hour" in (tmp_path / "soak.md").read_text()
