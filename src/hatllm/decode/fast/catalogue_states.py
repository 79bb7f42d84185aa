"""Shallow states of the whole catalogue, for masks whose segments are the same in every prompt.

Under `intra_scope: segments` the first `split_layer` layers make the same of an item's tokens, of
the response template and of a title's tokens in every prompt. They are computed once for a model,
kept in a memory-mapped safetensors file, and requests start at `split_layer`.

Dimension key: T tokens of all items and the response template (flat), N trie nodes, D hidden width,
S segments of one batch, L tokens of the longest of them.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor

from hatllm.decode.catalogue import Catalogue
from hatllm.files import damaged_file, record_checksums
from hatllm.masks.schedule import Schedule
from hatllm.model.fast.packed_prompts import segment_stage
from hatllm.model.fast.prefix import run_prefix
from hatllm.model.fast.stages import states_after
from hatllm.model.masked_lm import MaskedLM
from hatllm.processes import process_rank
from hatllm.progress import Progress

if TYPE_CHECKING:
    from hatllm.config import Config

FORMAT = b"1"  # another one, and files made by older code are no longer used
ADAPTER_STATE = ("scaling", "active_adapters", "disable_adapters", "merged_adapters")
FILES_KEPT = 3  # the last used; each belongs to one state of the weights
TOKENS_A_BATCH = 4096
ON_DEVICE_BYTES = 4 * 2**30  # larger tables stay on disk and are gathered from there
CODES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}

IntArray = NDArray[np.int64]


@dataclass
class CatalogueStates:
    """Hidden states after the segment layers."""

    num_layers: int  # layers they spare
    book_TD: Tensor  # tokens of all history items, then of the response template
    node_ND: Tensor  # tokens that lead into each trie node; the root's and the leaves' mean nothing

    def of_prompt(self, book_index_T: Tensor) -> Tensor:
        """States of prompt tokens, by `Batch.book_index_BL`. Shape (T, D)."""
        return _gather(self.book_TD, book_index_T)

    def of_nodes(self, node_T: Tensor) -> Tensor:
        """States of title tokens, by trie node. Shape (T, D)."""
        return _gather(self.node_ND, node_T)


def _gather(table_XD: Tensor, index_T: Tensor) -> Tensor:
    return table_XD[index_T.to(table_XD.device)].to(index_T.device)


def tokens_to_build(catalogue: Catalogue, target_is_item: bool) -> int:
    """Tokens that go through the segment layers to make the states."""
    book, trie = catalogue.book, catalogue.trie
    lead = 0 if target_is_item else len(book.response)
    titles = int((trie.depth_N[trie.leaf_F] - 1).sum()) + lead * trie.num_leaves
    return len(book.history_item.flat) + len(book.response) + titles


def states_for_run(
    lm: MaskedLM, catalogue: Catalogue, config: "Config", prompt_lengths: IntArray
) -> CatalogueStates | None:
    """The states, where the run asks for them or they pay.

    Args:
        lm: Model under its schedule, on its device.
        catalogue: Tokenised titles and their trie.
        config: The run.
        prompt_lengths: Tokens of every prompt to come.

    Raises:
        ValueError: If it asks for them and they cannot be written, or the schedule has none.
    """
    folder, wanted = Path(config.cache_root).expanduser() / "states", config.decode.state_cache
    if wanted is False or not (wanted or states_pay(lm, catalogue, prompt_lengths, folder)):
        return None
    try:
        return catalogue_states(lm, catalogue, folder)
    except OSError as error:
        if wanted:
            raise ValueError(
                f"decode.state_cache=true cannot write to {folder}: {error.strerror}; free "
                "room, choose another cache_root, or decode.state_cache=false"
            ) from error
        warnings.warn(f"no catalogue states in {folder}: {error.strerror}", stacklevel=2)
        return None


def states_pay(lm: MaskedLM, catalogue: Catalogue, prompt_lengths: IntArray, folder: Path) -> bool:
    """Whether the catalogue's states lie ready, or cost fewer tokens than the prompts hold."""
    if lm.schedule.num_segment_layers in (0, lm.num_layers) or process_rank()[1] > 1:
        return False
    own = prompt_lengths.sum() - len(prompt_lengths) * len(catalogue.book.prefix)
    return (
        own > tokens_to_build(catalogue, lm.schedule.target_is_item)
        or states_file(lm, catalogue, folder).exists()
    )


def check_states(schedule: Schedule) -> None:
    """Refuse a schedule whose states are not the same in every prompt, or that has no others.

    Raises:
        ValueError: If no layer, or every layer, is a segment layer.
    """
    layers, every = schedule.num_segment_layers, len(schedule.patterns)
    if layers in (0, every):
        raise ValueError(
            f"decode.state_cache=true needs segment layers below others, {layers} of {every} are: "
            "mask=hatllm_segments, or decode.state_cache=null"
        )


@torch.inference_mode()
def catalogue_states(lm: MaskedLM, catalogue: Catalogue, folder: Path) -> CatalogueStates:
    """The states of a catalogue, from their file or made now.

    Args:
        lm: The model; its schedule has at least one segment layer.
        catalogue: Tokenised titles and their trie.
        folder: Holds the files; the newest few are kept.

    Returns:
        States for this very model, template and catalogue: the file is named by a hash of them.

    Raises:
        ValueError: If the schedule has no segment layer, or no other.
        OSError: If the disk has no room for them.
    """
    check_states(lm.schedule)
    path = states_file(lm, catalogue, folder)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "building.lock"):  # a second process waits for the first one's file
        tables = _read(path)
        if tables is None:
            _build(lm, catalogue, path)
            _keep_newest(folder)
            tables = _read(path)
        else:
            os.utime(_record(path))  # used now
    assert tables is not None
    device = lm.output_embedding_VD.device
    if sum(table.nbytes for table in tables) <= ON_DEVICE_BYTES:
        tables = [table.to(device) for table in tables]
    return CatalogueStates(lm.schedule.num_segment_layers, *tables)


def _read(path: Path) -> list[Tensor] | None:
    """The mapped tables; None where there is no whole file."""
    if not path.exists() or damaged_file(path.parent, _record(path).name) is not None:
        return None
    with safe_open(path, "pt") as file:
        return [file.get_tensor(name) for name in ("book", "node")]


def _record(path: Path) -> Path:
    """The checksum of a file of states; it was last used when this was last touched."""
    return path.with_suffix(".json")


def _keep_newest(folder: Path) -> None:
    for part in folder.glob("*.part"):  # of a process that was killed; ours has its lock
        part.unlink(missing_ok=True)
    records = sorted(folder.glob("*.json"), key=lambda path: -path.stat().st_mtime)
    kept = {record.stem for record in records[:FILES_KEPT]}
    for old in [*folder.glob("*.json"), *folder.glob("*.safetensors")]:
        if old.stem not in kept:
            old.unlink(missing_ok=True)


def states_file(lm: MaskedLM, catalogue: Catalogue, folder: Path) -> Path:
    """Where the states of this model and catalogue are or will be; named by what they depend on."""
    num_layers, schedule = lm.schedule.num_segment_layers, lm.schedule
    digest = hashlib.sha256(FORMAT)
    digest.update(lm.backbone[0].config.to_json_string().encode())
    digest.update(repr((num_layers, schedule.target_is_item, CODES[_dtype(lm)])).encode())
    decoder: Any = lm.decoder
    modules = [decoder.get_input_embeddings(), *list(decoder.layers)[:num_layers]]
    modules += [] if lm.item_tokens is None else [lm.item_tokens]
    for module in modules:
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy())
        for part in module.modules():  # adapters: equal weights, another strength
            digest.update(repr([getattr(part, name, None) for name in ADAPTER_STATE]).encode())
    book = catalogue.book
    for array in (
        book.prefix, book.response, book.history_item.flat, book.history_item.offset,
        book.target.flat, book.target.offset,
    ):  # fmt: skip
        digest.update(len(array).to_bytes(8, "little") + array.tobytes())
    return folder / f"{digest.hexdigest()[:24]}.safetensors"


def _dtype(lm: MaskedLM) -> torch.dtype:
    return lm.output_embedding_VD.dtype


def _build(lm: MaskedLM, catalogue: Catalogue, path: Path) -> None:
    book = catalogue.book
    width = lm.output_embedding_VD.shape[1]
    num_book = len(book.history_item.flat) + len(book.response)
    shapes = {"book": (num_book, width), "node": (catalogue.trie.num_nodes, width)}
    part = path.with_suffix(".part")
    try:
        tables = _create(part, shapes, _dtype(lm))
        _fill(lm, catalogue, tables)
        del tables  # unmapped: what was written is in the file
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.replace(path)
        record_checksums(path.parent, [path.name], _record(path).name)
    finally:
        part.unlink(missing_ok=True)


def _fill(lm: MaskedLM, catalogue: Catalogue, tables: dict[str, Tensor]) -> None:
    book, device, schedule = catalogue.book, lm.output_embedding_VD.device, lm.schedule
    prefix = run_prefix(lm, torch.from_numpy(book.prefix).to(device))
    total = tokens_to_build(catalogue, schedule.target_is_item)
    with Progress(total=total, desc="catalogue states", unit="token") as bar:
        for name, segments, places in (
            ("book", *_book_segments(catalogue)),
            ("node", *_title_segments(catalogue, schedule.target_is_item)),
        ):
            for chosen in _batches([len(segment) for segment in segments]):
                ids_SL = _padded([segments[i] for i in chosen]).to(device)
                stage = segment_stage(schedule, ids_SL >= 0, len(book.prefix), prefix)
                ids_T = ids_SL[ids_SL >= 0]
                hidden_TD = states_after(lm, ids_T, stage, schedule.num_segment_layers)
                place_SL = _padded([places[i] for i in chosen], -2)
                place_T = place_SL[place_SL > -2]
                kept_T = place_T >= 0
                tables[name][place_T[kept_T]] = hidden_TD.cpu()[kept_T]
                bar.update(len(place_T))


def _create(
    path: Path, shapes: dict[str, tuple[int, int]], dtype: torch.dtype
) -> dict[str, Tensor]:
    """Tables of zeros in a new safetensors file, mapped for writing."""
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + shape[0] * shape[1] * dtype.itemsize
        header[name] = {
            "dtype": CODES[dtype], "shape": list(shape), "data_offsets": [start, end]
        }  # fmt: skip
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        # Not a sparse file: a full disk must be an error here, not a bus error while filling it.
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, 8 + len(text) + end)
        file.truncate(8 + len(text) + end)
    data = torch.from_numpy(np.memmap(path, np.uint8, "r+", offset=8 + len(text)))
    return {
        name: data[slice(*header[name]["data_offsets"])].view(dtype).view(shape)
        for name, shape in shapes.items()
    }


def _book_segments(catalogue: Catalogue) -> tuple[list[IntArray], list[IntArray]]:
    """Every history item and the response template, and the table rows of their tokens."""
    items, response = catalogue.book.history_item, catalogue.book.response
    segments = [*(items[i] for i in range(len(items.offset) - 1)), response]
    ends = np.cumsum([len(segment) for segment in segments])
    return segments, [
        np.arange(end - len(segment), end) for segment, end in zip(segments, ends, strict=True)
    ]


def _title_segments(
    catalogue: Catalogue, target_is_item: bool
) -> tuple[list[IntArray], list[IntArray]]:
    """Every title without its end token, and the trie nodes of its tokens; -1 = not kept."""
    book, titles = catalogue.book, catalogue.book.target
    lead = book.response[:0] if target_is_item else book.response
    nodes = catalogue.trie.to("cpu").path(
        torch.from_numpy(titles.flat), torch.from_numpy(titles.offset)
    )
    segments, places = [], []
    seen: set[int] = set()
    for i in range(len(titles.offset) - 1):
        node = nodes[titles.offset[i] : titles.offset[i + 1]].numpy()
        if int(node[-1]) not in seen and len(node) > 1:
            seen.add(int(node[-1]))
            segments.append(np.concatenate([lead, titles[i][:-1]]))
            places.append(np.concatenate([np.full(len(lead), -1), node[:-1]]))
    return segments, places


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Rows of near lengths, so that attention pads little."""
    order = np.argsort(lengths, kind="stable")
    batch: list[int] = []
    for row in order.tolist():
        if batch and (len(batch) + 1) * lengths[row] > TOKENS_A_BATCH:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _padded(rows: Sequence[IntArray], padding: int = -1) -> Tensor:
    padded = np.full((len(rows), max(map(len, rows))), padding, np.int64)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = row
    return torch.from_numpy(padded)
