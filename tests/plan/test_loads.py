"""The tokens that a plan counts are those of the batches that training lays out."""

import numpy as np
import pytest
import torch
from toys import Compose, toy_book

from hatllm.data.datamodule import Examples, TrainingBatches
from hatllm.model.fast.packed_prompts import Packed
from hatllm.plan.loads import Load, branched

ROWS = Examples(
    np.array([8, 9]), [np.array([3, 25, 3, 20]), np.array([44, 3, 25])], np.array([25, 20])
)
WIDE = 10**6  # hidden width at which sharing a history always pays


@pytest.mark.parametrize("packed", [True, False])
def test_branches_cost_what_training_lays_out(compose_config: Compose, packed: bool) -> None:
    book, rows = toy_book(), np.array([0, 1])
    words = ["data.train_targets=every", "data.target_form=branches"]
    batch = TrainingBatches(ROWS, book, compose_config(*words)).batch(rows)
    load = Load(ROWS.prompt_lengths(book, True), [rows], len(book.prefix), packed)
    (counted,) = branched(load, ROWS, book).tokens_of_batches.tolist()
    # The end token of a title is predicted, not read.
    last_B = torch.full_like(batch.prompt_length_B, -1)
    last_B = last_B.scatter_reduce(0, batch.target_row_T, batch.target_column_T, "amax")
    if packed:
        laid_out = Packed.in_families(batch, len(book.prefix), last_B, WIDE)
        assert counted == len(laid_out.ids_T) + len(book.prefix)
    else:
        assert counted == batch.num_rows * (int(last_B.max()) + 1)
