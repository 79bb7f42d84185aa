"""What an offline run of W&B has kept: its ``.wandb`` file, records in LevelDB's log format."""

import json
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BLOCK = 32 * 1024
HEADER = 7  # of the file, and of every piece of a record: checksum, length, kind
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


@dataclass
class Logged:
    """What W&B would show."""

    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    is_whole: bool = False


def read_offline_run(folder: Path, seconds: float = 30.0) -> Logged:
    """The run below a run folder; later records win, as on the server.

    W&B's own process writes the file, and may end a moment after the run: its last record is
    waited for.
    """
    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    until = time.monotonic() + seconds
    while True:
        logged = _read(path)
        if logged.is_whole:
            return logged
        assert time.monotonic() < until, f"{path} has no end"
        time.sleep(0.05)


def _read(path: Path) -> Logged:
    from wandb.proto.wandb_internal_pb2 import Record

    logged = Logged()
    for content in _records(path.read_bytes()):
        record = Record()
        record.ParseFromString(content)
        match record.WhichOneof("record_type"):
            case "run":
                logged.config |= _values(record.run.config.update)
            case "config":
                logged.config |= _values(record.config.update)
            case "history":
                row = _values(record.history.item)
                logged.history.append(row)
                logged.summary |= row  # of every curve its last value
            case "summary":
                logged.summary |= _values(record.summary.update)
            case "exit":
                logged.is_whole = True
    return logged


def _values(items: Any) -> dict[str, Any]:
    return {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items}


def _records(content: bytes) -> Iterator[bytes]:
    at, record = HEADER, b""
    while at + HEADER <= len(content):
        left = BLOCK - at % BLOCK
        if left < HEADER:  # the rest of a block is too short for a piece
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + HEADER])
        piece = content[at + HEADER : at + HEADER + length]
        record = piece if kind in (FULL, FIRST) else record + piece
        if kind in (FULL, LAST):
            yield record
        at += HEADER + length
