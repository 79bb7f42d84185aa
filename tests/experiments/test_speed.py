"""Each benchmark at a size of seconds: what it writes, and that its variants agree."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from shop import write_shop

from experiments.speed import (
    curves,
    decode,
    floor,
    prepare,
    profile,
    sampled,
    targets,
    train,
    trie,
)
from experiments.speed.equality import compare_answers, joined
from experiments.speed.field import dict_trie
from experiments.speed.floor import Sizes, Work, counted
from experiments.speed.memory import peak_above_start
from experiments.speed.titles import recombined, trie_of
from hatllm.data.prompt import Ragged
from hatllm.model.backbone import tiny_llama

pytestmark = pytest.mark.long


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The small shop, the random model, results in a folder of the test's own."""
    monkeypatch.delenv("HATLLM_DATA_ROOT", raising=False)
    for module in (decode, train):  # one product of each shape, not the fastest of forty
        monkeypatch.setattr(
            module, "matrix_rates", lambda *where: floor.matrix_rates(*where[:2], 1)
        )
    settings = [word for word in write_shop(tmp_path / "shop") if not word.startswith("data=")]
    settings.append(f"cache_root={tmp_path / 'cache'}")
    words = [word for setting in settings for word in ("--set", setting)]
    return ["--model", "tiny", "--output", str(tmp_path / "results"), *words]


def written(folder: Path, name: str) -> dict[str, Any]:
    """The results of a benchmark, with what every results file must hold."""
    results = folder / "results"
    content: dict[str, Any] = json.loads((results / f"{name}.json").read_text())
    assert content["hardware"]["processor"] and content["hardware"]["torch_threads"] >= 1
    assert content["versions"]["torch"] == torch.__version__
    assert content["command"].startswith(f"python -m experiments.speed.{name} --model tiny")
    assert (results / f"{name}.md").read_text().count("\n| ") >= len(content["rows"]) + 1
    assert (results / f"{name}.png").stat().st_size > 1000
    assert not list(results.glob("*part*"))
    return content


DECODE = [
    "--data", "custom", "--users", "2", "--check-users", "2", "--plain-users", "2",
    "--other-users", "2", "--rows-per-batch", "2", "--repeats", "1", "--no-memory",
]  # fmt: skip


class TestDecode:
    def test_every_variant_has_its_rates_and_gives_the_same_answers(
        self, words: list[str], tmp_path: Path
    ) -> None:
        decode.main([*words, *DECODE])
        content = written(tmp_path, "decode")
        rows = {row["variant"]: row for row in content["rows"]}
        assert tuple(rows) == decode.VARIANTS
        assert all(row["users_per_s"] > 0 and row["ratio_to_generate"] > 0 for row in rows.values())
        assert rows["generate"]["ratio_to_generate"] == 1.0
        for name in decode.FAST:
            equality = rows[name]["equality"]
            assert equality["same_top"] == equality["users"] > 0, equality["differing"]
            assert equality["max_abs_difference"] < equality["tolerance"]
            assert 0 < rows[name]["share_of_floor"] < 1
        assert rows["causal/vocab"]["equality"]["to"] == "generate"
        spared = rows["hatllm_segments/trie+states"], rows["hatllm_segments/trie"]
        assert spared[0]["layers_run"] < spared[1]["layers_run"] == 4
        # The same command reads its measurements back, with the machine as they found it; another
        # one is not mixed with them.
        content["hardware"]["load_before"] = 123.0
        (tmp_path / "results/decode.json").write_text(json.dumps(content))
        decode.main([*words, *DECODE])
        again = written(tmp_path, "decode")
        assert again["measured"] == content["measured"]
        assert again["hardware"] == content["hardware"]
        with pytest.raises(ValueError, match=r"other settings \(users\)"):
            decode.main([*words, *DECODE, "--users", "3"])

    def test_a_user_who_differs_is_looked_at_in_float64(
        self, words: list[str], tmp_path: Path
    ) -> None:
        arguments = decode.parser().parse_args([*words, *DECODE])
        bench = decode.Bench(arguments, "float32")
        batch = bench.batches(2)[0]
        differing = [{"user": user} for user in batch.example_id_B.tolist()]
        before = bench.answers("causal/vocab", batch)
        decode._explain(bench, "causal/vocab", batch, differing)
        assert all(entry["same_in_float64"] for entry in differing)
        assert bench.answers("causal/vocab", batch) == before  # back in float32
        bench.close()


def test_every_form_of_targets_has_the_plain_paths_loss_and_gradients(
    words: list[str], tmp_path: Path
) -> None:
    targets.main([*words, "--data", "custom", "--steps", "1"])
    rows = {row["variant"]: row for row in written(tmp_path, "targets")["rows"]}
    assert list(rows) == [f"{path}{form}" for form in targets.FORMS for path in targets.PATHS]
    for form in targets.FORMS:
        assert rows[form]["max_relative_loss_difference"] < rows[form]["tolerance"]
        assert rows[form]["max_relative_gradient_difference"] < rows[form]["tolerance"]
    assert rows["last"]["titles_per_row"] == 1
    assert rows["in place"]["titles_per_row"] == rows["branches"]["titles_per_row"] > 1


@pytest.mark.slow
def test_training_variants_have_the_plain_loops_loss_and_gradients(
    words: list[str], tmp_path: Path
) -> None:
    small = ["--data", "custom", "--steps", "1", "--check-batches", "2", "--large-batches", "1"]
    more = ["--large-rows", "12", "--dtype", "float32", "--no-memory"]
    train.main([*words, *small, *more])
    rows = {row["variant"]: row for row in written(tmp_path, "train")["rows"]}
    assert list(rows) == list(train.VARIANTS)
    for variant in train.FAST:
        equality = rows[variant.name]["equality"]
        assert equality["tensors"] == 4 * 2 * 2  # layers, projections, A and B
        assert equality["max_relative_loss_difference"] < equality["tolerance"]
        assert equality["max_relative_gradient_difference"] < equality["tolerance"]
        assert rows[variant.name]["ratio_to_plain"] > 0
    assert rows["hatllm_segments@large"]["rows_per_batch"] == 12
    assert rows["plain hatllm_segments@large"]["rows_per_batch"] == 6  # 8 and the 4 that are left


@pytest.mark.slow
def test_the_trie_is_built_in_a_process_of_its_own_and_searched(
    words: list[str], tmp_path: Path
) -> None:
    trie.main([*words, "--data", "custom", "--sizes", "60", "--users", "2", "--repeats", "1"])
    rows = written(tmp_path, "trie")["rows"]
    assert [(row["variant"], row["titles"]) for row in rows] == [
        (name, size) for size in (24, 60) for name in trie.SEARCHES
    ]
    assert all(row["build_s"] > 0 and row["build_peak_mb"] > 0 for row in rows)
    assert all(row["ratio_to_smallest"] == 1.0 for row in rows[:2])


def test_curves_vary_one_thing_at_a_time(words: list[str], tmp_path: Path) -> None:
    points = ["--histories", "1", "4", "--sizes", "40", "--beams", "1", "5"]
    curves.main([*words, "--data", "custom", *points, "--users", "2", "--repeats", "1"])
    rows = written(tmp_path, "curves")["rows"]
    assert [(row["axis"], row["value"]) for row in rows] == [
        ("history", 1), ("history", 4), ("titles", 24), ("titles", 40), ("beam", 1), ("beam", 5),
    ]  # fmt: skip
    short, long = (row["tokens_per_user"] for row in rows[:2])
    assert short < long
    narrow, wide = (row["tokens_per_user"] for row in rows[4:])
    assert narrow < wide


def test_sampled_losses_are_equal_and_measured_both_ways(tmp_path: Path) -> None:
    sampled.main(["--quick", "--output", str(tmp_path), "--items", "300", "--negatives", "1", "9"])
    rows = json.loads((tmp_path / "sampled.json").read_text())["rows"]
    assert [row["variant"] for row in rows] == [
        "plain, 1 sampled", "sparse, 1 sampled", "plain, 9 sampled", "sparse, 9 sampled",
    ]  # fmt: skip
    assert all(row["seconds"] > 0 and row["ratio_to_plain"] > 0 for row in rows)
    assert all(row["difference"] < 1e-5 for row in rows if row["difference"] is not None)
    assert (tmp_path / "sampled.png").stat().st_size > 1000


@pytest.mark.parametrize("where", ["here", pytest.param("in a process", marks=pytest.mark.slow)])
def test_preparing_is_measured_from_an_empty_cache(
    words: list[str], tmp_path: Path, where: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    if where == "here":

        def prepared(_: str, argv: list[str]) -> Any:
            prepare.main(argv)
            return json.loads(capsys.readouterr().out.splitlines()[-1])

        monkeypatch.setattr(prepare, "in_own_process", prepared)
    prepare.main([*words, "--names", "custom"])
    (row,) = written(tmp_path, "prepare")["rows"]
    assert (row["variant"], row["titles"]) == ("custom", 24)
    assert row["rows"] > 0 and row["tables_s"] > 0 and row["peak_mb"] > row["extra_mb"]


# --- Parts ---------------------------------------------------------------------------------------


def test_a_swap_of_two_titles_that_are_near_is_called_a_near_tie() -> None:
    theirs = [[(1, -1.0), (2, -2.0)], [(1, -1.0), (2, -2.0)], [(1, -1.0), (2, -2.0)]]
    ours = [[(1, -1.1), (2, -2.0)], [(2, -1.9999), (1, -2.0)], [(1, -1.0), (3, -1.5)]]
    ours[1], theirs[1] = [(2, -1.0), (1, -1.0)], [(1, -1.0), (2, -1.0)]
    found = joined([compare_answers(ours, theirs, [10, 11, 12], 1e-3)])
    assert (found["users"], found["same_top"]) == (3, 1)
    assert found["max_abs_difference"] == pytest.approx(0.1)
    assert [(e["user"], e["rank"], e["reason"]) for e in found["differing"]] == [
        (11, 1, "near-tie: two titles swapped"), (12, 2, "another title"),
    ]  # fmt: skip


def test_a_trie_of_dicts_by_hand() -> None:
    assert dict_trie([[1, 9], [1, 2, 9]]) == {1: {9: {}, 2: {9: {}}}}


def test_recombined_titles_are_different_begin_with_the_real_ones_and_end_as_they_do() -> None:
    real = Ragged.of([[1, 2, 3, 9], [4, 5, 9], [6, 7, 8, 5, 9]])
    made = recombined(real, 8, seed=0)
    titles = [tuple(made[row].tolist()) for row in range(8)]
    assert titles[:3] == [(1, 2, 3, 9), (4, 5, 9), (6, 7, 8, 5, 9)]
    assert len(set(titles)) == 8
    assert all(title[-1] == 9 and 9 not in title[:-1] for title in titles)
    again = recombined(real, 6, seed=0)
    assert len(again.offset) - 1 == 6
    assert trie_of(made).num_leaves == 8
    assert len(recombined(real, 2, seed=0).offset) - 1 == 2
    with pytest.raises(ValueError, match="1000 titles asked for"):
        recombined(real, 1000, seed=0)


def test_operations_are_counted_as_by_hand() -> None:
    model = tiny_llama()
    with counted(model) as work, torch.no_grad():
        model(torch.arange(10).view(2, 5))
    assert work == Work(layer_calls=4, layer_tokens=4 * 10, output_rows=10)
    sizes = Sizes.of(model)
    # q and o 32x32, k and v 32x16, three MLP matrices 32x64.
    assert sizes == Sizes(2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64, 32, 258 * 32)
    by_hand = 40 * (2 * sizes.linear + 4 * 32 * 3) + 10 * 2 * 258 * 32
    assert sizes.forward_flops(work, keys=3.0) == by_hand


def test_the_peak_is_what_the_work_took_and_gave_back() -> None:
    np.ones(200 << 17)  # 200 MB that came and went before
    found = peak_above_start(lambda: np.ones(100 << 17), "cpu")
    assert 90 < found["extra_mb"] < 150


@pytest.mark.slow
def test_the_profile_accounts_for_all_the_time(words: list[str], tmp_path: Path) -> None:
    profile.main([*words, "--data", "custom"])
    rows = {row["variant"]: row for row in written(tmp_path, "profile")["rows"]}
    for row in rows.values():
        assert sum(row["shares"].values()) == pytest.approx(1.0)
        assert row["shares"]["matrix products"] > 0 and row["product_gflop_per_s"] > 0
    assert rows["train hatllm"]["shares"]["compiled, elementwise"] == 0
    assert rows["train hatllm+compile"]["shares"]["compiled, elementwise"] > 0
