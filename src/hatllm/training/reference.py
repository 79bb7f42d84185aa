"""The model as it was when training began, for losses that compare with it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from hatllm.model.masked_lm import MaskedLM


class Reference:
    """Keeps the start of what is tuned; the frozen rest is shared.

    Fresh adapters change nothing, so without a run to start from this is the model with its
    adapters switched off.
    """

    def __init__(self, lm: MaskedLM) -> None:
        self.lm = lm
        self.tuned = [p for p in lm.parameters() if p.requires_grad]
        self.start = [p.detach().clone() for p in self.tuned]

    @contextmanager
    def instead(self) -> Iterator[None]:
        """The model is the reference for a while: no gradients, no dropout."""
        was_training, now = self.lm.training, [p.data for p in self.tuned]
        self.start = [p.to(q.device) for p, q in zip(self.start, now, strict=True)]
        self._set(self.start)
        self.lm.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self._set(now)
            self.lm.train(was_training)

    def _set(self, values: list[torch.Tensor]) -> None:
        for parameter, value in zip(self.tuned, values, strict=True):
            parameter.data = value
