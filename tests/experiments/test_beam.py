"""The beam's error against a beam of dicts, and tables against records written by hand."""

import json
import shutil
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest
import torch
from cli import call_cli, smoke_words
from reference import END, Reference, dict_trie, prompt_pieces, title_ids
from shop import FIRST, SECOND
from toys import PROMPT, toy_catalogue, toy_frame, toy_lm

from experiments.paper.beam import measure
from experiments.paper.beam.losses import (
    loss_markdown,
    loss_table,
    lost_share,
    proven_of,
    token_table,
    write_tables,
)
from experiments.paper.beam.records import path_kinds
from experiments.speed.workload import composed
from hatllm.masks.schedule import build_schedule
from hatllm.model.backbone import byte_tokenizer, tiny_llama

pytestmark = pytest.mark.long

# Some first words have more titles than others: their mass draws the beam away from the rest.
NAMES = [f"{a} {b}" for place, a in enumerate(FIRST) for b in SECOND[: 1 + place % 4]]
TITLES = dict(enumerate(NAMES))
HISTORIES = [[3, 7, 3], [1], [0, 5, 2, 11, 9], [12, 4], [8, 8]]
TAU, TOP_K = 2.0, 3
WIDTHS = (3, 4, len(NAMES))
Prefix = tuple[int, ...]


@cache
def continuations(mask: str, history: Prefix) -> dict[Prefix, float]:
    """Log-probability of every prefix of every title, over the legal tokens, in float64."""
    schedule = build_schedule(composed("model=tiny", f"mask={mask}").mask, 4)
    model = Reference(tiny_llama(), schedule.letters, schedule.intra_scope, False, True)
    titles = [title_ids(PROMPT, title) for title in NAMES]
    pieces, root = prompt_pieces(PROMPT, [TITLES[item] for item in history]), dict_trie(titles)
    found = {(): 0.0}
    for ids in titles:
        logits, node = model.logits(pieces, ids[:-1]), root
        for depth, token in enumerate(ids):
            legal = sorted(node)
            log_probs = (logits[depth][legal] / TAU).log_softmax(0)
            step = float(log_probs[legal.index(token)])
            found[*ids[: depth + 1]] = found[*ids[:depth]] + step
            node = node[token]
    return found


def dict_beam(log_prob: dict[Prefix, float], width: int) -> tuple[list[Prefix], set[Prefix]]:
    """Titles found, best first, and every prefix that was weighed."""
    hypotheses: list[Prefix] = [()]
    finished: list[Prefix] = []
    weighed: set[Prefix] = set()
    while hypotheses:
        if len(finished) == width and log_prob[hypotheses[0]] <= log_prob[finished[-1]]:
            break
        every = [p for p in log_prob if p and p[:-1] in hypotheses]
        weighed |= set(every)
        best = sorted(every, key=lambda p: -log_prob[p])[: 2 * width]
        ends = [p for p in best[:width] if p[-1] == END]
        finished = sorted(finished + ends, key=lambda p: -log_prob[p])[:width]
        hypotheses = [p for p in best if p[-1] != END][:width]
    return finished[:TOP_K], weighed


@pytest.fixture
def widths(monkeypatch: pytest.MonkeyPatch) -> None:
    beams = {f"beam {w}": ("decode=beam", f"decode.beam_width={w}") for w in WIDTHS}
    monkeypatch.setattr(measure, "DECODERS", {"exact": ("decode=exact",), **beams})


def toy_measurement(mask: str) -> measure.Measurement:
    config = composed(
        "model=tiny", f"mask={mask}", f"loss.tau={TAU}", f"decode.top_k={TOP_K}",
        "model.dtype=float32",
    )  # fmt: skip
    parts: Any = SimpleNamespace(
        catalogue=toy_catalogue(TITLES),
        dataset=SimpleNamespace(splits={"test": toy_frame(HISTORIES, [0] * len(HISTORIES))}),
    )
    lm = toy_lm(build_schedule(config.mask, 4))
    return measure.Measurement(config, parts, lm, byte_tokenizer().convert_ids_to_tokens)


@torch.inference_mode()
@pytest.mark.parametrize("mask", ["causal", "hatllm"])
@pytest.mark.parametrize("is_timed", [True, False])
def test_what_a_beam_loses_and_where_is_what_a_beam_of_dicts_loses(
    mask: str, is_timed: bool, widths: None
) -> None:
    measurement = toy_measurement(mask)
    trie, num_lost = measurement.parts.catalogue.trie, 0
    records = measurement.records(measurement.rows_of(10), is_timed)

    def prefix(leaf: int) -> Prefix:
        return tuple(trie.token_N[trie.path_to(torch.tensor([leaf]))[0]].tolist())

    for record, history in zip(records, HISTORIES, strict=True):
        log_prob = continuations(mask, tuple(history))
        titles = sorted((p for p in log_prob if p and p[-1] == END), key=lambda p: -log_prob[p])
        proven = [prefix(leaf) for leaf in record["decoders"]["exact"]["leaves"]]
        assert proven == titles[:TOP_K] and record["decoders"]["exact"]["is_proven"]
        for width in WIDTHS:
            found, weighed = dict_beam(log_prob, width)
            part = record["decoders"][f"beam {width}"]
            assert [prefix(leaf) for leaf in part["leaves"]] == found
            depths = [sum(p[:d] in weighed for d in range(1, len(p) + 1)) for p in proven]
            expected = [None if p in found else d for p, d in zip(proven, depths, strict=True)]
            assert part["fell"] == expected
            lost = [p for p in proven if p not in found]
            assert lost_share(record, f"beam {width}") == pytest.approx(len(lost) / TOP_K)
            num_lost += len(lost)
            if width == len(NAMES):
                assert not lost
    assert num_lost > 0  # else nothing was tried


def test_a_tokens_place_and_text_are_told() -> None:
    catalogue = toy_catalogue({1: "Alien", 2: "Aliens", 3: "Antz 2", 4: "Up!"})
    trie, tokens = catalogue.trie, byte_tokenizer().convert_ids_to_tokens
    leaves = trie.leaf_of_item(torch.tensor([1, 2, 3, 4])).tolist()
    alien, aliens, antz, up = path_kinds(trie, leaves, tokens)
    start = [("first", "word"), ("branching", "inside a word"),
             *[("forced", "inside a word")] * 3]  # fmt: skip
    assert alien == [*start, ("branching", "end"), ("forced", "end")]
    assert aliens == [*start, ("branching", "inside a word"), *[("forced", "end")] * 2]
    assert antz[-4:-1] == [("forced", "word"), ("forced", "digit"), ("forced", "end")]
    assert up == [("first", "word"), ("forced", "inside a word"), ("forced", "mark"),
                  *[("forced", "end")] * 2]  # fmt: skip


def record(user: int, fell: list[int | None], rank: int | None, proven: bool) -> dict[str, Any]:
    """Two proven titles, of two tokens and of three."""
    kinds = [[("first", "word"), ("branching", "end")],
             [("first", "word"), ("forced", "digit"), ("branching", "end")]]  # fmt: skip
    found = [leaf for leaf, depth in zip((5, 6), fell, strict=True) if depth is None]
    return {
        "example_id": user, "user_id": user, "target_item": 3, "kinds": kinds,
        "decoders": {
            "exact": {"leaves": [5, 6], "target_rank": 1, "is_proven": proven, "seconds": 4.0},
            "beam 10": {"leaves": [*found, 9], "target_rank": rank, "fell": fell, "seconds": None},
        },
    }  # fmt: skip


RECORDS = [
    record(1, [None, 1], None, True),
    record(2, [None, None], 1, True),
    record(3, [2, 2], 3, True),
    record(4, [1, 1], None, False),
]


def test_losses_and_falls_are_counted_over_the_users_whose_list_is_proven() -> None:
    records = proven_of(RECORDS)
    assert [one["user_id"] for one in records] == [1, 2, 3]
    exact, beam = loss_table("causal", records).rows(named=True)
    assert (exact["lost"], exact["users_with_loss"], exact["seconds"]) == (0, 0, 4.0)
    assert beam["lost"] == pytest.approx((0.5 + 0 + 1) / 3)
    assert beam["users_with_loss"] == pytest.approx(2 / 3)
    assert (beam["HR@10"], beam["HR@10_minus"]) == pytest.approx((2 / 3, -1 / 3))
    assert beam["HR@10_low"] <= -1 / 3 <= beam["HR@10_high"] and beam["seconds"] is None
    counts = {
        (row["by"], row["kind"]): (row["weighed"], row["fell"], row["share"])
        for row in token_table("causal", records).rows(named=True)
    }
    # Weighed: user 1 both of the first title and one of the second, user 2 all five, user 3 two
    # and two.
    assert counts["place", "first"] == (6, 1, pytest.approx(1 / 3))
    assert counts["place", "branching"] == (4, 1, pytest.approx(1 / 3))
    assert counts["place", "forced"] == (2, 1, pytest.approx(1 / 3))
    assert counts["text", "digit"] == (2, 1, pytest.approx(1 / 3))
    assert counts["depth", "2"] == (5, 2, pytest.approx(2 / 3))
    assert counts["depth", "3"] == (1, 0, 0.0)
    assert "50.0% ± " in loss_markdown(loss_table("causal", records))


def test_tables_say_how_many_users_are_left_out(tmp_path: Path) -> None:
    write_tables({"causal": RECORDS}, tmp_path)
    assert "are left out (causal: 1 of 4)" in (tmp_path / "decoders.md").read_text()
    assert pl.read_csv(tmp_path / "losses.csv")["decoder"].to_list() == ["exact", "beam 10"]


def test_a_run_of_which_no_list_is_proven_is_counted_and_has_no_row(tmp_path: Path) -> None:
    unproven = [record for record in RECORDS if record not in proven_of(RECORDS)]
    write_tables({"msl": RECORDS, "igd": unproven}, tmp_path)
    assert set(pl.read_csv(tmp_path / "losses.csv")["run"]) == {"msl"}
    assert "(msl: 1 of 4, igd: 1 of 1)" in (tmp_path / "decoders.md").read_text()
    with pytest.raises(ValueError, match=r"igd: no exact list is proven within decode\.max_exp"):
        write_tables({"igd": unproven}, tmp_path)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("beam")
    with pytest.MonkeyPatch.context() as patch:
        words = smoke_words(folder)
        assert call_cli(patch, folder, *words, "run_name=llm") == 0
        assert call_cli(patch, folder, *words, "model=knn", "run_name=knn") == 0
    return folder / "outputs/llm"


def test_a_stopped_measurement_goes_on_and_ends_in_tables_and_a_figure(
    run: Path, tmp_path: Path
) -> None:
    words = [str(run), "--users", "5", "--timed", "2", "--batch", "2", "--output", str(tmp_path)]
    measure.main(words)
    path = run / "beam/records.jsonl"
    whole = path.read_text()
    records = [json.loads(line) for line in whole.splitlines()]
    seconds = [one["decoders"]["beam 20"]["seconds"] is None for one in records]
    assert seconds == [False, False, True, True, True]
    wide = [one["decoders"]["beam 40"] for one in records]  # wider than the shop's 24 titles
    assert all(depth is None for part in wide for depth in part["fell"])
    path.write_text("".join(whole.splitlines(keepends=True)[:3])[:-40])  # killed while it wrote
    measure.main(words)
    again = {one["example_id"]: one for one in map(json.loads, path.read_text().splitlines()[-3:])}
    for one in records[2:]:
        for name, part in one["decoders"].items():
            assert again[one["example_id"]]["decoders"][name]["leaves"] == part["leaves"]
    files = {"losses.csv", "tokens.csv", "decoders.md", "beam.png"}
    assert {p.name for p in tmp_path.iterdir()} == files
    tables = [(tmp_path / name).read_text() for name in sorted(files - {"beam.png"})]
    measure.main([str(run), "--tables", "--output", str(tmp_path / "again")])
    again = [(tmp_path / "again" / name).read_text() for name in sorted(files - {"beam.png"})]
    assert again == tables


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("nowhere", "no such folder; give the folder of a finished run"),
        ("knn", "is a run of model=knn; give an LLM's"),
        ("knn --tables", "has no records yet; leave --tables out"),
        ("other decoders", "has records of other decoders; --fresh measures anew"),
    ],
)
def test_what_does_not_fit_is_told_in_one_line(
    case: str, said: str, run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    name, *more = ["llm"] if case == "other decoders" else case.split()
    folder = run.parent / name
    if case == "other decoders":
        (run / "beam").mkdir(exist_ok=True)
        (run / "beam/records.jsonl").write_text('{"decoders": {"beam 7": {}}}\n')
    with pytest.raises(SystemExit) as stop:
        measure.main([str(folder), *more, "--output", str(tmp_path)])
    assert stop.value.code == 2 and said in capsys.readouterr().err


def test_runs_of_one_label_are_told_apart_by_their_folders(run: Path, tmp_path: Path) -> None:
    folders = [shutil.copytree(run, tmp_path / name) for name in ("msl", "bear")]
    words = ["--users", "3", "--fresh", "--output"]
    measure.main([str(folders[0]), *words, str(tmp_path)])
    measure.main([*map(str, folders), *words, str(tmp_path / "both")])
    (label,) = set(pl.read_csv(tmp_path / "losses.csv")["run"])
    assert label not in ("msl", "bear")
    assert set(pl.read_csv(tmp_path / "both/losses.csv")["run"]) == {"msl", "bear"}
