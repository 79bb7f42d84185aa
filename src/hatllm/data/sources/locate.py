"""Where a data set's source files lie: under data_root, in the cache, or on the network."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from hatllm.config import DataConfig
from hatllm.data.sources import amazon, custom, ml100k, ready, windows


@dataclass(frozen=True)
class SourceFiles:
    """The files of one source and how to read them.

    Attributes:
        form: ``ready``, ``ml100k``, ``amazon``, ``windows`` or ``custom``.
        paths: Role -> file. Roles of windows are split names and 'titles', of the others
            'interactions' and 'items'.
        notes: Anything a reader of the results should know.
    """

    form: str
    paths: dict[str, Path]
    notes: list[str] = field(default_factory=list)

    def fingerprint(self) -> str:
        """Return a hash of each file's name, size and modification time (not its contents)."""
        digest = hashlib.sha256(self.form.encode())
        for role, path in self.paths.items():
            stat = path.stat()
            digest.update(f"{role}={path.name},{stat.st_size},{stat.st_mtime_ns};".encode())
        return digest.hexdigest()


def locate_source(config: DataConfig, data_root: Path | None, cache_root: Path) -> SourceFiles:
    """Return the source's files, fetching what is neither under data_root nor in the cache.

    Raises:
        ConnectionError: If a file has to be fetched and cannot be.
        ValueError: If the source needs data_root and there is none, or files are missing there.
    """
    folder = None if data_root is None else data_root.expanduser() / (config.folder or config.name)
    match config.source:
        case "ml100k":
            ratings, films = ml100k.fetch_ml100k(cache_root)
            return SourceFiles("ml100k", {"interactions": ratings, "items": films})
        case "windows":
            return SourceFiles("windows", windows.find_windows(config, folder))
        case "custom":
            return SourceFiles("custom", custom.find_tables(config, data_root))
        case "amazon":
            return _locate_amazon(config, folder, cache_root)
        case _:
            raise ValueError(f"data.source={config.source!r} is not a source")


def _locate_amazon(config: DataConfig, folder: Path | None, cache_root: Path) -> SourceFiles:
    """Ready tables first, then the published files under data_root, then the network."""
    tables = None if folder is None else ready.find_ready_tables(folder)
    if tables is not None:
        notes = [f"ready tables were used; data.release={config.release} was not looked at"]
        return SourceFiles(
            "ready", dict(zip(("interactions", "items"), tables, strict=True)), notes
        )
    reviews, metadata = amazon.fetch_amazon(config, folder, cache_root)
    return SourceFiles("amazon", {"interactions": reviews, "items": metadata})
