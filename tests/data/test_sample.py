import hashlib

import polars as pl

from hatllm.data.split import sample_rows


def rows(num_rows: int) -> pl.DataFrame:
    return pl.DataFrame({"example_id": range(num_rows), "target": range(num_rows)})


def test_a_sample_keeps_the_order_of_the_rows() -> None:
    sampled = sample_rows(rows(1000), 100, seed=42)
    assert sampled.height == 100
    assert sampled["example_id"].is_sorted()
    assert sampled["example_id"].to_list() != list(range(100))


def test_a_smaller_sample_lies_inside_a_larger_one() -> None:
    small, large = (set(sample_rows(rows(1000), n, seed=7)["example_id"]) for n in (50, 400))
    assert small < large


def test_the_sample_depends_on_the_seed_alone() -> None:
    one, again, other = (sample_rows(rows(500), 20, seed)["example_id"] for seed in (1, 1, 2))
    assert one.equals(again)
    assert not one.equals(other)


def test_the_sample_is_spread_evenly() -> None:
    mean = sample_rows(rows(10_000), 2_000, seed=3)["example_id"].to_numpy().mean()
    assert abs(mean - 5_000) < 4 * 10_000 / (12 * 2_000) ** 0.5  # four standard errors


def test_no_limit_or_a_large_one_keeps_all_rows() -> None:
    assert sample_rows(rows(10), None, seed=1).height == 10
    assert sample_rows(rows(10), 11, seed=1).height == 10


def splitmix64(example_id: int, seed: int) -> int:
    """The same rank in plain integers."""
    limit = 2**64
    x = int.from_bytes(hashlib.sha256(str(seed).encode()).digest()[:8], "little")
    x = (x + example_id * 0x9E3779B97F4A7C15) % limit
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % limit
    x = (x ^ x >> 27) * 0x94D049BB133111EB % limit
    return x ^ x >> 31


def test_the_sample_is_the_same_on_every_machine() -> None:
    lowest = sorted(range(100), key=lambda example_id: splitmix64(example_id, 42))[:5]
    sampled = sample_rows(rows(100), 5, seed=42)["example_id"].to_list()
    assert sampled == sorted(lowest) == [19, 44, 47, 81, 88]
