"""Ways to train, over one workload with the same adapters: plain loop, fast path, compiled."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn

from experiments.speed.field import dict_trie, plain_msl_loss
from experiments.speed.workload import Workload
from hatllm.data.prompt import Batch
from hatllm.model.fast.compiled import compile_layers
from hatllm.model.lora import add_lora
from hatllm.training.lightning_module import Recommender

SMALL = 8  # rows a batch of the plain loop


@dataclass(frozen=True)
class Variant:
    """One way to train."""

    mask: str
    is_plain: bool = False
    is_large: bool = False  # a large batch of rows sorted by user
    is_compiled: bool = False

    @property
    def name(self) -> str:
        """As in the table."""
        ends = ("@large" if self.is_large else "") + ("+compile" if self.is_compiled else "")
        return ("plain " if self.is_plain else "") + self.mask + ends

    @property
    def plain(self) -> "Variant":
        """What it is held against."""
        return replace(self, is_plain=True, is_compiled=False)


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("causal", is_plain=True),
        Variant("causal"),
        Variant("hatllm", is_plain=True),
        Variant("hatllm"),
        Variant("hatllm", is_compiled=True),
        Variant("hatllm_segments", is_plain=True),
        Variant("hatllm_segments"),
        Variant("hatllm_segments", is_compiled=True),
        Variant("hatllm_segments", is_plain=True, is_large=True),
        Variant("hatllm_segments", is_large=True),
        Variant("hatllm_segments", is_large=True, is_compiled=True),
    )
}
FAST = [variant for variant in VARIANTS.values() if not variant.is_plain]


class Bench:
    """All variants over one workload, with the same adapters."""

    def __init__(self, arguments: argparse.Namespace, dtype: str) -> None:
        self.workload = Workload(
            arguments, dtype, "scale=published", "loss=msl", "model.tuning=lora",
            "model.lora.dropout=0.0",
        )  # fmt: skip
        self.device, self.large_rows = arguments.device, arguments.large_rows
        self.optimizers: dict[int, torch.optim.Optimizer] = {}
        self.plain_gradients: dict[tuple[str, int], tuple[float, dict[str, Tensor]]] = {}

    @cached_property
    def lm(self) -> Any:
        """Ours, with adapters that are not 0, so that no gradient is 0 by construction."""
        lm = self.workload.lm.train()
        stir_adapters(lm.model)
        compile_layers(lm)
        return lm

    @cached_property
    def untouched(self) -> Any:
        """Transformers' model with the same adapters."""
        model = self.workload.untouched_model()
        wrapped = add_lora(model, self.workload.config().model, seed=0).to(self.device).train()
        stir_adapters(wrapped)
        return wrapped

    @cached_property
    def field_trie(self) -> dict[int, Any]:
        """A trie of dicts over all titles."""
        titles = self.workload.book.target
        return dict_trie([titles[row].tolist() for row in range(len(titles.offset) - 1)])

    def model(self, variant: Variant) -> nn.Module:
        """The module whose adapters a variant tunes."""
        return self.untouched if variant.is_plain and variant.mask == "causal" else self.lm.model

    def backbone(self, variant: Variant) -> Any:
        """The transformers model inside."""
        model = self.model(variant)
        return model.get_base_model() if model is not self.lm.model else self.lm.backbone[0]

    def loss(self, variant: Variant, batch: Batch) -> Tensor:
        """Mean over rows of the title's loss."""
        with torch.compiler.set_stance("default" if variant.is_compiled else "force_eager"):
            return self._loss(variant, batch)

    def _loss(self, variant: Variant, batch: Batch) -> Tensor:
        config = self.workload.config(f"mask={variant.mask}")
        if not variant.is_plain:
            with self.workload.under(config) as lm:
                return self._recommender(lm, config).title_loss(batch)
        if variant.mask == "causal":
            logit_BLV = self.untouched(batch.input_ids_BL, attention_mask=batch.valid_BL.long())
            logit_BLV = logit_BLV.logits.float()
        else:
            with self.workload.under(config) as lm:
                hidden = lm.hidden_of_prompts(batch.input_ids_BL, batch.tokens, batch.valid_BL)
                logit_BLV = lm.logits(hidden)
        return plain_msl_loss(logit_BLV, batch, self.field_trie, config.loss.tau)

    def _recommender(self, lm: Any, config: Any) -> Recommender:
        return Recommender(lm, self.workload.parts.catalogue, config, 1, pl.DataFrame())

    def gradients(self, variant: Variant, batches: Sequence[Batch]) -> tuple[float, dict[str, Any]]:
        """Loss of some rows, in one batch or several, and the gradient of every adapter."""
        assert self.lm is not None  # the first use stirs the adapters
        num_rows = sum(batch.num_rows for batch in batches)
        model, total = self.model(variant), 0.0
        model.zero_grad(set_to_none=True)
        for batch in batches:
            loss = self.loss(variant, batch) * (batch.num_rows / num_rows)
            loss.backward()
            total += float(loss.detach())
        found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        model.zero_grad(set_to_none=True)
        return total, found

    def gradients_once(
        self, variant: Variant, place: int, batches: Sequence[Batch]
    ) -> tuple[float, dict[str, Any]]:
        """As `gradients`; a second variant that is held against the same ones finds them here."""
        key = variant.name, place
        if key not in self.plain_gradients:
            self.plain_gradients[key] = self.gradients(variant, batches)
        return self.plain_gradients[key]

    def step(self, variant: Variant, batch: Batch) -> None:
        """What is timed; the learning rate is 0, so that every variant sees the same weights."""
        model = self.model(variant)
        if id(model) not in self.optimizers:
            tuned = [p for p in model.parameters() if p.requires_grad]
            self.optimizers[id(model)] = torch.optim.AdamW(tuned, lr=0.0, weight_decay=0.0)
        self.loss(variant, batch).backward()
        self.optimizers[id(model)].step()
        self.optimizers[id(model)].zero_grad(set_to_none=True)

    def batches(self, num_batches: int) -> list[Batch]:
        """Random rows of the train split."""
        examples = self.workload.rows("train", num_batches * SMALL)
        rows = np.arange(len(examples)).reshape(num_batches, SMALL)
        return [self.workload.batch(examples, chosen, with_target=True) for chosen in rows]

    def large_batches(self, num_batches: int) -> list[tuple[Batch, list[Batch]]]:
        """Neighbours in the train split sorted by user: in one batch, and in small ones."""
        frame = self.workload.parts.dataset.splits["train"].sort("user_id", "example_id")
        size = min(self.large_rows, frame.height)
        random = np.random.default_rng(self.workload.seed)
        starts = random.integers(0, frame.height - size + 1, num_batches)
        found = []
        for start in starts.tolist():
            examples = self.workload.examples(frame[start : start + size])
            order = random.permutation(size)  # a plain loop shuffles
            chunks = [order[i : i + SMALL] for i in range(0, size, SMALL)]
            small = [self.workload.batch(examples, chunk, with_target=True) for chunk in chunks]
            whole = self.workload.batch(examples, np.arange(size), with_target=True)
            found.append((whole, small))
        return found


def stir_adapters(model: nn.Module) -> None:
    """Random adapters, the same each time, in place of zeros."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if "lora_" in name:
                drawn = torch.randn(parameter.shape, generator=generator) * 0.02
                parameter.copy_(drawn.to(parameter))
