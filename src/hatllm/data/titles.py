"""Item titles as people read them."""

import html

import polars as pl


def clean_title(title: str) -> str:
    """Return the title with HTML entities unescaped twice and white space folded.

    Some shops escape twice (``&amp;quot;``). Line breaks would end a prompt's line.
    """
    return " ".join(html.unescape(html.unescape(title)).split())


def prepared_titles(titles: pl.Series, clean: bool) -> pl.Series:
    """Return the titles, cleaned where ``clean``; blank ones become null.

    Args:
        titles: Titles as the source has them, Utf8, null = untitled.
        clean: False keeps the source's strings, entities and all.

    Returns:
        Utf8 of the same length.
    """
    texts = (None if text is None or not text.strip() else text for text in titles)
    cleaned = ((clean_title(text) or None) if clean and text else text for text in texts)
    return pl.Series(titles.name, list(cleaned), dtype=pl.Utf8)
