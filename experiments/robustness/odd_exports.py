"""Tables as databases, spreadsheets and data frames export them, and CSV files of any form."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import polars as pl

Value = Any
START = 1_600_000_000  # 2020-09-13, Unix seconds


@dataclass
class Tables:
    """Interactions and items, as lists of records, and what was done to them."""

    plays: list[dict[str, Value]]
    songs: list[dict[str, Value]]
    changes: list[str] = field(default_factory=list)


def _mixed_units(made: Tables, random_: random.Random) -> None:
    factors = random_.sample((1, 10**3, 10**6, 10**9), random_.randint(2, 4))
    for day, row in enumerate(made.plays):
        row["when"] = (START + 86_400 * day) * random_.choice(factors)


def _number_dates(made: Tables, random_: random.Random) -> None:
    form = random_.choice(("%Y%m%d", "%Y%m%d%H%M", "%Y%m%d%H%M%S"))
    for hour, row in enumerate(made.plays):
        row["when"] = int(datetime.fromtimestamp(START + 3600 * hour, UTC).strftime(form))
    if random_.random() < 0.3:
        random_.choice(made.plays)["when"] = random_.choice((20209913, 0, 5, START, 10**10))


def _float_ids(made: Tables, random_: random.Random) -> None:
    """Integer ids, as floats in one file, both or a few rows; perhaps one row has none."""
    column, base = random_.choice(("who", "song")), random_.choice((0, 0, 2**53))
    rows = [row for row in (*made.plays, *made.songs) if column in row]
    numbers = {repr(row[column]): base + place for place, row in enumerate(rows)}
    for row in rows:
        row[column] = numbers[repr(row[column])]
    share = random_.choice((0.2, 1.0))
    for row in random_.choice((made.plays, made.songs, rows)):
        if column in row and random_.random() < share:
            whole = row[column]
            row[column] = random_.choice((float(whole), f"{whole}.0", f" {whole}.0"))
    if random_.random() < 0.5:
        random_.choice(made.plays)[column] = None


def _listed_twice(made: Tables, random_: random.Random) -> None:
    blank = (None, "", "&nbsp;", "<b></b>")
    untitled = [row | {"name": random_.choice(blank)} for row in made.songs]
    made.songs = [*untitled, *made.songs] if random_.random() < 0.5 else [*made.songs, *untitled]


def _tagged_titles(made: Tables, random_: random.Random) -> None:
    for row in made.songs:
        end = random_.choice(("", "</span>"))
        row["name"] = f'<span id="productTitle">{row.get("name")}{end}'


EXPORT_CHANGES: dict[str, Callable[[Tables, random.Random], None]] = {
    "mixed units": _mixed_units,
    "dates as numbers": _number_dates,
    "float ids": _float_ids,
    "items listed twice": _listed_twice,
    "tags in titles": _tagged_titles,
}


def delimited(
    rows: list[dict[str, Value]], separator: str, quote_style: Any = "necessary"
) -> bytes:
    """A table as text in UTF-8, one row a line."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    texts = [[_cell(row.get(name)) for name in names] for row in rows]
    table = pl.DataFrame(texts, schema=dict.fromkeys(names, pl.Utf8), orient="row")
    return table.write_csv(separator=separator, quote_style=quote_style).encode()


def _cell(value: Value) -> str | None:
    return None if value is None else str(value)


def foreign_csv(rows: list[dict[str, Value]], random_: random.Random) -> bytes:
    """A CSV file as other programs write it: separator, quotes, line ends and encoding."""
    separator, quotes = random_.choice(",;\t|"), random_.choice(("necessary", "always"))
    text = delimited(rows, separator, quotes).decode()
    text = text.replace("Song", random_.choice(("Song", "Sóng")))
    text = text.replace("\n", random_.choice(("\n", "\r\n")))
    return text.encode(random_.choice(("utf-8", "utf-8-sig", "utf-16", "cp1252")), "replace")
