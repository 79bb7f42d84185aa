"""`model.dtype=auto`: told by the processor's flags, or by a product in each type."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from toys import Compose

from hatllm import hardware as room
from hatllm.hardware import cpu_dtype, fastest_dtype, measured, processor

X86 = frozenset({"sse2", "avx2", "avx512f"})


def timer(float32: list[float], bfloat16: list[float]) -> Callable[[str], float]:
    """Gives these milliseconds, one after the other."""
    times: dict[str, Iterator[float]] = {"float32": iter(float32), "bfloat16": iter(bfloat16)}
    return lambda dtype: next(times[dtype])


def never(dtype: str) -> float:
    raise AssertionError("nothing should be measured")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [(X86, "float32"), (X86 | {"avx512_bf16", "amx_bf16"}, "bfloat16")],
    ids=["no bfloat16", "AMX"],
)
def test_the_flags_of_a_processor_decide_where_they_can(
    flags: frozenset[str], expected: str, tmp_path: Path
) -> None:
    assert cpu_dtype("one", flags, tmp_path / "times.json", never) == expected


@pytest.mark.parametrize(
    "flags", [X86 | {"avx512_bf16"}, frozenset()], ids=["AVX512-BF16 alone", "no flags known"]
)
@pytest.mark.parametrize(
    ("bfloat16", "expected"),
    [(1.0, "bfloat16"), (3.0, "bfloat16"), (3.9, "float32"), (14.0, "float32")],
)
def test_where_flags_do_not_tell_bfloat16_must_be_clearly_faster(
    flags: frozenset[str], bfloat16: float, expected: str, tmp_path: Path
) -> None:
    times = timer([4.0] * 6, [bfloat16] * 6)
    assert cpu_dtype("one", flags, tmp_path / "times.json", times) == expected


def test_busy_moments_and_the_first_product_do_not_count() -> None:
    noisy = timer([0.1, 90.0, 4.1, 50.0, 4.0, 60.0], [0.1, 2.0, 80.0, 99.0, 70.0, 2.2])
    assert measured(noisy) == {"float32": 4.0, "bfloat16": 2.0}


def test_a_processor_is_measured_once_and_another_one_for_itself(tmp_path: Path) -> None:
    path, none = tmp_path / "cache" / "times.json", frozenset[str]()
    assert cpu_dtype("one", none, path, timer([4.0] * 6, [1.0] * 6)) == "bfloat16"
    assert cpu_dtype("other", none, path, timer([4.0] * 6, [9.0] * 6)) == "float32"
    for name, expected in (("one", "bfloat16"), ("other", "float32")):
        assert cpu_dtype(name, none, path, never) == expected


def test_a_real_product_takes_milliseconds_and_no_random_number(tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    times = measured(room.product_milliseconds)
    assert torch.equal(torch.rand(1), expected)
    assert all(0 < milliseconds < 1000 for milliseconds in times.values())


def test_a_gpu_decides_where_one_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for is_here, is_native, expected in (
        (True, True, "bfloat16"),
        (True, False, "float32"),
        (False, False, "bfloat16"),
    ):
        monkeypatch.setattr(torch.cuda, "is_available", lambda here=is_here: here)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, x=is_native, **__: x)
        assert fastest_dtype("gpu", tmp_path) == expected


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("processor : 0\nmodel name\t: A B\nflags\t\t: fpu sse2\n", ("A B", {"fpu", "sse2"})),
        ("processor : 0\nFeatures\t: fp bf16\n", (None, {"fp", "bf16"})),
        ("", (None, set())),
    ],
)
def test_the_processor_is_read_from_the_system(
    lines: str, expected: tuple[str | None, set[str]], tmp_path: Path
) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(lines)
    name, flags = processor(path)
    assert flags == expected[1]
    assert name == expected[0] if expected[0] else name


@pytest.mark.parametrize("fastest", ["bfloat16", "float32"])
def test_a_composed_run_has_the_type_of_this_machine(
    fastest: str, compose_config: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hatllm.compose.fastest_dtype", lambda accelerator, cache: fastest)
    choices = ["model=smollm2_135m", "model=llama3_2_1b", "model=huggingface model.source=a/b"]
    for number, words in enumerate(choices):
        seed = f"seed={number + 100 * (fastest == 'float32')}"  # composed anew
        assert compose_config(*words.split(), seed).model.dtype == fastest
    assert compose_config("model=sasrec", "seed=70").model.dtype == "float32"
    assert compose_config("model=tiny", "seed=70").model.dtype == "float32"
    assert compose_config("model=smollm2_135m", "model.dtype=bfloat16").model.dtype == "bfloat16"
