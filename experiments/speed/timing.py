"""One batch of users through the fast beam search: seconds, and tokens through the model."""

from typing import Any

import torch

from experiments.speed.floor import counted, seconds_of
from experiments.speed.record import Row
from experiments.speed.workload import Workload
from hatllm.config import Config
from hatllm.data.prompt import Batch
from hatllm.decode.catalogue import Catalogue
from hatllm.decode.predict import search
from hatllm.decode.scorer import build_scorers


def searched(
    workload: Workload, config: Config, catalogue: Catalogue, batch: Batch, repeats: int
) -> Row:
    """Search a batch, once to count and warm and then some times to time.

    Args:
        workload: Holds the model.
        config: Mask and search.
        catalogue: Titles that may be answered.
        batch: Prompts.
        repeats: Timings.

    Returns:
        users, seconds (each timing), tokens (through the layers, all users), passes (of the model).
    """
    with workload.under(config) as lm, torch.inference_mode():
        scorers = build_scorers(lm, catalogue, config, batch.prompt_length_B.numpy())

        def work() -> Any:
            return search(scorers.of(batch), config.decode)

        with counted(lm.backbone[0]) as done:
            work()
        seconds = [seconds_of(work, workload.device) for _ in range(repeats)]
    tokens = done.layer_tokens / lm.num_layers
    passes = done.layer_calls / lm.num_layers
    return {"users": batch.num_rows, "seconds": seconds, "tokens": tokens, "passes": passes}
