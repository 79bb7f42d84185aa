"""Data files as they should not be: made-up tables, changed at random, and then their bytes."""

import gzip
import io
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from experiments.robustness.odd_exports import (
    EXPORT_CHANGES,
    Tables,
    Value,
    delimited,
    foreign_csv,
)

FORMS = ("csv", "tsv", "jsonl", "parquet", "csv.gz", "jsonl.gz")
ODD_TITLES = (
    "", " ", "\u200b", "👩‍👩‍👧‍👦 🎉", "מלחמה ושלום", "\u202eتفاح\u202c", "Cafe\u0301", "Café",
    "[/red] [bold]", "$x^{$ \\frac", "</s>", "<s>", "{title}", '"quoted", twice ""', "a\nb\tc",
    "a\x00b", "&amp;quot;", "&nbsp;", "\x1b[31mred", "NaN", "null", "-1", "a" * 3000, "\ufffd",
    "\U0010ffff", "|pipe|`tick`",
)  # fmt: skip
ODD_TIMES = (-1, 0, 2**62, -(2**62), 1e300, float("nan"), float("inf"), "soon", "", None, "1e5",
             "2024-01-01", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00")  # fmt: skip
ODD_IDS = (None, "", " ", "007", "12.0", 1.5, float("nan"), 2**62, -3, "u\x00", "🎉", "a,b", "NaN")


def tables(random_: random.Random) -> Tables:
    """A small shop: 4 to 14 users, 3 to 12 items."""
    num_items = random_.randint(3, 12)
    plays = [
        {"who": f"u{user}", "song": f"s{random_.randrange(num_items)}", "when": 1000 * user + step}
        for user in range(random_.randint(4, 14))
        for step in range(random_.randint(3, 7))
    ]
    songs = [{"song": f"s{item}", "name": f"Song {item * 37 % 101}"} for item in range(num_items)]
    return Tables(plays, songs)


def _odd(column: str, values: tuple[Value, ...]) -> Callable[[Tables, random.Random], None]:
    def change(made: Tables, random_: random.Random) -> None:
        rows = [row for row in (*made.plays, *made.songs) if column in row]
        for row in random_.sample(rows, min(len(rows), random_.randint(1, 5))):
            row[column] = random_.choice(values)

    return change


def _duplicate_titles(made: Tables, random_: random.Random) -> None:
    made.songs[-1]["name"] = made.songs[0].get("name")


def _prefix_title(made: Tables, random_: random.Random) -> None:
    made.songs[-1]["name"] = f"{made.songs[0].get('name')}{random_.choice(['', ' ', '!', ' 2'])}"


def _alike_titles(made: Tables, random_: random.Random) -> None:
    for row, name in zip(made.songs, ("Café", "Cafe\u0301", "Café ", "  Café"), strict=False):
        row["name"] = name


def _huge_title(made: Tables, random_: random.Random) -> None:
    made.songs[0]["name"] = random_.choice("aé🎉") * 10 ** random_.randint(3, 5)


def _one_item(made: Tables, random_: random.Random) -> None:
    made.songs = made.songs[:1]
    for row in made.plays:
        row["song"] = made.songs[0].get("song")


def _one_play_each(made: Tables, random_: random.Random) -> None:
    made.plays = list({row.get("who"): row for row in made.plays}.values())


def _some_users_one_play(made: Tables, random_: random.Random) -> None:
    made.plays += [
        {"who": f"new{i}", "song": made.songs[0].get("song"), "when": i} for i in range(3)
    ]


def _no_rows(made: Tables, random_: random.Random) -> None:
    random_.choice((made.plays, made.songs)).clear()


def _drop_column(made: Tables, random_: random.Random) -> None:
    rows = random_.choice((made.plays, made.songs))
    name = random_.choice(list(rows[0])) if rows else "who"
    for row in rows:
        row.pop(name, None)


def _wrong_types(made: Tables, random_: random.Random) -> None:
    name = random_.choice(("who", "song", "when", "name"))
    value = random_.choice(([1, 2], {"a": 1}, True, b"\xff\x00", 10**30, 0.1))
    for row in (*made.plays, *made.songs):
        if name in row:
            row[name] = value


def _shuffle(made: Tables, random_: random.Random) -> None:
    random_.shuffle(made.plays)
    random_.shuffle(made.songs)


def _repeat(made: Tables, random_: random.Random) -> None:
    rows = random_.choice((made.plays, made.songs))
    rows += [dict(row) for row in rows[: random_.randint(1, 8)]]


def _export_twice(made: Tables, random_: random.Random) -> None:
    made.plays = [dict(row) for row in made.plays for _ in range(2)]
    if random_.random() < 0.5:  # one export after the other
        made.plays = made.plays[::2] + made.plays[1::2]


def _unknown_items(made: Tables, random_: random.Random) -> None:
    made.songs = made.songs[: len(made.songs) // 2]


def _equal_times(made: Tables, random_: random.Random) -> None:
    for row in made.plays:
        row["when"] = 7


TABLE_CHANGES: dict[str, Callable[[Tables, random.Random], None]] = {
    "odd titles": _odd("name", ODD_TITLES),
    "odd times": _odd("when", ODD_TIMES),
    "odd users": _odd("who", ODD_IDS),
    "odd items": _odd("song", ODD_IDS),
    "no title": _odd("name", (None, "", " ")),
    "duplicate titles": _duplicate_titles,
    "a title begins another": _prefix_title,
    "titles that look alike": _alike_titles,
    "huge title": _huge_title,
    "one-item catalogue": _one_item,
    "one row a user": _one_play_each,
    "some users with one row": _some_users_one_play,
    "no rows": _no_rows,
    "missing column": _drop_column,
    "wrong types": _wrong_types,
    "unsorted": _shuffle,
    "repeated rows": _repeat,
    "every row twice": _export_twice,
    "unknown items": _unknown_items,
    "equal times": _equal_times,
    **EXPORT_CHANGES,
}


def _cut(content: bytes, random_: random.Random) -> bytes:
    return content[: random_.randrange(len(content) + 1)]


def _flip(content: bytes, random_: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(min(len(changed), random_.randint(1, 6))):
        changed[random_.randrange(len(changed))] = random_.randrange(256)
    return bytes(changed)


def _insert(*pieces: bytes) -> Callable[[bytes, random.Random], bytes]:
    def change(content: bytes, random_: random.Random) -> bytes:
        place = random_.randrange(len(content) + 1)
        return content[:place] + random_.choice(pieces) + content[place:]

    return change


def _recoded(content: bytes, random_: random.Random) -> bytes:
    text = content.decode("utf-8", errors="replace").replace("Song", "Sóng")
    return text.encode(random_.choice(("latin-1", "utf-16", "utf-8-sig", "utf-7")), "replace")


BYTE_CHANGES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "cut off": _cut,
    "flipped bytes": _flip,
    "NUL bytes": _insert(b"\x00", b"\x00" * 50),
    "stray quotes": _insert(b'"', b"'", b'""'),
    "stray separators": _insert(b",", b"\n", b"\r", b"\t,", b"\n\n\n"),
    "deep nesting": _insert(b"[" * 5000, b'{"a":' * 3000),
    "long line": _insert(b"x" * 200_000),
    "wrong encoding": _recoded,
    "empty file": lambda content, random_: b"",
    "garbage": lambda content, random_: random_.randbytes(random_.randint(1, 400)),
}


def encoded(rows: list[dict[str, Value]], form: str) -> bytes:
    """A table in one of FORMS.

    Raises:
        ValueError: If the values do not fit into a Parquet table.
    """
    match form.removesuffix(".gz"):
        case "jsonl":
            lines = (json.dumps(row, default=repr, ensure_ascii=False) for row in rows)
            content = "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogatepass")
        case "parquet":
            try:
                buffer = io.BytesIO()
                pl.DataFrame(rows, infer_schema_length=None, strict=False).write_parquet(buffer)
            except (pl.exceptions.PolarsError, TypeError, OverflowError) as error:
                raise ValueError("no Parquet table") from error
            content = buffer.getvalue()
        case plain:
            content = delimited(rows, "," if plain == "csv" else "\t")
    return gzip.compress(content, mtime=0) if form.endswith("gz") else content


@dataclass
class Files:
    """Two files on disk, how they were made, and how many rows they hold."""

    plays: Path
    songs: Path
    changes: list[str]
    num_plays: int | None  # None = bytes were changed
    num_songs: int | None


def write_files(random_: random.Random, folder: Path) -> Files:
    """One input: tables with none to three changes, in two forms, with changed bytes or not."""
    made = tables(random_)
    for name in random_.sample(list(TABLE_CHANGES), random_.choice((0, 1, 1, 2, 3))):
        if made.plays and made.songs:
            TABLE_CHANGES[name](made, random_)
        made.changes.append(name)
    paths = []
    bytes_changed = random_.random() < 0.4
    for stem, rows in (("plays", made.plays), ("songs", made.songs)):
        form = random_.choice(FORMS)
        try:
            if form == "csv" and random_.random() < 0.3:
                content = foreign_csv(rows, random_)
                made.changes.append("another separator or encoding")
            else:
                content = encoded(rows, form)
        except ValueError:
            form = "jsonl"
            content = encoded(rows, form)
        if bytes_changed and random_.random() < 0.6:
            name = random_.choice(list(BYTE_CHANGES))
            content = BYTE_CHANGES[name](content, random_)
            made.changes.append(f"{name} ({form})")
        path = folder / f"{stem}.{form}"
        path.write_bytes(content)
        paths.append(path)
    counts = (None, None) if bytes_changed else (len(made.plays), len(made.songs))
    return Files(paths[0], paths[1], made.changes or ["as it should be"], *counts)
