"""HatLLM written out once more: one row, no padding, no cache, no batch, float64.

It shares no code with `hatllm` and none with transformers: the weights of a Llama, the rules of the
paper as an if-then for a pair of tokens, a title's log-probability over a trie of dicts.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from hatllm.config import PromptConfig

END = 257  # of `byte_tokenizer`


@dataclass
class Piece:
    """One part of a prompt: its tokens and what it is, 'prefix', 'response' or an item's place."""

    tokens: list[int]
    label: str | int


def byte_ids(text: str) -> list[int]:
    """The byte tokenizer's ids: bytes in the order of their printable stand-ins."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in printable]
    stand_in = {byte: byte for byte in printable} | {b: 256 + i for i, b in enumerate(rest)}
    order = sorted(range(256), key=lambda byte: chr(stand_in[byte]))
    return [order.index(byte) for byte in text.encode()]


def prompt_pieces(prompt: PromptConfig, titles: list[str]) -> list[Piece]:
    """Prefix, one piece a history item, response template."""
    items = [prompt.history_item.replace("{title}", title) for title in titles]
    return [
        Piece(byte_ids(prompt.prefix), "prefix"),
        *(Piece(byte_ids(text), place) for place, text in enumerate(items)),
        Piece(byte_ids(prompt.response), "response"),
    ]


def title_ids(prompt: PromptConfig, title: str) -> list[int]:
    return [*byte_ids(prompt.target.replace("{title}", title)), END]


@dataclass
class Reference:
    """A Llama under a mask, one row at a time."""

    model: LlamaForCausalLM
    letters: str  # a pattern a layer
    scope: str
    sees_self: bool
    target_is_item: bool

    def __post_init__(self) -> None:
        self.weights = {n: w.detach().double() for n, w in self.model.state_dict().items()}

    def logits(self, pieces: list[Piece], title: list[int]) -> Tensor:
        """Logits (1 + len(title), V) that predict the title's tokens and what comes after it."""
        num_items = sum(isinstance(piece.label, int) for piece in pieces)
        label = num_items if self.target_is_item else "response"
        ids = [token for piece in pieces for token in piece.tokens] + title
        labels = [piece.label for piece in pieces for _ in piece.tokens] + [label] * len(title)
        hidden = self.hidden_states(ids, labels)[-1][-1 - len(title) :]
        return hidden @ self._weight("lm_head.weight").T

    def hidden_states(self, ids: list[int], labels: list[str | int]) -> list[Tensor]:
        """Each layer's output, (L, D); the last one normalised as well and appended."""
        x = self._weight("model.embed_tokens.weight")[ids]
        masks = {letter: self.allowed(letter, labels) for letter in set(self.letters)}
        states = []
        for layer, letter in enumerate(self.letters):
            x = self._layer(x, layer, letter, masks[letter], labels)
            states.append(x)
        return [*states, self._norm(x, "model.norm.weight")]

    def _layer(
        self, x: Tensor, layer: int, letter: str, allowed: Tensor, labels: list[str | int]
    ) -> Tensor:
        name = f"model.layers.{layer}"
        restarts = letter == "I" and self.scope == "segments"
        positions = restarted(labels) if restarts else list(range(len(labels)))
        normed = self._norm(x, f"{name}.input_layernorm.weight")
        x = x + self._attention(normed, f"{name}.self_attn", allowed, positions)
        normed = self._norm(x, f"{name}.post_attention_layernorm.weight")
        gate = normed @ self._weight(f"{name}.mlp.gate_proj.weight").T
        up = normed @ self._weight(f"{name}.mlp.up_proj.weight").T
        product = gate * torch.sigmoid(gate) * up
        return x + product @ self._weight(f"{name}.mlp.down_proj.weight").T

    def _attention(self, x: Tensor, name: str, allowed: Tensor, positions: list[int]) -> Tensor:
        config = self.model.config
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        width = config.hidden_size // heads
        q, k, v = (x @ self._weight(f"{name}.{p}_proj.weight").T for p in "qkv")
        outputs = []
        for head in range(heads):
            kv = head * kv_heads // heads
            q_LD = rotated(q[:, head * width : (head + 1) * width], positions)
            k_LD = rotated(k[:, kv * width : (kv + 1) * width], positions)
            logit_LL = q_LD @ k_LD.T / width**0.5
            weight_LL = logit_LL.masked_fill(~allowed, float("-inf")).softmax(-1)
            outputs.append(weight_LL @ v[:, kv * width : (kv + 1) * width])
        return torch.cat(outputs, 1) @ self._weight(f"{name}.o_proj.weight").T

    def allowed(self, letter: str, labels: list[str | int]) -> Tensor:
        """The mask of one layer, pair by pair."""
        size = range(len(labels))
        rows = [[self._may(letter, labels, q, k) for k in size] for q in size]
        for q in size:
            if not any(rows[q]):
                rows[q][q] = True
        return torch.tensor(rows)

    def _may(self, letter: str, labels: list[str | int], q: int, k: int) -> bool:
        if k > q:
            return False
        both_items = isinstance(labels[q], int) and isinstance(labels[k], int)
        if letter == "I" and self.scope == "segments":
            return labels[k] == "prefix" or labels[q] == labels[k]
        if letter == "I":
            return not (both_items and labels[q] != labels[k])
        if letter == "C":
            own = self.sees_self and q == k
            return own or not (both_items and labels[q] == labels[k])
        return True

    def _norm(self, x: Tensor, name: str) -> Tensor:
        mean_square = x.pow(2).mean(-1, keepdim=True)
        return x / (mean_square + self.model.config.rms_norm_eps).sqrt() * self._weight(name)

    def _weight(self, name: str) -> Tensor:
        return self.weights[name]


def rotated(x_LD: Tensor, positions: list[int]) -> Tensor:
    """Rotary positions with base 10,000; pair i is columns i and i + D / 2."""
    half = x_LD.shape[1] // 2
    frequency = torch.tensor([10_000.0 ** (-i / half) for i in range(half)], dtype=torch.float64)
    angle = torch.tensor(positions, dtype=torch.float64)[:, None] * frequency
    a, b = x_LD[:, :half], x_LD[:, half:]
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], 1)


def restarted(labels: list[str | int]) -> list[int]:
    """Positions that begin again after the prefix in every segment."""
    start = labels.count("prefix")
    seen: dict[str | int, int] = {}
    positions = []
    for label in labels:
        offset = seen.get(label, 0)
        seen[label] = offset + 1
        positions.append(offset if label == "prefix" else start + offset)
    return positions


def dict_trie(titles: list[list[int]]) -> dict[int, Any]:
    root: dict[int, Any] = {}
    for title in titles:
        node = root
        for token in title:
            node = node.setdefault(token, {})
    return root


def title_log_prob(
    logits: Tensor, title: list[int], trie: dict[int, Any] | None, tau: float = 1.0
) -> Tensor:
    """Log-probability of a title, over the legal tokens of a trie or (None) the vocabulary.

    Args:
        logits: Row i predicts token i of the title; more rows are ignored.
        title: Token ids, end token included.
        trie: All titles, or none.
        tau: Temperature of MSL (eq. 9): its negative is the loss.
    """
    total = logits.new_zeros(())
    for i, token in enumerate(title):
        row = logits[i]
        if trie is not None:
            penalty = torch.full_like(row, float("-inf"))
            penalty[list(trie)] = 0.0
            row = row + penalty
            trie = trie[token]
        total = total + tau * (row / tau).log_softmax(0)[token]
    return total
