"""The one wiring function: from a config to the objects of a run."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import torch
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor

from hatllm.config import Config
from hatllm.data.datamodule import Examples
from hatllm.data.prepare import Dataset, cache_root, load_dataset
from hatllm.data.prompt import PromptBook, build_prompt_book
from hatllm.data.targets import in_place_counts
from hatllm.decode.catalogue import Catalogue
from hatllm.decode.fast.catalogue_states import check_states
from hatllm.decode.proof import load_proven_lm
from hatllm.decode.titles_alike import TitleCounts, count_titles
from hatllm.hardware import check_hardware
from hatllm.masks.schedule import Schedule, build_schedule
from hatllm.model.backbone import (
    context_length_of,
    load_tokenizer,
    num_layers_of,
)
from hatllm.model.before_loading import check_backbone
from hatllm.model.export import load_exported
from hatllm.model.item_tokens import ItemTokens
from hatllm.model.masked_lm import MaskedLM
from hatllm.training.assistants import load_assistant
from hatllm.training.other_runs import exported_item_vectors, load_item_vectors
from hatllm.training.title_prior import read_log_shares, title_log_shares


@dataclass(kw_only=True)
class ModelParts:
    """What a model is made of, its weights last because everything else is checked before."""

    schedule: Schedule
    catalogue: Catalogue
    item_vector_IE: Tensor | None  # None = items have no tokens of their own

    def load_model(self, config: Config) -> MaskedLM:
        """The backbone under the schedule, tuned or to be tuned."""
        lm = load_proven_lm(config.model, self.schedule, cache_root(config), config.seed)
        lm.trie_temperature, lm.vocab_temperature = config.temperatures
        if self.item_vector_IE is not None:
            width = lm.output_embedding_VD.shape[1]
            lm.item_tokens = ItemTokens(self.item_vector_IE, width, config.seed)
        return lm


@dataclass(kw_only=True)
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
            vectors and the titles' shares too.
        coming: Runs that are not made yet though this one needs them (`task=plan`), by folder.

    Raises:
        ValueError: If a setting does not fit the data or the model's layer count.
    """
    schedule = schedule_of(config)
    dataset = load_dataset(config)
    check_catalogue(config, dataset)
    tokenizer = load_tokenizer(config.model, cache_root(config))
    book = _tokenised(config, dataset.items, tokenizer)
    check_context(config, book, dataset)
    if config.data.train_targets == "every" and config.data.target_form == "in_place":
        dataset.manifest["in_place"] = in_place_counts(book)._asdict()
    catalogue = _catalogue(config, book, coming or {})
    if config.prior is not None and finished is not None:
        catalogue = catalogue.with_prior(read_log_shares(finished, book.item_id_I))
    elif config.prior is not None:
        catalogue = catalogue.with_prior(title_log_shares(config.prior, dataset))
    if config.decode.information_gain is not None:
        catalogue.train_count_I = _target_counts(dataset, book)
    title_counts = told_titles(catalogue, dataset, tokenizer.unk_token_id)
    vector_IE = None
    if config.model.item_vectors is not None and finished is not None:
        vector_IE = exported_item_vectors(finished, book.item_id_I)
    elif config.model.item_vectors is not None:
        vector_IE = load_item_vectors(
            config.model.item_vectors, book.item_id_I, dataset.manifest["data_hash"], coming or {}
        )
    return Parts(
        schedule=schedule, catalogue=catalogue, item_vector_IE=vector_IE, dataset=dataset,
        title_counts=title_counts,
    )  # fmt: skip


def _target_counts(dataset: Dataset, book: PromptBook) -> torch.Tensor:
    """How often each item is a train target. Shape (I,), int64."""
    rows = book.rows_of(dataset.full_train["target"].to_numpy())
    return torch.bincount(torch.from_numpy(rows), minlength=len(book.item_id_I))


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


def assemble_from_folder(config: Config, finished: Path, items: pl.DataFrame) -> ModelParts:
    """What a finished run answers with; no data set is looked at.

    Args:
        config: The run's own settings, with the command line's on top.
        finished: Its folder, which holds the item vectors and the titles' shares.
        items: Its catalogue: item_id, title.

    Raises:
        ValueError: If a setting does not fit the catalogue or the model's layer count.
    """
    schedule = schedule_of(config)
    check_top_k(config, items)
    book = _tokenised(config, items, load_tokenizer(config.model, cache_root(config)))
    vector_IE = None
    if config.model.item_vectors is not None:
        vector_IE = exported_item_vectors(finished, book.item_id_I)
    catalogue = _catalogue(config, book, {})
    if config.prior is not None:
        catalogue = catalogue.with_prior(read_log_shares(finished, book.item_id_I))
    return ModelParts(schedule=schedule, catalogue=catalogue, item_vector_IE=vector_IE)


def schedule_of(config: Config) -> Schedule:
    """Which layer sees what, once the machine is known to do."""
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    check_hardware(config)
    schedule = build_schedule(config.mask, num_layers_of(config.model, cache_root(config)))
    if config.fast and config.decode.state_cache:
        check_states(schedule)
    check_backbone(config.model, schedule, cache_root(config))
    return schedule


def _tokenised(config: Config, items: pl.DataFrame, tokenizer: Any) -> PromptBook:
    return build_prompt_book(
        tokenizer, config.data.prompt, items["item_id"].to_list(), items["title"].to_list(),
        item_tokens=config.model.item_vectors is not None,
    )  # fmt: skip


def _catalogue(config: Config, book: PromptBook, coming: Mapping[str, Config]) -> Catalogue:
    """The trie over the titles, with the assistant of `decode=d3` where there is one."""
    catalogue = Catalogue.of(book)
    if config.decode.assistant_run is not None:
        catalogue.assistant = load_assistant(config.decode.assistant_run, book.item_id_I, coming)
    return catalogue


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
    """Refuse splits without rows, and more answers than there are titles.

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
    check_top_k(config, dataset.items)


def check_top_k(config: Config, items: pl.DataFrame) -> None:
    """Refuse more answers than there are titles.

    Raises:
        ValueError: If `decode.top_k` is above the number of different titles.
    """
    titles = items["title"].n_unique()
    if config.decode.top_k > titles:
        raise ValueError(
            f"decode.top_k={config.decode.top_k} must be at most {titles}, the different titles of "
            f"data={config.data.name}"
        )


def load_tuned(parts: ModelParts, config: Config) -> MaskedLM:
    """The tuned model of a finished run, on the GPU where the trainer asks for one.

    Args:
        parts: What it is made of.
        config: The run's own settings, with the command line's on top; ``task.run_folder`` set.

    Raises:
        ValueError: If the exported weights are missing or do not fit.
    """
    assert config.task.run_folder is not None
    lm = parts.load_model(config).eval()
    load_exported(lm, config, Path(config.task.run_folder))
    if config.trainer.accelerator != "cpu" and torch.cuda.is_available():
        lm.cuda()
    return lm
