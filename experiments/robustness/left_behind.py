"""What a command has left in its folder: the numbers, and whether every file is whole."""

import hashlib
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import matplotlib.image
import polars as pl
from safetensors.torch import load_file

NUMBERS = ("metrics.json", "table.csv", "cells.csv", "results.csv", "table.md")
HASHES = ("data_hash", "split_hash", "split_hashes", "rows")  # of a manifest that has timings too


def exported(folder: Path) -> list[str]:
    """Which step each trained run answers with, and why."""
    found = []
    for path in sorted((folder / "outputs").rglob("environment.json")):
        chosen = json.loads(path.read_text()).get("exported")
        if chosen is not None:
            found.append(
                f"{path.parent.name}: step {chosen['step']} of {chosen['of_steps']}, "
                f"{chosen['why']}"
            )
    return found


def numbers(folder: Path) -> dict[str, str]:
    """A hash of every result below the outputs, by its path."""
    found = {}
    for path in sorted((folder / "outputs").rglob("*")):
        if (content := _content(path)) is not None:
            name = path.relative_to(folder).as_posix()
            found[name] = hashlib.sha256(content).hexdigest()[:16]
    return found


def _content(path: Path) -> bytes | None:
    """What must be equal of a file; None = nothing."""
    if path.name in NUMBERS:
        return path.read_bytes()
    if path.name.endswith("predictions.parquet"):
        return pl.read_parquet(path).write_json().encode()
    if path.name in ("adapter_model.safetensors", "model.safetensors"):
        tensors = sorted(load_file(path).items())
        return b"".join(name.encode() + value.numpy().tobytes() for name, value in tensors)
    if path.name == "environment.json":
        return json.dumps(json.loads(path.read_text()).get("exported")).encode()
    if path.name == "split_manifest.json":
        manifest = json.loads(path.read_text())
        return json.dumps([manifest[key] for key in HASHES]).encode()
    return None


def not_whole(folder: Path) -> list[str]:
    """Files under their final name that cannot be read to their end."""
    return [path.relative_to(folder).as_posix() for path in _final(folder) if not _is_whole(path)]


def _final(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        hidden = any(part.endswith(".part") for part in path.parts)
        if path.is_file() and not hidden:
            yield path


def _is_whole(path: Path) -> bool:
    try:
        match path.suffix:
            case ".json":
                json.loads(path.read_text())
            case ".parquet":
                pl.read_parquet(path)
            case ".csv":
                return path.read_text().endswith("\n")
            case ".safetensors":
                load_file(path)
            case ".ckpt":
                return zipfile.ZipFile(path).testzip() is None
            case ".png":
                matplotlib.image.imread(path)
            case ".yaml" | ".md" | ".tex":
                return path.stat().st_size > 0
    except FileNotFoundError:
        return True  # a cell that lives on has just replaced it
    except Exception:
        return False
    return True
