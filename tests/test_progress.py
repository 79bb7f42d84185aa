"""Progress in a terminal and in a log file."""

import io

import pytest

from hatllm.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_log_file_gets_a_line_every_half_minute_and_the_last_state(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, log = [1000.0], io.StringIO()
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    bar = Progress(total=100, desc="train", unit="step", file=log)
    for _ in range(100):
        now[0] += 1.0
        bar.update()
    bar.close()
    lines = log.getvalue().splitlines()
    counts = [line.split("|")[2].split("[")[0].strip() for line in lines]
    assert counts == ["0/100", "30/100", "60/100", "90/100", "100/100"]
    assert "01:00<00:40, " in lines[2] and "step/s" in lines[2]
    assert "\r" not in log.getvalue()


def test_a_terminal_gets_a_bar_that_is_written_over(capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal()
    with Progress(total=2, mininterval=0, file=terminal) as bar:
        bar.update()
        bar.update()
    assert terminal.getvalue().count("\r") >= 3 and terminal.getvalue().count("\n") == 1


def test_a_bar_that_is_off_writes_nothing() -> None:
    log = io.StringIO()
    with Progress(total=2, disable=True, file=log) as bar:
        bar.update(2)
    assert log.getvalue() == ""
