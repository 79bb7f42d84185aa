"""The one wiring function: from a config to the objects of a run."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import torch
from lightning_fabric.plugins.environments import SLURMEnvironment
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor

from hatllm.config import Config
from hatllm.data.datamodule import Examples
from hatllm.data.prepare import Dataset, prepare_dataset
from hatllm.data.prompt import PromptBook, build_prompt_book
from hatllm.decode.catalogue import Catalogue
from hatllm.decode.catalogue_states import check_states
from hatllm.decode.merged_titles import TitleCounts, count_titles
from hatllm.masks.schedule import Schedule, build_schedule
from hatllm.model.backbone import (
    context_length_of,
    load_masked_lm,
    load_tokenizer,
    num_layers_of,
)
from hatllm.model.before_loading import check_backbone
from hatllm.model.export import check_catalogue as check_exported_catalogue
from hatllm.model.item_tokens import ItemTokens
from hatllm.model.masked_lm import MaskedLM
from hatllm.tasks.assistant import load_assistant
from hatllm.tasks.item_vectors import exported_item_vectors, load_item_vectors
from hatllm.tasks.run_folder import load_items


def cache_root(config: Config) -> Path:
    """Folder of downloads and converted files."""
    return Path(config.cache_root).expanduser()


def load_dataset(config: Config) -> Dataset:
    """The prepared examples.

    Raises:
        ValueError: If `data_root` or the data settings do not fit.
    """
    return prepare_dataset(config.data, data_root(config), cache_root(config))


def data_root(config: Config) -> Path | None:
    """Folder of ready tables, prepared windows or published files; None = none.

    Raises:
        ValueError: If it is not a folder.
    """
    root = None if config.data_root is None else Path(config.data_root).expanduser()
    if root is not None and not root.is_dir():
        raise ValueError(f"data_root={config.data_root!r} is not a folder")
    return root


@dataclass
class ModelParts:
    """What a run's model needs, itself last because everything else is checked before."""

    schedule: Schedule
    catalogue: Catalogue
    item_vector_IE: Tensor | None  # None = items have no tokens of their own

    def load_model(self, config: Config) -> MaskedLM:
        """The backbone under the schedule, tuned or to be tuned."""
        lm = load_masked_lm(config.model, self.schedule, cache_root(config), config.seed)
        lm.trie_temperature, lm.vocab_temperature = config.temperatures
        if self.item_vector_IE is not None:
            width = lm.output_embedding_VD.shape[1]
            lm.item_tokens = ItemTokens(self.item_vector_IE, width, config.seed)
        return lm


@dataclass
class Parts(ModelParts):
    """What a run is made of."""

    dataset: Dataset
    title_counts: TitleCounts


def assemble(
    config: Config, finished: Path | None = None, coming: Mapping[str, Config] | None = None
) -> Parts:
    """Check everything that can be checked without the model's weights.

    Args:
        config: The run.
        finished: Folder of the finished run whose weights will be loaded; it holds the item
            vectors too.
        coming: Runs that are not made yet though this one needs them (`task=plan`), by folder.

    Raises:
        ValueError: If a setting does not fit the data or the model's layer count.
    """
    schedule = _schedule(config)
    dataset = load_dataset(config)
    check_catalogue(config, dataset)
    tokenizer = load_tokenizer(config.model, cache_root(config))
    book = _book(config, dataset.items, tokenizer)
    check_context(config, book, dataset)
    catalogue = _catalogue(config, book, coming or {})
    title_counts = told_titles(catalogue, dataset, tokenizer.unk_token_id)
    vector_IE = None
    if config.model.item_vectors is not None and finished is not None:
        vector_IE = exported_item_vectors(finished, book.item_id_I)
    elif config.model.item_vectors is not None:
        vector_IE = load_item_vectors(
            config.model.item_vectors, book.item_id_I, dataset.manifest["data_hash"], coming or {}
        )
    return Parts(schedule, catalogue, vector_IE, dataset, title_counts)


def told_titles(catalogue: Catalogue, dataset: Dataset, unknown_id: int | None) -> TitleCounts:
    """Count the titles that the tokenizer does not tell apart, and say so.

    Raises:
        ValueError: If there are too many.
    """
    titles = dict(dataset.items.select("item_id", "title").iter_rows())
    counts = count_titles(catalogue, titles, unknown_id)
    if (note := counts.note()) is not None and rank_zero_only.rank == 0:
        print(f"note: {note}", file=sys.stderr)
    return counts


def assemble_to_answer(config: Config, finished: Path) -> ModelParts:
    """What a finished run's model needs to answer, from the run's folder alone.

    Args:
        config: The run's settings with the command line's on top.
        finished: Its folder: catalogue, item vectors.

    Raises:
        ValueError: If a file of the folder is missing or does not fit.
    """
    schedule, items = _schedule(config), load_items(finished)
    check_exported_catalogue(finished, items)
    book = _book(config, items, load_tokenizer(config.model, cache_root(config)))
    vector_IE = None
    if config.model.item_vectors is not None:
        vector_IE = exported_item_vectors(finished, book.item_id_I)
    return ModelParts(schedule, _catalogue(config, book, {}), vector_IE)


def _schedule(config: Config) -> Schedule:
    """The layers' masks, checked with the machine."""
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    check_hardware(config)
    schedule = build_schedule(config.mask, num_layers_of(config.model, cache_root(config)))
    if config.fast and config.decode.state_cache:
        check_states(schedule)
    check_backbone(config.model, schedule, cache_root(config))
    return schedule


def _book(config: Config, items: pl.DataFrame, tokenizer: Any) -> PromptBook:
    """The items and the template, tokenised."""
    return build_prompt_book(
        tokenizer, config.data.prompt, items["item_id"].to_list(), items["title"].to_list(),
        item_tokens=config.model.item_vectors is not None,
    )  # fmt: skip


def _catalogue(config: Config, book: PromptBook, coming: Mapping[str, Config]) -> Catalogue:
    """The trie of the titles, and the assistant where there is one."""
    catalogue = Catalogue.of(book)
    if config.decode.assistant_run is not None:
        catalogue.assistant = load_assistant(config.decode.assistant_run, book.item_id_I, coming)
    return catalogue


def check_hardware(config: Config) -> None:
    """Refuse a GPU run without a GPU, and another number of processes than was started.

    Raises:
        ValueError: If the trainer or the model needs what the machine lacks, or torchrun or SLURM
            runs another number of processes than the trainer's.
    """
    gpus = torch.cuda.device_count()
    trainer = config.trainer
    if trainer.accelerator == "gpu" and gpus < trainer.devices:
        raise ValueError(
            f"trainer.devices={trainer.devices} GPUs asked for, {gpus} found; use trainer=cpu"
        )
    for launcher, started in (
        ("torchrun", os.environ.get("TORCHELASTIC_RUN_ID") and os.environ["WORLD_SIZE"]),
        ("srun", SLURMEnvironment.detect() and os.environ["SLURM_NTASKS"]),
    ):
        if started and int(started) != trainer.num_processes:
            raise ValueError(
                f"trainer.devices={trainer.devices} x trainer.num_nodes={trainer.num_nodes} must "
                f"be {started}, the processes that {launcher} started"
            )
    if config.model.quantization_bits is not None and gpus == 0:
        raise ValueError(
            f"model.quantization_bits={config.model.quantization_bits} needs a GPU, none found; "
            "use model.quantization_bits=null"
        )


def check_context(config: Config, book: PromptBook, dataset: Dataset) -> None:
    """Refuse prompts longer than the backbone was made for.

    Raises:
        ValueError: If there is one.
    """
    limit = context_length_of(config.model, cache_root(config))
    longest = int(book.history_item.length.max())
    constant = len(book.prefix) + len(book.response) + int(book.target.length.max())
    if limit is None or constant + config.data.max_history_items * longest <= limit:
        return
    for name, frame in dataset.splits.items():
        examples = Examples.of(frame, config.data.max_history_items)
        tokens = int(examples.prompt_lengths(book, with_target=True).max(initial=constant))
        if tokens > limit:
            item_id = int(book.item_id_I[book.target.length.argmax()])
            raise ValueError(
                f"a prompt of the {name} split has {tokens} tokens with its title, "
                f"model={config.model.name} was made for {limit}: lower "
                f"data.max_history_items={config.data.max_history_items}, or set "
                f"data.max_title_characters, which cuts titles (the longest, "
                f"{book.target.length.max()} tokens, is item_id {item_id}'s)"
            )


def check_catalogue(config: Config, dataset: Dataset) -> None:
    """Refuse more answers than there are titles.

    Raises:
        ValueError: If a split to be decoded is empty, or `decode.top_k` is above the number of
            different titles.
    """
    for split in ("valid", "test"):
        if dataset.splits[split].height == 0:
            raise ValueError(
                f"the {split} split of data={config.data.name} has no rows; give data.{split}_file "
                "some (without a valid file, data.holdout_fraction of train becomes valid)"
            )
    titles = dataset.items["title"].n_unique()
    if config.decode.top_k > titles:
        raise ValueError(
            f"decode.top_k={config.decode.top_k} must be at most {titles}, the different titles of "
            f"data={config.data.name}"
        )
