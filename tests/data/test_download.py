import hashlib
import json
import re
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from hatllm.data.download import download_file

CONTENT = bytes(range(256)) * 4096  # 1 MiB
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class FileServer(ThreadingHTTPServer):
    """Serves CONTENT with ranges and can break off, or know no ranges."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.ranges: list[str | None] = []  # the Range header of each request
        self.break_after: list[int] = []  # bytes after which the next requests break off
        self.knows_ranges = True
        self.status = 200

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/file.bin"


class Handler(BaseHTTPRequestHandler):
    server: FileServer

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.ranges.append(asked)
        if self.server.status != 200:
            self.send_error(self.server.status)
            return
        start = int(re.findall(r"\d+", asked)[0]) if asked and self.server.knows_ranges else 0
        if start >= len(CONTENT):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(CONTENT)}")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        if start:
            last = len(CONTENT) - 1
            self.send_header("Content-Range", f"bytes {start}-{last}/{len(CONTENT)}")
        self.end_headers()
        limit = self.server.break_after.pop(0) if self.server.break_after else None
        self.wfile.write(CONTENT[start:] if limit is None else CONTENT[start : start + limit])

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[FileServer]:
    with FileServer() as http:
        threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}).start()
        yield http
        http.shutdown()


def fetch(server: FileServer, folder: Path, sha256: str | None = SHA256) -> Path:
    return download_file(server.url, folder / "x" / "file.bin", sha256, folder / "checksums.json")


def test_a_file_is_downloaded_once(server: FileServer, tmp_path: Path) -> None:
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    fetch(server, tmp_path)
    assert server.ranges == [None]
    assert not list(tmp_path.rglob("*.part"))


def test_a_broken_download_goes_on_where_it_broke_off(server: FileServer, tmp_path: Path) -> None:
    server.break_after = [300_000, 200_000]
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=300000-", "bytes=500000-"]


def test_a_later_call_goes_on_from_the_partial_file(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "file.bin.part").write_bytes(CONTENT[:1000])
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert server.ranges == ["bytes=1000-"]


def test_a_whole_partial_file_is_only_renamed(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "file.bin.part").write_bytes(CONTENT)
    assert fetch(server, tmp_path).read_bytes() == CONTENT


def test_a_partial_file_that_is_too_long_is_fetched_anew(
    server: FileServer, tmp_path: Path
) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "file.bin.part").write_bytes(CONTENT + b"more")
    assert fetch(server, tmp_path).read_bytes() == CONTENT


def test_a_server_without_ranges_sends_everything_again(server: FileServer, tmp_path: Path) -> None:
    server.knows_ranges = False
    server.break_after = [300_000]
    assert fetch(server, tmp_path).read_bytes() == CONTENT


def test_a_wrong_checksum_leaves_no_file(server: FileServer, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"SHA-256 {SHA256}, expected {'0' * 64}"):
        fetch(server, tmp_path, "0" * 64)
    assert not list(tmp_path.rglob("file.bin"))
    assert not list(tmp_path.rglob("*.part"))


def test_an_unknown_checksum_is_recorded_and_checked_from_then_on(
    server: FileServer, tmp_path: Path
) -> None:
    target = fetch(server, tmp_path, sha256=None)
    recorded = json.loads((tmp_path / "checksums.json").read_text())
    assert recorded["x/file.bin"]["sha256"] == SHA256
    target.write_bytes(CONTENT[:-1])
    with pytest.raises(ValueError, match=r"file\.bin has SHA-256 .*delete the file"):
        fetch(server, tmp_path, sha256=None)
    target.unlink()
    assert fetch(server, tmp_path, sha256=None).read_bytes() == CONTENT


def test_a_file_put_there_by_hand_is_taken(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "file.bin").write_bytes(CONTENT)
    fetch(server, tmp_path)
    assert server.ranges == []


def test_a_missing_file_is_not_asked_for_again(server: FileServer, tmp_path: Path) -> None:
    server.status = 404
    with pytest.raises(ConnectionError, match="404"):
        fetch(server, tmp_path)
    assert len(server.ranges) == 1


def test_offline_the_message_says_what_to_fetch_and_where_to_put_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    with socket.socket() as free:  # a port where nobody listens
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/file.bin"
    target = tmp_path / "file.bin"
    with pytest.raises(ConnectionError) as caught:
        download_file(url, target, SHA256, tmp_path / "checksums.json")
    assert f"could not download {url}" in str(caught.value)
    assert f"put it at {target}" in str(caught.value)
