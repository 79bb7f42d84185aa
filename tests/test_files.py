import errno
import json
import os
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl
import pytest
import torch
from safetensors.torch import save_file

from hatllm.files import (
    damaged_file,
    folder_written_whole,
    record_checksums,
    write_csv,
    write_json,
    write_table,
    write_text,
    written_whole,
)


@contextmanager
def full_disk(num_bytes: int = 100) -> Iterator[None]:
    """No file can grow beyond so many bytes; the system says so as it does for a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


TABLE = pl.DataFrame({"a": list(range(5000))})


@pytest.mark.parametrize("kind", ["text", "json", "parquet", "csv", "safetensors", "checkpoint"])
def test_a_full_disk_is_one_error_naming_the_file_and_keeps_what_was_there(
    tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def write() -> None:
        match kind:
            case "text":
                write_text(path, "x" * 5000)
            case "json":
                write_json(path, {"x": "x" * 5000})
            case "parquet":
                write_table(path, TABLE)
            case "csv":
                write_csv(path, TABLE)
            case "safetensors":
                with written_whole(path) as partial:
                    save_file({"x": torch.zeros(5000)}, partial)
            case "checkpoint":
                with written_whole(path) as partial, partial.open("wb") as file:
                    torch.save({"x": torch.zeros(5000)}, file)

    with full_disk(), pytest.raises(OSError, match=r"cannot write .*file: .* is kept") as raised:
        write()
    assert raised.value.errno == errno.EFBIG
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    write()
    assert path.read_bytes() != b"old"


def test_whoever_is_stopped_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "old")
    with pytest.raises(KeyboardInterrupt), written_whole(path) as partial:
        partial.write_text("ha")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    for content in ("old", "new"):
        with folder_written_whole(folder) as partial:
            (partial / content).write_text(content)
    assert [p.name for p in folder.iterdir()] == ["new"]
    with pytest.raises(ValueError, match="stop"), folder_written_whole(folder) as partial:
        (partial / "half").write_text("half")
        raise ValueError("stop")
    assert [p.name for p in folder.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [folder]


def test_a_folder_that_may_only_be_read_is_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    write_text(tmp_path / "file", "old")
    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(OSError, match=r"cannot write .*file: Read-only file system"):
        write_text(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "old"


def test_leftovers_of_killed_writers_go_when_they_are_old(tmp_path: Path) -> None:
    old, young = tmp_path / ".file.1234.part", tmp_path / ".file.5678.part"
    for path in (old, young):
        path.write_text("half")
    os.utime(old, (time.time() - 7200,) * 2)
    write_text(tmp_path / "file", "whole")
    assert sorted(p.name for p in tmp_path.iterdir()) == [young.name, "file"]


def test_a_damaged_file_is_found(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text("content")
    assert damaged_file(tmp_path) == tmp_path / "checksums.json"
    record_checksums(tmp_path)
    assert damaged_file(tmp_path) is None
    os.utime(tmp_path / "a", (1, 1))
    assert damaged_file(tmp_path) is None  # read again, and found to be the same
    assert json.loads((tmp_path / "checksums.json").read_text())["a"]["mtime_ns"] == 10**9
    (tmp_path / "b").write_text("c0ntent")
    assert damaged_file(tmp_path) == tmp_path / "b"
    (tmp_path / "b").write_text("conten")
    assert damaged_file(tmp_path) == tmp_path / "b"
    (tmp_path / "b").unlink()
    assert damaged_file(tmp_path) == tmp_path / "b"
