"""A small shop for end-to-end tests: 24 titles, 60 users, made by arithmetic."""

from pathlib import Path

import polars as pl

FIRST = ("Red", "Blue", "Old", "New", "Tiny", "Grand")
SECOND = ("Bicycle", "Boat", "Book", "Lamp")


def write_shop(folder: Path) -> list[str]:
    """Write interactions.csv and items.csv; returns the overrides that read them."""
    folder.mkdir(parents=True, exist_ok=True)
    titles = [f"{a} {b}" for a in FIRST for b in SECOND]
    pl.DataFrame({"sku": [f"s{i}" for i in range(24)], "name": titles}).write_csv(
        folder / "items.csv"
    )
    rows = [
        (f"u{user}", f"s{(user * 5 + step * (1 + user % 3)) % 24}", 1000 * user + step)
        for user in range(60)
        for step in range(6 + user % 3)
    ]
    pl.DataFrame(rows, schema=["who", "sku", "when"], orient="row").write_csv(
        folder / "interactions.csv"
    )
    return [
        "data=custom",
        f"data.interactions_file={folder / 'interactions.csv'}",
        f"data.items_file={folder / 'items.csv'}",
        "data.user_column=who",
        "data.item_column=sku",
        "data.time_column=when",
        "data.title_column=name",
        "data.min_interactions=1",
    ]
