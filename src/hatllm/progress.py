"""Progress of long work: a bar that moves in a terminal, a line every half minute in a log file."""

import sys
from typing import Any

from tqdm import tqdm

SECONDS_A_LINE = 30.0


class Progress(tqdm):
    """tqdm's bar; where nobody sees it move, whole lines with rate and remaining time."""

    def __init__(self, *things: Any, **options: Any) -> None:
        """As tqdm's; the file is the standard error output where none is given."""
        self.is_log = not (options.get("file") or sys.stderr).isatty()
        if self.is_log:
            options |= {"mininterval": SECONDS_A_LINE, "maxinterval": SECONDS_A_LINE}
        super().__init__(*things, **options)

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Show the state, or the message in its place; whether there was anything to show."""
        if not self.is_log:
            return bool(super().display(msg, pos))
        text = str(self) if msg is None else msg
        if text:
            self.fp.write(f"{text}\n")
            self.fp.flush()
        return bool(text)

    def close(self) -> None:
        """The last state stays; a log file has it as its last line."""
        if self.is_log and not self.disable:
            self.display()
            self.leave = False
        super().close()
