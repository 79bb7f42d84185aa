"""How the field does it: `generate` with a Python callback, a loop over padded full prompts.

Written against transformers alone, with a trie of dicts; nothing here is shared with the fast paths
but the prompts.

Dimension key: B rows, L sequence, T target tokens of all rows (flat), V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from hatllm.data.prompt import Batch, PromptBook

Answer = list[tuple[int, float]]  # (title, log-probability in nats), best first


def dict_trie(titles: list[list[int]]) -> dict[int, Any]:
    """A trie of dicts over token sequences."""
    root: dict[int, Any] = {}
    for tokens in titles:
        node = root
        for token in tokens:
            node = node.setdefault(token, {})
    return root


class FieldSearch:
    """Constrained beam search through transformers' `generate`.

    Settings that make it the search of `hatllm.decode.beam`: no length penalty, and the stopping
    rule that is exact without one.
    """

    def __init__(self, model: Any, book: PromptBook, beam_width: int) -> None:
        """Build the trie of dicts.

        Args:
            model: A causal LM as transformers loads it.
            book: The tokenised catalogue; equal titles count as the first of them.
            beam_width: Hypotheses and answers of a user.
        """
        titles = [book.target[row].tolist() for row in range(len(book.item_id_I))]
        self.model, self.beam_width, self.trie = model, beam_width, dict_trie(titles)
        self.title_of: dict[tuple[int, ...], int] = {}
        for row, tokens in enumerate(titles):
            self.title_of.setdefault(tuple(tokens), row)
        self.end_id, self.pad_id = titles[0][-1], book.pad_id
        self.longest = max(map(len, titles))

    def run(self, ids_BL: Tensor, valid_BL: Tensor, with_scores: bool) -> Any:
        """Call `generate` on left-padded prompts.

        Args:
            ids_BL: Token ids. Shape (B, L), int64.
            valid_BL: False on padding, which stands on the left. Shape (B, L), bool.
            with_scores: Whether log-probabilities are wanted; they cost memory.
        """
        prompt_length = ids_BL.shape[1]

        def allowed(_: int, ids: Tensor) -> list[int]:
            node = self.trie
            for token in ids[prompt_length:].tolist():
                # Hypotheses that have ended, or were never legal, must be allowed something.
                node = node.get(token) or {self.end_id: {}}
            return list(node)

        return self.model.generate(
            ids_BL,
            attention_mask=valid_BL.long(),
            num_beams=self.beam_width,
            num_return_sequences=self.beam_width,
            prefix_allowed_tokens_fn=allowed,
            max_new_tokens=self.longest,
            length_penalty=0.0,
            early_stopping=False,
            do_sample=False,
            output_scores=with_scores,
            return_dict_in_generate=True,
            pad_token_id=self.pad_id,
            eos_token_id=self.end_id,
        )

    def answers(self, batch: Batch) -> list[Answer]:
        """Titles (rows of the book) and log-probabilities of each user."""
        ids_BL, valid_BL = left_padded(batch)
        out = self.run(ids_BL, valid_BL, with_scores=True)
        answers: list[Answer] = [[] for _ in range(len(ids_BL))]
        rows = zip(
            out.sequences[:, ids_BL.shape[1] :].tolist(), out.sequences_scores.tolist(), strict=True
        )
        for place, (tokens, log_prob) in enumerate(rows):
            ended = tokens.index(self.end_id) + 1 if self.end_id in tokens else 0
            title = self.title_of.get(tuple(tokens[:ended]))
            if title is not None:  # dead hypotheses of a catalogue smaller than the beam
                answers[place // self.beam_width].append((title, log_prob))
        return answers


def left_padded(batch: Batch) -> tuple[Tensor, Tensor]:
    """Token ids and validity of a right-padded batch, padded on the left."""
    # A stable sort by "is a token" moves the padding to the front.
    order_BL = batch.valid_BL.long().sort(dim=1, stable=True).indices
    return batch.input_ids_BL.gather(1, order_BL), batch.valid_BL.gather(1, order_BL)


def plain_msl_loss(logit_BLV: Tensor, batch: Batch, trie: dict[int, Any], tau: float) -> Tensor:
    """MSL from logits at all positions, through a mask as wide as the vocabulary.

    Args:
        logit_BLV: Of whole padded prompts with titles. Shape (B, L, V), float32.
        batch: These prompts.
        trie: `dict_trie` of the catalogue.
        tau: Temperature.

    Returns:
        Summed over a title's tokens, averaged over rows. Scalar.
    """
    legal_TV = _legal(batch, trie, logit_BLV.shape[2]).to(logit_BLV.device)
    logit_TV = logit_BLV[batch.target_row_T, batch.target_column_T].float()
    masked_TV = (logit_TV / tau).masked_fill(~legal_TV, float("-inf"))
    return tau * cross_entropy(masked_TV, batch.target_token_T, reduction="sum") / batch.num_rows


def _legal(batch: Batch, trie: dict[int, Any], vocab_size: int) -> Tensor:
    legal_TV = torch.zeros(len(batch.target_token_T), vocab_size, dtype=torch.bool)
    row, node = -1, trie
    targets = zip(batch.target_row_T.tolist(), batch.target_token_T.tolist(), strict=True)
    for place, (next_row, token) in enumerate(targets):
        if next_row != row:
            row, node = next_row, trie
        legal_TV[place, list(node)] = True
        node = node[token]
    return legal_TV
