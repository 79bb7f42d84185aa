"""What is read of a run folder whose files were damaged."""

from pathlib import Path

import pytest

from hatllm.runs.run_files import read_environment, read_identity, read_manifest, read_metrics


@pytest.mark.parametrize(
    "damage", [b"", b'{"label": "x", "se', b"[1]", b"\xff\xfe\x00{", b"[" * 100_000]
)
def test_a_damaged_json_file_of_a_run_is_named(tmp_path: Path, damage: bytes) -> None:
    for name, read in (
        ("run.json", read_identity), ("metrics.json", read_metrics),
        ("environment.json", read_environment), ("split_manifest.json", read_manifest),
    ):  # fmt: skip
        (tmp_path / name).write_bytes(damage)
        with pytest.raises(ValueError, match=f"{name} is damaged"):
            read(tmp_path)
