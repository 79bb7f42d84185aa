import hashlib
import struct

import polars as pl
import pytest

from hatllm.data.table_cache import table_hash


def test_the_hash_is_the_sha256_of_what_the_docstring_says() -> None:
    frame = pl.DataFrame({"n": [1, -2], "t": ["é", None], "h": [[5, 6], []]})
    content = b"n:2;" + struct.pack("<2q", 1, -2)
    content += b"t:2;" + struct.pack("<2q", 2, -1) + "é".encode()
    content += b"h:2;" + struct.pack("<2q", 2, 0) + struct.pack("<2q", 5, 6)
    assert table_hash(frame) == hashlib.sha256(content).hexdigest()


def test_any_change_changes_the_hash() -> None:
    frames = [
        pl.DataFrame({"h": [[1, 2], [3]]}),
        pl.DataFrame({"h": [[1], [2, 3]]}),
        pl.DataFrame({"h": [[1, 3], [2]]}),
        pl.DataFrame({"k": [[1, 2], [3]]}),
        pl.DataFrame({"h": ["1", "2"]}),
        pl.DataFrame({"h": ["12", ""]}),
    ]
    assert len({table_hash(frame) for frame in frames}) == len(frames)


def test_a_column_without_a_hash_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match="'x'"):
        table_hash(pl.DataFrame({"x": [0.5]}))
