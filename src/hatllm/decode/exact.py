"""Best-first search: the exact top K titles, with a certificate.

Log-probabilities only fall along the trie, so once the best open node cannot beat the K-th finished
title, nothing can. Each round scores a few open nodes of every unfinished user in one model call.

Dimension key: B users, W titles, M nodes scored in one round, C children (flat).
"""

import heapq
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hatllm.decode.beam import NEVER, Answers
from hatllm.decode.candidates import Candidates
from hatllm.decode.legal import child_log_probs
from hatllm.decode.scorer import Scorer
from hatllm.decode.trie import ItemTrie

if TYPE_CHECKING:
    from hatllm.config import DecodeConfig

NODES_A_ROUND = 8  # open nodes of a user scored together


@dataclass
class Certificate:
    """What the search proved for each user."""

    bound_B: Tensor  # best log-probability an unseen title could have, nats; -inf = none is left
    gap_B: Tensor  # K-th title's log-probability minus the bound; >= 0 proves the top K
    expanded_B: Tensor  # nodes scored by the model; int64

    @property
    def exact_B(self) -> Tensor:
        """True where the answer is proven."""
        return self.gap_B >= 0


@dataclass
class _Search:
    """One user's open nodes and finished titles, as heaps of (-log_prob, node)."""

    top_k: int
    open: list[tuple[float, int]] = field(default_factory=lambda: [(0.0, 0)])
    best: list[tuple[float, int]] = field(default_factory=list)  # sorted, at most top_k
    expanded: int = 0

    @property
    def bound(self) -> float:
        return -self.open[0][0] if self.open else NEVER

    @property
    def kth(self) -> float:
        return -self.best[-1][0] if len(self.best) == self.top_k else NEVER

    def is_done(self, max_expansions: int) -> bool:
        return not self.open or self.kth >= self.bound or self.expanded >= max_expansions

    def add(self, log_prob: float, node: int, is_leaf: bool) -> None:
        if not is_leaf:
            heapq.heappush(self.open, (-log_prob, node))  # hopeless ones too: they are the bound
        else:
            self.best = sorted([*self.best, (-log_prob, node)])[: self.top_k]


def exact_search(
    scorer: Scorer, config: "DecodeConfig", candidates: Candidates | None = None
) -> tuple[Answers, Certificate]:
    """The most probable titles of all candidates.

    Args:
        scorer: Prompts, model and trie.
        config: top_k, normalize, max_expansions (nodes a user; reached = no certificate).
        candidates: Which titles may answer; None = all.

    Returns:
        At most `top_k` titles a user, and what was proven.
    """
    trie = scorer.trie
    searches = _searches(scorer, config.top_k, candidates)
    while asked := _frontier(searches, config.max_expansions):
        user_M = torch.tensor([user for user, _, _ in asked], device=trie.token_N.device)
        node_M = torch.tensor([node for _, _, node in asked], device=trie.token_N.device)
        hidden_MD = scorer.hidden_at(user_M, node_M)
        row_C, child_C, log_prob_C = child_log_probs(
            scorer.lm, trie, hidden_MD, node_M, config.normalize
        )
        if candidates is not None:
            alive_C = candidates.alive(user_M[row_C], child_C)
            row_C, child_C, log_prob_C = row_C[alive_C], child_C[alive_C], log_prob_C[alive_C]
        if config.normalize == "trie":
            child_C = _after_forced(trie, child_C)
        is_leaf = (trie.num_children_N[child_C] == 0).tolist()
        rows, children, log_probs = row_C.tolist(), child_C.tolist(), log_prob_C.tolist()
        for row, child, log_prob, leaf in zip(rows, children, log_probs, is_leaf, strict=True):
            user, before, _ = asked[row]
            searches[user].add(before + log_prob, child, leaf)
    return _answers(searches, config.top_k, trie), _certificate(searches, trie)


def _searches(scorer: Scorer, top_k: int, candidates: Candidates | None) -> list[_Search]:
    """One search a user; who has no candidate has nothing open."""
    num_leaves = [scorer.trie.num_leaves] * scorer.num_users
    if candidates is not None:
        num_leaves = candidates.num_leaves_B.tolist()
    return [_Search(min(top_k, n)) if n else _Search(top_k, open=[]) for n in num_leaves]


def _frontier(searches: list[_Search], max_expansions: int) -> list[tuple[int, float, int]]:
    """The best open nodes of every unfinished user: (user, log_prob, node)."""
    asked = []
    for user, search in enumerate(searches):
        for _ in range(NODES_A_ROUND):
            if search.is_done(max_expansions):
                break
            negative, node = heapq.heappop(search.open)
            search.expanded += 1
            asked.append((user, -negative, node))
    return asked


def _after_forced(trie: ItemTrie, node_C: Tensor) -> Tensor:
    """Follow forced tokens, which cost nothing under the trie, to a choice or a leaf."""
    while (forced_C := trie.num_children_N[node_C] == 1).any():
        node_C = torch.where(forced_C, trie.first_child_N[node_C], node_C)
    return node_C


def _answers(searches: list[_Search], top_k: int, trie: ItemTrie) -> Answers:
    leaf_BW = torch.full((len(searches), top_k), -1)
    log_prob_BW = torch.full((len(searches), top_k), NEVER)
    for user, search in enumerate(searches):
        for rank, (negative, leaf) in enumerate(search.best):
            leaf_BW[user, rank] = leaf
            log_prob_BW[user, rank] = -negative
    device = trie.token_N.device
    return Answers(leaf_BW.to(device), log_prob_BW.to(device), log_prob_BW.to(device))


def _certificate(searches: list[_Search], trie: ItemTrie) -> Certificate:
    device = trie.token_N.device
    bound_B = torch.tensor([search.bound for search in searches], device=device)
    kth_B = torch.tensor([search.kth for search in searches], device=device)
    # With no open node left everything was seen, however few titles there are.
    gap_B = torch.where(bound_B == NEVER, float("inf"), kth_B - bound_B)
    expanded_B = torch.tensor([search.expanded for search in searches], device=device)
    return Certificate(bound_B, gap_B, expanded_B)
