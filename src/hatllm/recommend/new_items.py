"""Titles that training never saw, put into a finished run's catalogue."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import polars as pl
import torch

from hatllm.config import Config
from hatllm.data.prepare import cache_root
from hatllm.data.prompt import PromptBook, Ragged, build_prompt_book
from hatllm.decode.catalogue import Catalogue
from hatllm.model.backbone import load_tokenizer
from hatllm.recommend.answerer import LlmAnswerer
from hatllm.recommend.answers import Answerer
from hatllm.recommend.id_answerer import IdAnswerer
from hatllm.recommend.item_finder import ItemFinder


def with_new_items(
    config: Config,
    items: pl.DataFrame,
    answerer: Answerer,
    find: ItemFinder,
    titles: Sequence[str],
) -> tuple[pl.DataFrame, Answerer, list[int]]:
    """A catalogue with more titles, and what answers with them.

    Args:
        config: The run's settings.
        items: Its catalogue: item_id, title, source_id.
        answerer: What answers with it.
        find: Finds its items.
        titles: Those that the catalogue has already stay as they are.

    Returns:
        Catalogue, answerer, and the item id of each title. A new item's source_id is its title.

    Raises:
        ValueError: If the run knows items by id, or a title has no text.
    """
    _check(config, titles)
    new = [title for title in dict.fromkeys(titles) if title not in find.by_title]
    first = int(items["item_id"].max()) + 1  # type: ignore[arg-type]  # ids are integers
    added = pl.DataFrame(
        {"item_id": range(first, first + len(new)), "title": new, "source_id": new},
        schema=items.select("item_id", "title", "source_id").schema,
    )
    item_of = find.by_title | dict(zip(new, added["item_id"].to_list(), strict=True))
    item_ids = [item_of[title] for title in titles]
    if not new:
        return items, answerer, item_ids
    items = pl.concat([items.select(added.columns), added])
    if isinstance(answerer, LlmAnswerer):
        answerer.replace_catalogue(_grown(config, answerer.parts.catalogue, added))
        return items, answerer, item_ids
    return items, IdAnswerer(config, items), item_ids


def _check(config: Config, titles: Sequence[str]) -> None:
    kind, needs_ids = config.model.kind, None
    if kind not in ("llm", "titles"):
        needs_ids = f"model={config.model.name}"
    elif config.model.item_vectors is not None:
        needs_ids = "model.item_vectors"
    elif config.decode.name == "d3":
        needs_ids = "decode=d3"
    if needs_ids is not None:
        raise ValueError(
            f"{needs_ids} knows items by id and nothing of items that it has not seen; an LLM "
            "that reads titles alone and model=titles can take new ones"
        )
    for title in titles:
        if not title.strip():
            raise ValueError(f"titles: {title!r} has no text")


def _grown(config: Config, catalogue: Catalogue, added: pl.DataFrame) -> Catalogue:
    """The catalogue with the new titles at its end; they alone are tokenised.

    Where titles have shares a new one has the smallest of them, that of a title never seen.
    """
    more = build_prompt_book(
        load_tokenizer(config.model, cache_root(config)), config.data.prompt,
        added["item_id"].to_list(), added["title"].to_list(),
    )  # fmt: skip
    grown, log_share_I = Catalogue.of(book_with(catalogue.book, more)), catalogue.log_share_I
    if log_share_I is None:
        return grown
    unseen_I = log_share_I.min().expand(len(more.item_id_I))
    return grown.with_prior(torch.cat([log_share_I, unseen_I]))


def book_with(book: PromptBook, more: PromptBook) -> PromptBook:
    """One book of two by the same tokenizer and template; the second's ids and titles are new."""
    return replace(
        book,
        item_id_I=np.concatenate([book.item_id_I, more.item_id_I]),
        title_I=np.concatenate([book.title_I, more.title_I + int(book.title_I.max()) + 1]),
        history_item=_joined(book.history_item, more.history_item),
        target=_joined(book.target, more.target),
        shown_I=np.concatenate([book.shown_I, more.shown_I]),
    )


def _joined(one: Ragged, other: Ragged) -> Ragged:
    offset = np.concatenate([one.offset, other.offset[1:] + one.offset[-1]])
    return Ragged(np.concatenate([one.flat, other.flat]), offset)
