"""The title rule by meaning: titles whose sentence vectors lie nearest to what the user had last.

As :mod:`hatllm.baselines.title_rule`, but a title is the vector that a sentence encoder gives it,
not its words: a title may be near without sharing one. Nothing is trained here.

Dimension key: B examples of a batch, I items by ascending id, D width of a vector.
"""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from hatllm.baselines.scored import Scored
from hatllm.baselines.sequences import Sequences
from hatllm.baselines.title_rule import history_weights, row_slices
from hatllm.config import TitlesConfig


def sentence_rule(vector_ID: Tensor, config: TitlesConfig) -> Scored:
    """The rule over a catalogue.

    Args:
        vector_ID: One vector an item, of length one. Shape (I, D), float.
        config: How many of the last titles count.
    """
    # Rounding would order near equals differently in batches of other sizes.
    return Scored(partial(_scores, vector_ID.double(), config.decay), config.last_items)


def _scores(
    vector_ID: Tensor, decay: float, sequences: Sequences
) -> Iterator[tuple[Tensor, Tensor]]:
    """score_BI and target_B of each batch of `row_slices`."""
    for part in row_slices(sequences):
        query_BD = torch.from_numpy(history_weights(sequences, part, decay) @ vector_ID.numpy())
        yield query_BD @ vector_ID.T, sequences.target_G[part]
