"""How one title came about: its path through the trie, the masks, the attention of each layer.

Dimension key: L sequence, M nodes of the path, P places on it, C children of all of them (flat),
S parts of the prompt, Q query position, K key position, H heads, B = 1.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from hatllm.config import Config
from hatllm.data.datamodule import Examples
from hatllm.data.prepare import cache_root
from hatllm.data.prompt import FIRST_ITEM_TOKEN, Batch
from hatllm.decode.legal import child_log_probs
from hatllm.decode.scorer import build_scorers
from hatllm.figures.prompt_spans import Span, name_spans
from hatllm.masks.layer_masks import build_layer_masks, causal_visible
from hatllm.model.attention_weights import on_eager, reading_weights
from hatllm.model.backbone import load_tokenizer
from hatllm.recommend.answerer import LlmAnswerer
from hatllm.serve.schema import Choice, Layer, Part, Step, WhyAnswer

NUM_OTHERS = 4  # other tokens shown where the trie branches


def is_explained(config: Config) -> bool:
    """Whether the run ranks titles by the model's path through the trie alone."""
    decode = config.decode
    return config.model.kind == "llm" and decode.name != "grounding" and not decode.is_mixed


class Explainer:
    """Explains the answers of an LLM run."""

    def __init__(self, answerer: LlmAnswerer, title: Mapping[int, str]) -> None:
        """Take the loaded run.

        Args:
            answerer: The model and its catalogue.
            title: Of each item id.
        """
        config = answerer.config
        self.lm, self.config, self.title = answerer.lm, config, title
        self.catalogue, self.schedule = answerer.parts.catalogue, answerer.parts.schedule
        self.tokenizer = load_tokenizer(config.model, cache_root(config))
        self.scorers = build_scorers(self.lm, self.catalogue, config, np.empty(0, np.int64))

    @torch.inference_mode()
    def __call__(self, run: str, history: list[int], item: int) -> WhyAnswer:
        """Explain one title after one history.

        Args:
            run: The run's name.
            history: Item ids, oldest first, at least one.
            item: Item id of the title.
        """
        newest = np.asarray(history[-self.config.data.max_history_items :], np.int64)
        examples = Examples(np.zeros(1, np.int64), [newest], np.array([item]))
        prompt, whole = (self._batch(examples, with_title) for with_title in (False, True))
        steps = self._steps(prompt, item)
        spans = name_spans(whole.tokens.segment_BL[0].tolist())
        attention = self._attention(whole, int(prompt.prompt_length_B[0]), spans)
        layers = [
            Layer(pattern=pattern, attention=shares)
            for pattern, shares in zip(self.schedule.patterns, attention, strict=True)
        ]
        return WhyAnswer(
            run=run, title=self.title[item],
            log_prob=sum(step.log_prob for step in steps), path=steps,
            parts=self._parts(spans, newest.tolist(), item), layers=layers,
            masks=self._masks(whole, spans),
        )  # fmt: skip

    def _batch(self, examples: Examples, with_title: bool) -> Batch:
        one, is_item = np.zeros(1, np.int64), self.config.mask.target_is_item
        batch = examples.batch(self.catalogue.book, one, is_item, with_title)
        return batch.to(self.lm.output_embedding_VD.device)

    def _steps(self, prompt: Batch, item: int) -> list[Step]:
        """Every token of the title with its probability among the legal ones."""
        trie = self.scorers.trie
        leaf_M = trie.leaf_of_item(torch.tensor([item], device=trie.token_N.device))
        node_P = trie.path_to(leaf_M)[0]
        parent_P = trie.parent_N[node_P]
        hidden_PD = self.scorers.of(prompt).hidden_at(torch.zeros_like(parent_P), parent_P)
        row_C, child_C, log_prob_C = child_log_probs(
            self.lm, trie, hidden_PD, parent_P, self.config.decode.normalize
        )
        return [
            self._step(int(node), child_C[row_C == place], log_prob_C[row_C == place])
            for place, node in enumerate(node_P.tolist())
        ]

    def _step(self, node: int, child_C: Tensor, log_prob_C: Tensor) -> Step:
        taken_C = child_C == node
        order_C = log_prob_C.argsort(descending=True)
        others = [place for place in order_C.tolist() if not taken_C[place]][:NUM_OTHERS]
        log_prob = float(log_prob_C[taken_C][0])
        return Step(
            token=self._text(node), prob=float(np.exp(log_prob)), log_prob=log_prob,
            num_choices=len(child_C), rank=1 + int((log_prob_C > log_prob).sum()),
            others=[
                Choice(token=self._text(int(child_C[place])), prob=float(log_prob_C[place].exp()))
                for place in others
            ],
        )  # fmt: skip

    def _text(self, node: int) -> str:
        token = int(self.scorers.trie.token_N[node])
        return "[item]" if token >= FIRST_ITEM_TOKEN else str(self.tokenizer.decode([token]))

    def _attention(self, whole: Batch, prompt_length: int, spans: list[Span]) -> list[list[float]]:
        """Share of each part, by layer: mean over heads and over the title's predicting tokens."""
        shares: list[list[float]] = []
        predicting = slice(prompt_length - 1, int(whole.valid_BL[0].sum()))

        def read(_: int, weight_BHQK: Tensor) -> None:
            mean_K = weight_BHQK[0, :, predicting].float().mean((0, 1))
            shares.append([float(mean_K[span.start : span.stop].sum()) for span in spans])

        with on_eager(self.lm, self.config.model.backend), reading_weights(self.lm, read):
            self.lm.hidden_of_prompts(whole.input_ids_BL, whole.tokens, whole.valid_BL)
        return shares

    def _masks(self, whole: Batch, spans: list[Span]) -> dict[str, list[list[float]]]:
        """Of each pattern the share of token pairs that may attend, part by part."""
        visible_BQK = causal_visible(whole.valid_BL, whole.valid_BL.shape[1])
        masks = build_layer_masks(self.schedule, whole.tokens, whole.tokens, visible_BQK)
        return {
            pattern: [[_share(allowed_B1QK[0, 0], query, key) for key in spans] for query in spans]
            for pattern, allowed_B1QK in masks.allowed.items()
        }

    def _parts(self, spans: list[Span], history: list[int], item: int) -> list[Part]:
        """The parts of the prompt, items with their titles."""
        items = iter(history)
        parts = []
        for span in spans:
            shown = item if span.name == "target" else None
            if span.name.startswith("item"):
                shown = next(items)
            parts.append(Part(name=span.name, title=None if shown is None else self.title[shown]))
        return parts


def _share(allowed_QK: Tensor, query: Span, key: Span) -> float:
    return float(allowed_QK[query.start : query.stop, key.start : key.stop].float().mean())
