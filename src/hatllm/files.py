"""Files and folders that are there whole or not at all, and how a damaged one is told.

All writes of the project go through here: into a temporary file beside the target, to the disk, and
under the target's name in one step. A process killed at any moment leaves the old file or the new
one. What a killed process leaves behind is hidden (`.NAME.XXXX.part`) and removed by a later write.

`CHECKSUMS_FILE` in a folder of a cache records each file's SHA-256, size and modification time. A
file that has not been touched since its last check is not read again.
"""

import glob
import hashlib
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import polars as pl

CHECKSUMS_FILE = "checksums.json"
# What polars raises for a file it cannot read; a panic of its Rust code is no Exception.
POLARS_ERRORS = (pl.exceptions.PolarsError, pl.exceptions.PanicException)
STALE_S = 3600.0  # a temporary file that nobody has written to for so long is a killed process's


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Give a temporary path to write to; on leaving, what was written takes the target's name.

    Args:
        path: The target; its folder is made if it is not there.

    Yields:
        A path in the same folder. After an error it is removed and the target is as it was.

    Raises:
        OSError: If the file cannot be written, a library's own error for a full disk included.
    """
    with _saying_which(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = _temporary_name(path)
        try:
            yield partial
            _to_disk(partial)
            os.replace(partial, path)
            _to_disk(path.parent)
        except BaseException:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            raise


@contextmanager
def folder_written_whole(folder: Path) -> Iterator[Path]:
    """Give a temporary folder to fill; on leaving it takes the place of the target.

    Args:
        folder: The target; the folder above it is made if it is not there.

    Yields:
        An empty folder beside it. After an error it is removed and the target is as it was.

    Raises:
        OSError: If it cannot be written.
    """
    with _saying_which(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = _temporary_name(folder)
        before = partial.with_name(f"{partial.name}.old.part")
        try:
            partial.mkdir()
            yield partial
            for path in partial.rglob("*"):
                _to_disk(path)
            with suppress(FileNotFoundError):
                os.replace(folder, before)
            os.replace(partial, folder)
            _to_disk(folder.parent)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            if before.exists() and not folder.exists():
                os.replace(before, folder)
            raise
        shutil.rmtree(before, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file, UTF-8."""
    with written_whole(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file; what JSON does not know is written as its string, NaN is refused."""
    write_text(path, json.dumps(value, indent=2, default=str, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        ValueError: If it holds none: cut off, damaged, something else. Names the file.
        OSError: If it cannot be read.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged, it is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} is damaged: it holds a {type(found).__name__}, not an object")
    return found


def write_table(path: Path, table: pl.DataFrame) -> None:
    """Write a Parquet file."""
    with written_whole(path) as partial:
        table.write_parquet(partial)


def write_csv(path: Path, table: pl.DataFrame) -> None:
    """Write a CSV file."""
    with written_whole(path) as partial:
        table.write_csv(partial)


def file_sha256(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def record_checksums(
    folder: Path, names: Iterable[str] | None = None, record: str = CHECKSUMS_FILE
) -> None:
    """Write down the checksums of files that have just been made.

    Args:
        folder: Holds the files.
        names: Those to record; None = all in the folder.
        record: File to write them to, in the folder.
    """
    if names is None:
        names = [path.name for path in folder.iterdir() if path.is_file()]
    chosen = sorted(set(names) - {record})
    entries = {
        name: {"sha256": file_sha256(folder / name), **_stamp(folder / name)} for name in chosen
    }
    write_json(folder / record, entries)


def damaged_file(folder: Path, record: str = CHECKSUMS_FILE) -> Path | None:
    """The first file that is not as `record_checksums` found it; None = all are whole.

    Args:
        folder: Holds the files.
        record: Holds their checksums; a record that is not there is a damaged file.
    """
    try:
        entries: dict[str, dict[str, Any]] = json.loads((folder / record).read_text("utf-8"))
    except (OSError, ValueError):
        return folder / record
    fresh: dict[str, dict[str, Any]] = {}
    for name, entry in entries.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != entry["bytes"]:
            return path
        if _stamp(path)["mtime_ns"] != entry["mtime_ns"]:
            if file_sha256(path) != entry["sha256"]:
                return path
            fresh[name] = entry | _stamp(path)
    if fresh:
        with suppress(OSError):  # a cache that may only be read
            write_json(folder / record, entries | fresh)
    return None


def _stamp(path: Path) -> dict[str, Any]:
    status = path.stat()
    return {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns}


def _temporary_name(path: Path) -> Path:
    """A free name beside the target, and the leftovers of killed writers removed."""
    for old in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        with suppress(OSError):
            if time.time() - old.stat().st_mtime > STALE_S:
                shutil.rmtree(old) if old.is_dir() else old.unlink()
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")


def _to_disk(path: Path) -> None:
    """Wait until the disk has it: after a power failure a renamed file must not be empty."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _saying_which(path: Path) -> Iterator[None]:
    """Name the target in any error of the system, whichever library met it."""
    try:
        yield
    except Exception as error:  # polars and safetensors have errors of their own for a full disk
        found = re.search(r"\(os error (\d+)\)", str(error))
        number = int(found.group(1)) if found else getattr(error, "errno", None)
        if number is None:
            raise
        reason = f"cannot write {path}: {os.strerror(number)}; what was there is kept"
        raise OSError(number, reason) from error
