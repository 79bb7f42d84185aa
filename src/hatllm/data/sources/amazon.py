"""Amazon reviews of 2014, 2018 and 2023 (McAuley et al.), as published.

2014 and 2018 publish 5-cores, 2023 all reviews (``data.min_interactions`` makes the core). The
metadata lines of 2014 are Python literals, not JSON. Times are Unix seconds of day resolution in
2014 and 2018, milliseconds in 2023.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from urllib.parse import urlparse

import polars as pl

from hatllm.config import DataConfig
from hatllm.data.download import download_file
from hatllm.data.json_lines import BLOCK_BYTES, BadRows, line_blocks, read_json_lines
from hatllm.data.sources.source_tables import SourceTables, rating_values, with_ids
from hatllm.files import CHECKSUMS_FILE

FIRST_ASIN = re.compile(r"^\{'asin': '([^'\\]+)'")
PAGE_SCRIPT = "getTime"  # 2018: some titles are scripts of the crawled page


@dataclass(frozen=True)
class Release:
    """Addresses and field names of one release."""

    reviews_url: str
    metadata_url: str
    user: str
    item: str
    time: str
    rating: str
    units_per_second: int


STANFORD = "https://snap.stanford.edu/data/amazon/productGraph/categoryFiles"
UCSD = "https://mcauleylab.ucsd.edu/public_datasets/data"
RELEASES = {
    "2014": Release(
        reviews_url=STANFORD + "/reviews_{category}_5.json.gz",
        metadata_url=STANFORD + "/meta_{category}.json.gz",
        user="reviewerID",
        item="asin",
        time="unixReviewTime",
        rating="overall",
        units_per_second=1,
    ),
    "2018": Release(
        reviews_url=UCSD + "/amazon_v2/categoryFilesSmall/{category}_5.json.gz",
        metadata_url=UCSD + "/amazon_v2/metaFiles2/meta_{category}.json.gz",
        user="reviewerID",
        item="asin",
        time="unixReviewTime",
        rating="overall",
        units_per_second=1,
    ),
    "2023": Release(
        reviews_url=UCSD + "/amazon_2023/raw/review_categories/{category}.jsonl.gz",
        metadata_url=UCSD + "/amazon_2023/raw/meta_categories/meta_{category}.jsonl.gz",
        user="user_id",
        item="parent_asin",
        time="timestamp",
        rating="rating",
        units_per_second=1000,
    ),
}


def fetch_amazon(config: DataConfig, folder: Path | None, cache_root: Path) -> tuple[Path, Path]:
    """Return the files of reviews and metadata: from ``folder`` if both lie there, else downloaded.

    Args:
        config: Names release and category, and may override addresses and checksums.
        folder: Where published files may lie already; None = nowhere.
        cache_root: Downloads are kept in ``downloads/`` there.

    Raises:
        ConnectionError: If a file cannot be fetched.
        ValueError: If ``folder`` holds only one of the two files, or a SHA-256 differs.
    """
    release = RELEASES[str(config.release)]
    reviews_url = config.reviews_url or release.reviews_url.format(category=config.category)
    metadata_url = config.metadata_url or release.metadata_url.format(category=config.category)
    local = _local_files(folder, [_file_name(reviews_url), _file_name(metadata_url)])
    if local is not None:
        return local
    downloads = cache_root / "downloads"
    checksums = downloads / CHECKSUMS_FILE
    target = downloads / f"amazon_{config.release}"
    return (
        download_file(
            reviews_url, target / _file_name(reviews_url), config.reviews_sha256, checksums
        ),
        download_file(
            metadata_url, target / _file_name(metadata_url), config.metadata_sha256, checksums
        ),
    )


def _file_name(url: str) -> str:
    return PurePosixPath(urlparse(url).path).name


def _local_files(folder: Path | None, names: list[str]) -> tuple[Path, Path] | None:
    found = [] if folder is None else [name for name in names if (folder / name).exists()]
    if folder is None or not found:
        return None
    if len(found) == 1:
        missing = names[0] if found[0] == names[1] else names[1]
        raise ValueError(f"{folder} holds {found[0]} but not {missing}; both are needed there")
    return folder / names[0], folder / names[1]


def read_amazon(
    reviews_file: Path, metadata_file: Path, release_name: str, rating_column: str | None = None
) -> SourceTables:
    """Read the reviews and titles of one category.

    User and item ids count from 1 by first appearance in the review file; a review that stands
    there twice (same user, item and time) is one interaction.

    Args:
        reviews_file: The reviews.
        metadata_file: The items.
        release_name: One of RELEASES.
        rating_column: The reviews' field of stars; None = they are not read.

    Raises:
        ValueError: If a gzip file is damaged or ends too early, or no review has stars.
    """
    release, bad_rows = RELEASES[release_name], BadRows()
    schema = {release.user: pl.Utf8, release.item: pl.Utf8, release.time: pl.Int64}
    if rating_column is not None:
        schema[rating_column] = pl.Utf8
    raw = read_json_lines(reviews_file, schema, bad_rows)
    reviews = raw.select(user=release.user, item=release.item, timestamp=release.time)
    if rating_column is not None:
        reviews = reviews.with_columns(rating=rating_values(raw[rating_column], reviews_file))
    missing_id = pl.col("user").is_null() | pl.col("item").is_null()
    reviews = bad_rows.drop(reviews, missing_id, "review without user or item")
    bad_time = pl.col("timestamp").is_null() | (pl.col("timestamp") < 0)
    reviews = bad_rows.drop(reviews, bad_time, "review with a bad timestamp")
    repeated = ~pl.struct("user", "item", "timestamp").is_first_distinct()
    reviews = bad_rows.drop(reviews, repeated, "review that stands there twice")
    items = _read_titles(metadata_file, release, release_name, set(reviews["item"]), bad_rows)
    tables = with_ids(reviews, items, bad_rows, notes=[])
    in_order = tables.interactions.sort("timestamp", maintain_order=True)  # before rounding
    seconds = pl.col("timestamp") // release.units_per_second
    return replace(tables, interactions=in_order.with_columns(seconds))


def _read_titles(
    path: Path, release: Release, release_name: str, reviewed: set[str], bad_rows: BadRows
) -> pl.DataFrame:
    """Titles of the reviewed items; a reviewed item without metadata counts as untitled."""
    if release_name == "2014":
        rows = list(_python_records(path, reviewed, bad_rows))
        items = pl.DataFrame(rows, schema={"item": pl.Utf8, "title": pl.Utf8}, orient="row")
    else:
        schema = {release.item: pl.Utf8, "title": pl.Utf8}
        items = read_json_lines(path, schema, bad_rows).rename({release.item: "item"})
        items = items.filter(pl.col("item").is_in(list(reviewed)))
    script = pl.col("title").str.contains(PAGE_SCRIPT, literal=True)
    scripts = items.filter(script)
    bad_rows.add("title that is a page's script", scripts["title"], scripts.height)
    items = items.with_columns(title=pl.when(~script).then("title"))
    without = pl.DataFrame({"item": sorted(reviewed - set(items["item"]))}, {"item": pl.Utf8})
    bad_rows.add("item without metadata", without["item"], without.height)
    return pl.concat([items, without], how="diagonal")


def _python_records(
    path: Path, reviewed: set[str], bad_rows: BadRows
) -> Iterator[tuple[str, str | None]]:
    """(asin, title) of each Python-literal line; lines of other items are not evaluated."""
    reason = f"line of {path.name} that is no Python literal"
    for block in line_blocks(path, BLOCK_BYTES):
        for line in block.decode("utf-8", errors="replace").split("\n"):
            start = FIRST_ASIN.match(line)
            if not line.strip() or (start and start.group(1) not in reviewed):
                continue
            try:
                record = ast.literal_eval(line)
                asin, title = record["asin"], record.get("title")
            except (ValueError, SyntaxError, TypeError, KeyError, AttributeError, MemoryError,
                    RecursionError):  # fmt: skip
                bad_rows.add(reason, [line], 1)
                continue
            if asin in reviewed:
                yield asin, None if title is None else str(title)
