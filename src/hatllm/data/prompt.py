"""One prompt builder for training and decoding: every segment is tokenised on its own.

Prompt: prefix | history item 0 | ... | history item n-1 | response template | title, end token.

Dimension key: I items, B batch, L sequence, J supervised titles of the batch, T their tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hatllm.data.targets import Supervised, shown_tokens, supervised_titles
from hatllm.masks.layer_masks import Tokens
from hatllm.masks.patterns import PREFIX, RESPONSE, restart_positions

if TYPE_CHECKING:
    from hatllm.config import PromptConfig

IntArray = NDArray[np.int64]

# Beyond every vocabulary: from here on a token id is a row of the catalogue.
FIRST_ITEM_TOKEN = 2**30


@dataclass(frozen=True)
class Ragged:
    """Many token sequences in one flat array."""

    flat: IntArray
    offset: IntArray  # one more than there are sequences

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]]) -> "Ragged":
        """Pack rows of different lengths."""
        offset = np.cumsum([0, *map(len, rows)], dtype=np.int64)
        flat = np.fromiter((token for row in rows for token in row), np.int64, offset[-1])
        return cls(flat, offset)

    def __getitem__(self, row: int) -> IntArray:
        return self.flat[self.offset[row] : self.offset[row + 1]]

    @property
    def length(self) -> IntArray:
        """Tokens of each row."""
        return np.diff(self.offset)


@dataclass(frozen=True)
class PromptBook:
    """The catalogue and the template, tokenised once."""

    item_id_I: IntArray  # ascending
    title_I: IntArray  # number of each item's title; items that share a title have one number
    history_item: Ragged  # tokens of each item inside a history
    target: Ragged  # tokens of each title, end token included
    prefix: IntArray
    response: IntArray
    pad_id: int
    opening: int  # tokens of an item inside a history before those of its title
    shown_I: IntArray  # tokens that an item's title and its place in a history share after these

    def rows_of(self, item_ids: IntArray) -> IntArray:
        """Row of each item id in the catalogue.

        Raises:
            ValueError: If an id is not in the catalogue.
        """
        row = np.searchsorted(self.item_id_I, item_ids).clip(max=len(self.item_id_I) - 1)
        unknown = item_ids[self.item_id_I[row] != item_ids]
        if len(unknown):
            raise ValueError(f"item_id {int(unknown[0])} is not in the catalogue")
        return row

    def prompt_length(self, history_rows: IntArray) -> int:
        """Tokens of the prompt up to where the title begins."""
        return (
            len(self.prefix)
            + int(self.history_item.length[history_rows].sum())
            + len(self.response)
        )


def build_prompt_book(
    tokenizer: Any,
    config: "PromptConfig",
    item_ids: Sequence[int],
    titles: Sequence[str],
    item_tokens: bool = False,
) -> PromptBook:
    """Tokenise the template and every title.

    Args:
        tokenizer: A transformers tokenizer with an end token.
        config: The template texts.
        item_ids: Catalogue ids, each once.
        titles: One title an id.
        item_tokens: Whether items of a history end in their own token (`hatllm.model.item_tokens`).

    Returns:
        The tokenised catalogue, by ascending item id.

    Raises:
        ValueError: If there is no end token, or a title has no tokens or holds the end token.
    """
    end_id = tokenizer.eos_token_id
    catalogue = sorted(zip(item_ids, titles, strict=True), key=itemgetter(0))
    template = _template(tokenizer, config)
    history_items = _with_titles(tokenizer, config.history_item, catalogue)
    if item_tokens:
        history_items = [[*ids, FIRST_ITEM_TOKEN + row] for row, ids in enumerate(history_items)]
    titles_I = [[*row, end_id] for row in _with_titles(tokenizer, config.target, catalogue)]
    opening = _token_ids(tokenizer, config.history_item.partition("{title}")[0])
    return PromptBook(
        np.asarray([item_id for item_id, _ in catalogue], np.int64),
        _numbered([title for _, title in catalogue]),
        Ragged.of(history_items),
        Ragged.of(titles_I),
        *template,
        end_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
        len(opening),
        shown_tokens(history_items, titles_I, opening),
    )


def _token_ids(tokenizer: Any, text: str) -> list[int]:
    """Without special tokens."""
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _template(tokenizer: Any, config: "PromptConfig") -> tuple[IntArray, IntArray]:
    """Tokens before the history and after it; special tokens, but the end, stand in the first."""
    prefix: list[int] = tokenizer(config.prefix)["input_ids"]
    if prefix and prefix[-1] == tokenizer.eos_token_id:
        prefix = prefix[:-1]
    response = _token_ids(tokenizer, config.response)
    if not prefix and not response:
        raise ValueError("data.prompt.prefix and data.prompt.response are both empty")
    return np.asarray(prefix, np.int64), np.asarray(response, np.int64)


def _with_titles(
    tokenizer: Any, template: str, catalogue: Sequence[tuple[int, str]]
) -> list[list[int]]:
    """Tokens of a template around each title of (item id, title)."""
    if (end_id := tokenizer.eos_token_id) is None:
        raise ValueError(f"tokenizer {tokenizer.name_or_path!r} has no end token (eos_token)")
    texts = [template.replace("{title}", title) for _, title in catalogue]
    rows: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
    for (item_id, title), row in zip(catalogue, rows, strict=True):
        if not row or end_id in row:
            wrong = "holds the end token" if row else "has no tokens"
            raise ValueError(f"item_id {item_id}: its title {title!r} {wrong}")
    return rows


def _numbered(titles: Sequence[str]) -> IntArray:
    """A number for each title, equal ones the same."""
    return np.unique(np.asarray(titles, object), return_inverse=True)[1].astype(np.int64)


@dataclass
class Batch:
    """Prompts, right-padded, with or without the title after them."""

    example_id_B: Tensor
    target_item_B: Tensor
    input_ids_BL: Tensor
    valid_BL: Tensor  # False on padding
    tokens: Tokens
    prompt_length_B: Tensor  # tokens before the title
    book_index_BL: Tensor  # place in `history_item.flat` followed by `response`; -1 = neither
    # Teacher forcing; empty without targets. The hidden state at (row, column) predicts the token.
    target_row_T: Tensor
    target_column_T: Tensor
    target_token_T: Tensor
    title_T: Tensor  # which supervised title the token is of
    title_item_J: Tensor
    title_length_J: Tensor  # tokens of the title that are supervised, from its first
    title_weight_J: Tensor  # of the title in the loss; those of one training row sum to 1

    def to(self, device: torch.device | str, **_: Any) -> "Batch":
        """The same batch on another device."""
        moved = {
            name: value.to(device) for name, value in vars(self).items() if torch.is_tensor(value)
        }
        segments = (self.tokens.segment_BL, self.tokens.position_BL, self.tokens.restart_BL)
        return replace(self, tokens=Tokens(*(t.to(device) for t in segments)), **moved)

    @property
    def num_rows(self) -> int:
        """Examples in the batch."""
        return len(self.example_id_B)


def build_batch(
    book: PromptBook,
    example_ids: Sequence[int],
    histories: Sequence[IntArray],
    targets: Sequence[int],
    target_is_item: bool,
    with_target: bool,
    in_place: str | None = None,
) -> Batch:
    """Lay examples out as one right-padded batch.

    Args:
        book: The tokenised catalogue.
        example_ids: Identity of each example.
        histories: Item ids of each history, oldest first.
        targets: Item id of each target.
        target_is_item: Whether the title is a segment of its own; otherwise it continues the
            response template.
        with_target: Whether the title follows the prompt (training, teacher forcing).
        in_place: How to weigh the titles of the history, supervised where they stand
            (`hatllm.data.targets`); None = the target's title alone is supervised.

    Returns:
        A batch of len(example_ids) rows. The end token is predicted, never fed.
    """
    rows = [
        _lay_out(book, history, target, target_is_item, with_target, in_place)
        for history, target in zip(histories, targets, strict=True)
    ]
    ids, segments, book_indices, prompt_lengths, told = zip(*rows, strict=True)
    return Batch(
        torch.tensor(list(example_ids), dtype=torch.int64),
        torch.tensor(list(targets), dtype=torch.int64),
        _padded(ids, book.pad_id),
        *_places(segments),
        torch.tensor(prompt_lengths),
        _padded(book_indices, -1),
        *_teacher_forcing(book, told),
    )


def _places(segments: Sequence[IntArray]) -> tuple[Tensor, Tokens]:
    """Where a padded batch has tokens (B, L), and the segment and positions of each."""
    segment_BL = _padded(segments, RESPONSE)
    length_B1 = torch.tensor([[len(row)] for row in segments])
    valid_BL = torch.arange(segment_BL.shape[1]) < length_B1
    position_BL = (valid_BL.cumsum(1) - 1).clamp(min=0)
    return valid_BL, Tokens(segment_BL, position_BL, restart_positions(segment_BL, valid_BL))


def _padded(rows: Sequence[IntArray], padding: int) -> Tensor:
    """Rows of different lengths, padded on the right. Shape (B, L), int64."""
    lengths = [len(row) for row in rows]
    padded_BL = torch.full((len(rows), max(lengths)), padding, dtype=torch.int64)
    for row, length, padded_L in zip(rows, lengths, padded_BL, strict=True):
        padded_L[:length] = torch.from_numpy(row)
    return padded_BL


def _teacher_forcing(book: PromptBook, told: Sequence[list[Supervised]]) -> tuple[Tensor, ...]:
    """The last seven fields of a batch, from the supervised titles of each row."""
    titles = [(row, title) for row, several in enumerate(told) for title in several]
    lengths = np.array([title.num_tokens for _, title in titles], np.int64)
    first_J = np.cumsum(lengths) - lengths
    title_T = np.repeat(np.arange(len(titles)), lengths)
    offset_T = np.arange(len(title_T)) - first_J[title_T]
    rows, columns, items, weights = (
        np.array([row for row, _ in titles], np.int64),
        np.array([title.column for _, title in titles], np.int64),
        np.array([title.row for _, title in titles], np.int64),
        np.array([title.weight for _, title in titles], np.float32),
    )
    token_T = book.target.flat[book.target.offset[items][title_T] + offset_T]
    arrays = (
        rows[title_T], columns[title_T] + offset_T, token_T, title_T,
        book.item_id_I[items], lengths, weights,
    )  # fmt: skip
    return tuple(map(torch.from_numpy, arrays))


def _lay_out(
    book: PromptBook,
    history: IntArray,
    target: int,
    target_is_item: bool,
    with_target: bool,
    in_place: str | None,
) -> tuple[IntArray, IntArray, IntArray, int, list[Supervised]]:
    """Token ids, segments, book indices, length without the title, and supervised titles."""
    rows = book.rows_of(history)
    (title_row,) = book.rows_of(np.asarray([target]))
    parts = [(book.prefix, PREFIX)]
    parts += [(book.history_item[row], segment) for segment, row in enumerate(rows)]
    parts += [(book.response, RESPONSE)]
    length = sum(len(ids) for ids, _ in parts)
    told: list[Supervised] = []
    if with_target:
        title = book.target[title_row][:-1]
        parts += [(title, len(history) if target_is_item else RESPONSE)]
        told = supervised_titles(book, history, target, length, in_place)
    ids = np.concatenate([ids for ids, _ in parts])
    segment = np.repeat([segment for _, segment in parts], [len(ids) for ids, _ in parts])
    items = book.history_item
    places = [np.arange(items.offset[row], items.offset[row + 1]) for row in rows]
    places.append(len(items.flat) + np.arange(len(book.response)))
    book_index = np.full(len(ids), -1)
    book_index[len(book.prefix) : length] = np.concatenate(places)
    return ids, segment.astype(np.int64), book_index, length, told


def first_title_token(batch: Batch, target_is_item: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Where a title would begin after each prompt.

    Args:
        batch: Right-padded prompts without titles.
        target_is_item: As `build_batch`.

    Returns:
        Segment, position and restarted position of its first token; each (B,), int64.
    """
    segment_BL = batch.tokens.segment_BL
    restart_B = ((segment_BL == PREFIX) & batch.valid_BL).sum(1)
    if target_is_item:
        segment_B = segment_BL.masked_fill(~batch.valid_BL, RESPONSE).amax(1).clamp(min=-1) + 1
    else:
        segment_B = torch.full_like(batch.prompt_length_B, RESPONSE)
        restart_B = restart_B + ((segment_BL == RESPONSE) & batch.valid_BL).sum(1)
    return segment_B, batch.prompt_length_B, restart_B
