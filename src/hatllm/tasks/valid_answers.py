"""Predictions of validations: in shards under way, kept for the table of the exported step."""

import shutil
from pathlib import Path

import polars as pl

from hatllm.config import Config
from hatllm.model.masked_lm import MaskedLM
from hatllm.tasks.assemble import Parts
from hatllm.tasks.decoding import SHARDS, collected_split, decode_into_shards


class ValidAnswers:
    """Decodes the valid split in training, into the shards that `decode_splits` looks for.

    A validation that was cut off goes on with the users that are left, and the weights that are
    exported need not decode the split again.

    Attributes:
        name: Folder of the last validation's shards.
    """

    def __init__(self, config: Config, folder: Path, parts: Parts) -> None:
        """Decode for a run.

        Args:
            config: The run.
            folder: Run folder.
            parts: Data and catalogue.
        """
        self.config, self.folder, self.parts = config, folder, parts
        self.name: str | None = None

    def __call__(self, lm: MaskedLM) -> pl.DataFrame:
        """The predictions table of the valid split under these weights, on every process."""
        shards = decode_into_shards(self.config, self.folder, self.parts, lm, "valid")
        self.name = shards.folder.name
        return collected_split(shards, self.parts, "valid")

    def keep_only(self, name: str | None) -> None:
        """Delete the shards of all other validations."""
        for shards in (self.folder / SHARDS).glob("valid-*"):
            if shards.name != name:
                shutil.rmtree(shards, ignore_errors=True)
