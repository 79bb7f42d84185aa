"""Item titles as people read them."""

import html
import re

import polars as pl

# Tags that published metadata and shops leave in titles; other words in brackets are no tags.
TAG_NAMES = ("a|abbr|b|big|br|center|cite|code|del|div|em|font|h[1-6]|i|img|ins|li|mark|nobr|ol|p|"
             "q|s|small|span|strike|strong|sub|sup|table|td|th|tr|tt|u|ul|wbr")  # fmt: skip
TAG = re.compile(
    rf"</?(?:{TAG_NAMES})(?:\s[^<>]*)?/?>|<(?:{TAG_NAMES})\s[^<>]*=[^<>]*$",  # or cut off
    re.IGNORECASE,
)
LINE_TAG = re.compile(r"</?(?:br|div|h[1-6]|li|ol|p|table|td|th|tr|ul)\b", re.IGNORECASE)


def clean_title(title: str) -> str:
    """Return the title with HTML entities unescaped twice, without HTML tags, white space folded.

    Some shops escape twice (``&amp;quot;``). Line breaks would end a prompt's line.
    """
    text = html.unescape(html.unescape(title))
    if "<" in text:
        text = TAG.sub("", LINE_TAG.sub(r" \g<0>", text))  # a new line parts words
    return " ".join(text.split())


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


def cut_title(title: str, max_characters: int) -> str:
    """Return a title of at most ``max_characters``, cut between words, or a first word through."""
    if len(title) <= max_characters:
        return title
    head, following = title[:max_characters], title[max_characters]
    words = re.match(r"(.*\S)\s", head, re.DOTALL)
    if words and not following.isspace():
        head = words.group(1)
    return head.strip() or title.strip()[:max_characters]


def cut_titles(titles: pl.Series, max_characters: int | None) -> tuple[pl.Series, list[str]]:
    """Return the titles with long ones cut, and a note that says how many were.

    Args:
        titles: Prepared titles, Utf8 without nulls.
        max_characters: Longest title; None = any.
    """
    if max_characters is None:
        return titles, []
    num_cut = int((titles.str.len_chars() > max_characters).sum())
    if num_cut == 0:
        return titles, []
    texts = [cut_title(title, max_characters) for title in titles]
    note = f"{num_cut:,} titles were cut to data.max_title_characters={max_characters}"
    return pl.Series(titles.name, texts, dtype=pl.Utf8), [note]
