"""Ready tables with each item's asin for a title, as benchmarks of item ids have their items.

    python experiments/paper/baselines/asins.py DATA_ROOT/toys OTHER_ROOT/toys

So no interaction is dropped because its item has no title, and no two items share one.
"""

import shutil
import sys
from pathlib import Path

import polars as pl

from hatllm.data.sources.ready import INTERACTIONS_FILE, ITEMS_FILE
from hatllm.files import write_table


def without_titles(source: Path, folder: Path) -> None:
    """Write the tables of a folder into another one.

    Args:
        source: Holds ``interactions.parquet`` and an ``items.parquet`` with the column asin.
        folder: Is made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source / INTERACTIONS_FILE, folder / INTERACTIONS_FILE)
    items = pl.read_parquet(source / ITEMS_FILE, columns=["item_id", "asin"])
    write_table(folder / ITEMS_FILE, items.with_columns(title=pl.col("asin")))


if __name__ == "__main__":
    without_titles(*map(Path, sys.argv[1:]))
