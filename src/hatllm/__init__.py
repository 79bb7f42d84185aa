"""HatLLM: hierarchical attention masking for LLM-based recommendation (arXiv:2510.10955).

A tensor's name ends in its axes: ``allowed_BQK`` has shape (B, Q, K). A digit is an axis of that
size. Module docstrings repeat the letters they use, narrowed to what they hold there.

    A  tokens of the constant prefix of all prompts
    B  rows of a batch: users, examples, prompts, texts
    C  candidates: legal next tokens of all questions (flat), or sampled items of each
    D  width of a hidden state; beside H, of a head
    E  width of an item's vector
    F  leaves of the trie: titles that differ in their tokens
    G  rows of a whole split: users, examples
    H  heads
    I  items, by ascending id
    J  titles: supervised in a batch, of one example, of a catalogue
    K  keys
    L  places in a sequence, padding included
    M  questions: states asked of a model, nodes asked of a trie (flat)
    N  nodes of the trie
    P  places on a path through the trie
    Q  queries
    R  resamples
    S  segments
    T  tokens without padding, of all rows (flat)
    U  different ones among those that repeat
    V  vocabulary
    W  width of a search: beams, answers
    X  an axis with no letter of its own, said where it stands
    Y  families of prompts that share a history
    Z  slots: tokens hung under a prompt
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hatllm.recommend.recommender import load as load

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`load` and `Recommender`, once they are asked for: they import torch."""
    if name in ("load", "Recommender"):
        from hatllm.recommend import recommender

        return getattr(recommender, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
