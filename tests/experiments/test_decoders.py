"""experiments/paper/main/decoders.py: evaluations of finished runs side by side."""

import json
import sys
from pathlib import Path
from statistics import mean, stdev

import polars as pl
import pytest
from run_folders import make_run

from experiments.paper.main import decoders


def evaluated(run: Path, words: str, skill: float, seed: int, rows: int = 120) -> Path:
    """An evaluation of the first rows of the run, as task=evaluate leaves it."""
    other = make_run(run / "other" / words, words, seed, skill=skill)
    folder = run / "evaluations" / words.replace(" ", "-")
    folder.mkdir(parents=True)
    pl.read_parquet(other / "predictions.parquet").head(rows).write_parquet(
        folder / "predictions.parquet"
    )
    command = f"python run.py task=evaluate task.run_folder=x {words} data.test_rows={rows}"
    (folder / "environment.json").write_text(json.dumps({"command": command}))
    (folder / "metrics.json").write_text("{}")
    return folder


def hits(folder: Path) -> list[float]:
    """Of every example; each has a user of its own."""
    ranks = pl.read_parquet(folder / "predictions.parquet").head(120)["target_rank"].to_list()
    return [float(rank is not None and rank <= 10) for rank in ranks]


def cells(text: str, *first: str) -> list[str]:
    (line,) = (line for line in text.splitlines() if line.startswith("| " + " | ".join(first)))
    return [cell.strip() for cell in line.split("|")[1 + len(first) : -1]]


def test_decoders_stand_side_by_side_on_the_rows_that_were_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [make_run(tmp_path / f"c{seed}", "causal", seed, skill=0.2) for seed in (1, 2)]
    runs.append(make_run(tmp_path / "h1", "hatllm", 1, skill=0.3))
    found = [
        evaluated(runs[0], "decode=generate", 0.5, 1),
        evaluated(runs[1], "decode=generate", 0.6, 2),
        evaluated(runs[2], "decode=generate", 0.4, 1),
        evaluated(runs[0], "decode=beam decode.length_penalty=1.0", 0.3, 1),
    ]
    monkeypatch.setattr(
        sys, "argv", ["x", *map(str, runs), "--output", str(tmp_path / "decoders.md")]
    )
    decoders.main()
    text = (tmp_path / "decoders.md").read_text()
    own, generate = [mean(hits(run)) for run in runs], [mean(hits(folder)) for folder in found]

    def written(folders: list[Path]) -> str:
        error = stdev(map(mean, zip(*map(hits, folders), strict=True))) / 120**0.5
        means = [mean(hits(folder)) for folder in folders]
        spread = f" ({stdev(means):.4f})" if len(means) > 1 else ""
        return f"{mean(means):.4f} ± {error:.4f}{spread}"

    assert cells(text, "causal", "the run's own")[1] == written(runs[:2])
    assert cells(text, "causal", "decode=generate")[1] == written(found[:2])
    assert cells(text, "hatllm", "decode=generate")[1] == written(found[2:3])
    assert "± is the standard error over users" in text
    assert cells(text, "causal", "decode=generate")[-1] == "2"
    firsts = pl.read_parquet(found[3] / "predictions.parquet")["top_items"].list.first()
    longer = cells(text, "causal", "decode=beam decode.length_penalty=1.0")
    assert longer[-2:] == [str(firsts.n_unique()), "1"]
    differences = text[text.index("minus") :]
    hit, _, seeds = cells(differences, "causal, decode=generate", "causal, the run's own")
    assert hit.startswith(f"{mean(generate[:2]) - mean(own[:2]):+.4f} [") and seeds == "2"
    # On the seed that both masks have.
    hit, _, seeds = cells(differences, "hatllm, decode=generate", "causal, decode=generate")
    assert hit.startswith(f"{generate[2] - generate[0]:+.4f} [") and seeds == "1"


@pytest.mark.parametrize("case", ["unfinished", "never evaluated", "other rows"])
def test_what_does_not_fit_is_told_in_one_line(
    tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run", "causal")
    message = {
        "unfinished": "has no run.json: the run is not finished",
        "never evaluated": "run task=evaluate on it first",
        "other rows": "give them one data.test_rows",
    }[case]
    if case == "unfinished":
        (run / "run.json").unlink()
    if case == "other rows":
        evaluated(run, "decode=generate", 0.5, 1, rows=50)
        folder = evaluated(run, "decode=exact", 0.5, 1)
        table = pl.read_parquet(folder / "predictions.parquet")
        table.tail(100).write_parquet(folder / "predictions.parquet")
    monkeypatch.setattr(sys, "argv", ["x", str(run)])
    with pytest.raises(SystemExit) as stop:
        decoders.main()
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
