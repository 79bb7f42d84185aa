"""The runs of one server by name: loaded behind its back, and changed as a whole."""

import re
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from hatllm.runs.folder import is_finished
from hatllm.serve.refusal import Refusal
from hatllm.serve.served_run import ServedRun

Load = Callable[[Path], ServedRun]
NAME = re.compile(r"\w[\w.+=-]*")  # of a folder: no separator, no way up


class Fleet:
    """Which runs answer; the first is the default."""

    def __init__(self, folders: Sequence[Path], load: Load) -> None:
        """Name the runs; `start` loads them.

        Args:
            folders: Of finished runs; a run is called by its folder's name.
            load: Makes one ready to answer.

        Raises:
            ValueError: If two folders have one name.
        """
        self.folders = {folder.resolve().name: folder.resolve() for folder in folders}
        if len(self.folders) < len(folders):
            raise ValueError(
                f"task.run_folders={[str(folder) for folder in folders]} must have different "
                "names: requests choose a run by the name of its folder"
            )
        self.load = load
        self.runs: dict[str, ServedRun] = {}
        self.failure: Exception | None = None
        self._reloading = threading.Lock()

    @property
    def is_ready(self) -> bool:
        """Whether every run answers."""
        return len(self.runs) == len(self.folders)

    def start(self) -> None:
        """Load every run; where one cannot be loaded, keep why in ``failure``."""
        try:
            loaded = {name: self.load(folder) for name, folder in self.folders.items()}
        except Exception as error:  # raised again by the thread that serves
            self.failure = error
            return
        self.runs = loaded

    def run(self, name: str | None) -> ServedRun:
        """The run of a name; None = the default.

        Raises:
            Refusal: If nothing is ready (503) or there is no such run (404).
        """
        if not self.is_ready:
            raise Refusal(503, "not_ready", "the runs are being loaded", retry_after=1)
        if name is None:
            return next(iter(self.runs.values()))
        if name not in self.runs:
            raise Refusal(404, "no_such_run", "run names none of the runs of /v1/runs", "run")
        return self.runs[name]

    def reload(self, name: str | None, folder_name: str | None) -> ServedRun:
        """Load a run anew, or another in its place; until it is ready the old one answers.

        Args:
            name: Which run; None = the default.
            folder_name: Name of a folder beside the run's; None = the run's own.

        Raises:
            Refusal: If there is no such run, or it cannot be loaded.
        """
        old = self.run(name)
        folder = self._beside(old.folder, folder_name)
        if not self._reloading.acquire(blocking=False):
            raise Refusal(409, "reloading", "another reload is under way", retry_after=5)
        try:
            new = self.load(folder)
        except (ValueError, OSError) as error:
            message = f"{folder.name} cannot be loaded: {error}"
            raise Refusal(422, "cannot_load", message, "folder") from error
        finally:
            self._reloading.release()
        # A request reads the mapping once; it sees all of the old runs or all of the new.
        runs = {(new.name if run is old else n): (new if run is old else run)
                for n, run in self.runs.items()}  # fmt: skip
        self.folders = {n: run.folder for n, run in runs.items()}
        self.runs = runs
        return new

    def _beside(self, folder: Path, name: str | None) -> Path:
        """The folder of a name beside another one's; nothing else on the disk can be named."""
        if name is None:
            return folder
        beside = folder.parent / name
        if not NAME.fullmatch(name) or beside.resolve().parent != folder.parent:
            raise Refusal(422, "no_such_folder", "folder must be the name of a folder", "folder")
        if name in self.runs and name != folder.name:
            raise Refusal(409, "served_already", "folder is served already", "folder")
        if not is_finished(beside):
            raise Refusal(404, "no_such_folder", "folder holds no finished run", "folder")
        return beside
