"""Pooling over data sets, against numbers made by hand."""

import sys
from pathlib import Path

import polars as pl
import pytest

from experiments.paper.main.pooled import main, pool, pooled_frame


def test_data_sets_that_differ_beyond_their_errors_widen_the_interval() -> None:
    found = pool([0.1, 0.5], [0.1, 0.1])
    # Q = 100 * (0.2^2 + 0.2^2) = 8, tau^2 = (8 - 1) / (200 - 20000 / 200), weights 1 / 0.08.
    assert found.tau == pytest.approx(0.07**0.5)
    assert (found.mean, found.se) == (pytest.approx(0.3), pytest.approx(0.2))
    assert found.smallest_effect == pytest.approx(2.8016 * 0.2, rel=1e-4)


def test_data_sets_that_agree_are_weighted_by_their_errors_alone() -> None:
    found = pool([0.02, 0.01], [0.01, 0.02])
    assert found.tau == 0
    assert found.mean == pytest.approx((0.02 * 4 + 0.01) / 5)
    assert found.se == pytest.approx((1e4 + 2500) ** -0.5)


def slices(folder: Path, data: str, nats: float, deviation: float | None = None) -> Path:
    folder.mkdir()
    columns = {"data": data, "label": "hatllm", "compared_with": "causal", "HR@10_std": deviation}
    rows = []
    for name, ndcg in (("all", 0.01), ("no_shared_words", 0.0)):
        row: dict[str, object] = {**columns, "slice": name, "count": 10}
        for metric, mean, half in (
            ("trie_NLL", nats, 0.1),
            ("NDCG@10", ndcg, ndcg),
            ("HR@10", 0.0, 0.0),
        ):
            row |= {f"{metric}_difference": mean, f"{metric}_difference_low": mean - half,
                    f"{metric}_difference_high": mean + half}  # fmt: skip
        rows.append(row)
    pl.DataFrame(rows).write_csv(folder / "slices.csv")
    return folder


def test_every_slice_with_an_error_is_pooled_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [slices(tmp_path / "a", "toys", -0.1), slices(tmp_path / "b", "books", -0.3, 0.1)]
    pooled = pooled_frame(folders, "hatllm", "causal")
    assert pooled["metric", "slice"].rows() == [
        ("trie_NLL", "all"), ("trie_NLL", "no_shared_words"), ("NDCG@10", "all"),
    ]  # fmt: skip
    assert pooled["rows"].to_list() == [20, 20, 20]
    assert pooled["difference"][0] == pytest.approx(-0.2)
    monkeypatch.setattr(sys, "argv", ["pooled", *map(str, folders), "--output", str(tmp_path)])
    main()
    assert "toys -0.1000 [-0.2000, +0.0000]; books -0.3000" in (tmp_path / "pooled.md").read_text()
    assert (tmp_path / "pooled.png").stat().st_size > 1000


def test_a_table_without_the_pair_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not compare 'cross_only' with 'causal'"):
        pooled_frame([slices(tmp_path / "a", "toys", 0.0)], "cross_only", "causal")


def test_a_file_of_other_columns_is_refused(tmp_path: Path) -> None:
    (tmp_path / "slices.csv").write_text("data,label\ntoys,hatllm\n")
    with pytest.raises(
        ValueError, match=r"slices\.csv has no column 'slice': make it by task=table"
    ):
        pooled_frame([tmp_path], "hatllm", "causal")
