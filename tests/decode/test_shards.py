"""Predictions by way of shards against predictions in one go."""

import os
from pathlib import Path

import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal
from toys import Compose, toy_catalogue, toy_frame, toy_lm

from hatllm.config import Config
from hatllm.decode import shards as shards_module
from hatllm.decode.predict import collected, predict, predict_into
from hatllm.decode.shards import Shards
from hatllm.masks.schedule import build_schedule
from hatllm.model.masked_lm import MaskedLM

# Users decoded beside others are padded otherwise: float32 sums in another order.
CLOSE = 1e-4


@pytest.fixture
def frame() -> pl.DataFrame:
    """The toy users five times over, each time with other example ids."""
    toys = toy_frame()
    ids = pl.col("example_id")
    return pl.concat([toys.with_columns(ids + 100 * copy) for copy in range(5)])


def settings(compose_config: Compose, users_per_batch: int = 2) -> Config:
    return compose_config("mask=hatllm", f"decode.users_per_batch={users_per_batch}",
                          "decode.beam_width=3", "decode.top_k=3")  # fmt: skip


def model(config: Config) -> MaskedLM:
    return toy_lm(build_schedule(config.mask, 4))


def as_process(patch: pytest.MonkeyPatch, rank: int, world_size: int) -> None:
    patch.setattr(shards_module, "process_rank", lambda: (rank, world_size))


def decode_into(folder: Path, frame: pl.DataFrame, config: Config) -> Shards:
    shards = Shards(folder, config.task.batches_a_shard)
    predict_into(shards, model(config), toy_catalogue(), frame, config, "test")
    return shards


def same(table: pl.DataFrame, expected: pl.DataFrame) -> None:
    assert_frame_equal(table, expected, rel_tol=0, abs_tol=CLOSE)
    for column in ("example_id", "target_rank", "target_item_rank", "top_items"):
        assert table[column].to_list() == expected[column].to_list()


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("users_per_batch", [1, 7, 32])
def test_any_processes_and_batches_and_order_give_the_one_table(
    compose_config: Compose, frame: pl.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    world_size: int, users_per_batch: int,
) -> None:  # fmt: skip
    config = settings(compose_config, users_per_batch)
    expected = predict(model(config), toy_catalogue(), frame, config, "test")
    shuffled = frame.sample(fraction=1.0, shuffle=True, seed=3)
    for rank in reversed(range(world_size)):
        as_process(monkeypatch, rank, world_size)
        shards = decode_into(tmp_path, shuffled, config)
    same(collected(shards, shuffled), expected)


def test_a_stopped_evaluation_decodes_only_what_is_left(
    compose_config: Compose, frame: pl.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(compose_config)
    config.task.batches_a_shard = 1
    write, written = Shards.write, []

    def write_twice(self: Shards, rows: pl.DataFrame) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        write(self, rows)
        written.append(rows)

    with monkeypatch.context() as patched:
        patched.setattr(Shards, "write", write_twice)
        with pytest.raises(KeyboardInterrupt):
            decode_into(tmp_path, frame, config)
    done = {i for rows in written for i in rows["example_id"]}
    assert 0 < len(done) < frame.height
    left = Shards(tmp_path, 1).left_of(frame)
    assert set(left["example_id"]) == set(frame["example_id"]) - done
    shards = decode_into(tmp_path, frame, config)
    assert sum(pl.read_parquet(path).height for path in tmp_path.iterdir()) == frame.height
    same(collected(shards, frame), predict(model(config), toy_catalogue(), frame, config, "test"))


def test_other_processes_than_before_may_end_an_evaluation(
    compose_config: Compose, frame: pl.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(compose_config)
    as_process(monkeypatch, 1, 3)  # the two others are killed before their first shard
    decode_into(tmp_path, frame, config)
    for rank in range(2):
        as_process(monkeypatch, rank, 2)
        shards = decode_into(tmp_path, frame, config)
    rows = collected(shards, frame)
    same(rows, predict(model(config), toy_catalogue(), frame, config, "test"))


def test_half_a_file_is_no_shard(
    compose_config: Compose, frame: pl.DataFrame, tmp_path: Path
) -> None:
    config = settings(compose_config)
    config.task.batches_a_shard = None
    decode_into(tmp_path, frame, config)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-20])
    (tmp_path / "0000-abc.part").write_bytes(b"PAR1")
    assert Shards(tmp_path, None).left_of(frame).height == frame.height
    shards = decode_into(tmp_path, frame, config)
    assert collected(shards, frame).height == frame.height


def test_a_process_whose_first_one_is_gone_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_process(monkeypatch, 1, 2)
    shards = Shards(tmp_path, 1)
    shards.write(pl.DataFrame({"example_id": [1]}))
    monkeypatch.setattr(os, "getppid", lambda: 1)
    with pytest.raises(SystemExit):
        shards.write(pl.DataFrame({"example_id": [2]}))


def test_the_model_is_in_training_mode_again_after_decoding(
    compose_config: Compose, frame: pl.DataFrame, tmp_path: Path
) -> None:
    config = settings(compose_config)
    lm = model(config).train()
    predict_into(Shards(tmp_path, 1), lm, toy_catalogue(), frame, config, "test")
    assert lm.training and torch.is_grad_enabled()
