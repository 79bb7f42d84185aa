"""Trie-constrained beam search: token-synchronous, additive log-probabilities.

The rules are those of transformers' `generate` with `num_beams`: of the 2W best continuations
those that end a title among the first W join the finished titles, the W best others go on. Under
`normalize: trie` a forced token costs nothing and needs no model; a user whose hypotheses are all
on forced tokens moves on alone, so the model sees only branching nodes.

Dimension key: B users, W beams, M hypotheses that need the model, C candidates (flat).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hatllm.decode.candidates import Candidates
from hatllm.decode.legal import child_log_probs
from hatllm.decode.scorer import Scorer

if TYPE_CHECKING:
    from hatllm.config import DecodeConfig

NEVER = float("-inf")

# From users and nodes, each (M,), to what may follow: row in M (ascending), node, log-probability.
Ask = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
# From users and nodes to whether a candidate lies at or below the node.
Alive = Callable[[Tensor, Tensor], Tensor]


@dataclass
class Answers:
    """The titles found for each user, best first."""

    leaf_BW: Tensor  # trie leaves, -1 = none; int64
    log_prob_BW: Tensor  # nats, -inf where there is no leaf; float32
    score_BW: Tensor  # log_prob / length ** length_penalty


@dataclass
class _Beams:
    """Hypotheses that still grow; node -1 = an empty place."""

    node_BW: Tensor
    log_prob_BW: Tensor


def asking_the_model(scorer: Scorer, normalize: str) -> Ask:
    """What may follow a node by the model alone: its children in the trie."""

    def ask(user_M: Tensor, node_M: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden_MD = scorer.hidden_at(user_M, node_M)
        return child_log_probs(scorer.lm, scorer.trie, hidden_MD, node_M, normalize)

    return ask


def beam_search(
    scorer: Scorer,
    config: "DecodeConfig",
    ask: Ask | None = None,
    candidates: Candidates | None = None,
) -> Answers:
    """The best titles by beam search.

    Args:
        scorer: Prompts, model and trie.
        config: beam_width, length_penalty, normalize, top_k.
        ask: What may follow; None = `asking_the_model`.
        candidates: Which titles may answer; None = all.

    Returns:
        At most `top_k` titles a user.
    """
    ask = ask or asking_the_model(scorer, config.normalize)
    alive = None if candidates is None else candidates.alive
    device = scorer.trie.token_N.device
    B, W = scorer.num_users, config.beam_width
    beams = _Beams(torch.full((B, W), -1, device=device), torch.full((B, W), NEVER, device=device))
    beams.node_BW[:, 0] = 0
    beams.log_prob_BW[:, 0] = 0.0
    empty = beams.log_prob_BW.new_full((B, W), NEVER)
    found = Answers(torch.full_like(beams.node_BW, -1), empty, empty.clone())
    while (active_B := _active(scorer, config, beams, found)).any():
        asks_BW = (beams.node_BW >= 0) & active_B[:, None] & _needs_model(scorer, config, beams)
        free_B = active_B & ~asks_BW.any(1)
        stepping_B = free_B if free_B.any() else active_B
        beams, found = _step(scorer, config, ask, alive, beams, found, stepping_B, asks_BW)
    k = config.top_k
    return Answers(found.leaf_BW[:, :k], found.log_prob_BW[:, :k], found.score_BW[:, :k])


def _needs_model(scorer: Scorer, config: "DecodeConfig", beams: _Beams) -> Tensor:
    if config.normalize == "vocab":
        return torch.ones_like(beams.node_BW, dtype=torch.bool)
    return scorer.trie.is_branching_N[beams.node_BW]


def _active(scorer: Scorer, config: "DecodeConfig", beams: _Beams, found: Answers) -> Tensor:
    """Users whose best open hypothesis may still beat their worst kept title.

    It scores best at the length of the longest title, if the rest costs nothing; one that stops
    early takes it for as long as it will get (transformers' default, which may miss a better title
    where there is a length penalty).
    """
    if config.stops_early:
        length_B = scorer.trie.depth_N[beams.node_BW.clamp(min=0)].amax(1).clamp(min=1)
    else:
        length_B = torch.full_like(beams.node_BW[:, 0], scorer.trie.max_depth)
    best_open_B = beams.log_prob_BW.amax(1) / length_B**config.length_penalty
    return (best_open_B > found.score_BW[:, -1]) & (beams.node_BW >= 0).any(1)


def _step(
    scorer: Scorer,
    config: "DecodeConfig",
    ask: Ask,
    alive: Alive | None,
    beams: _Beams,
    found: Answers,
    stepping_B: Tensor,
    asks_BW: Tensor,
) -> tuple[_Beams, Answers]:
    """Move the stepping users one token on."""
    user_M, node_M, log_prob_M = _continuations(scorer, ask, beams, stepping_B, asks_BW)
    if alive is not None:
        alive_M = alive(user_M, node_M)
        user_M, node_M, log_prob_M = user_M[alive_M], node_M[alive_M], log_prob_M[alive_M]
    node_BX, log_prob_BX = _best(user_M, node_M, log_prob_M, scorer.num_users, config.beam_width)
    is_leaf_BX = (node_BX >= 0) & (scorer.trie.num_children_N[node_BX] == 0)
    first_W = torch.arange(node_BX.shape[1], device=node_BX.device) < config.beam_width
    ends_BX = is_leaf_BX & first_W
    score_BX = log_prob_BX / scorer.trie.depth_N[node_BX].clamp(min=1) ** config.length_penalty
    found = _merge(found, node_BX, log_prob_BX, score_BX, ends_BX)
    open_BX = (node_BX >= 0) & ~is_leaf_BX
    # A stable sort by "not open" moves the open hypotheses to the front in their order.
    order_BW = (~open_BX).long().sort(dim=1, stable=True).indices[:, : config.beam_width]
    kept_BW = open_BX.gather(1, order_BW)
    node_BW = torch.where(kept_BW, node_BX.gather(1, order_BW), -1)
    log_prob_BW = log_prob_BX.gather(1, order_BW).masked_fill(~kept_BW, NEVER)
    moved_B1 = stepping_B[:, None]
    return _Beams(
        torch.where(moved_B1, node_BW, beams.node_BW),
        torch.where(moved_B1, log_prob_BW, beams.log_prob_BW),
    ), found


def _continuations(
    scorer: Scorer, ask: Ask, beams: _Beams, stepping_B: Tensor, asks_BW: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """All children of the stepping users' hypotheses: user, node and log-probability, flat."""
    users, nodes, log_probs = [], [], []
    forced_BW = (beams.node_BW >= 0) & stepping_B[:, None] & ~asks_BW
    if forced_BW.any():
        user_M, _ = forced_BW.nonzero(as_tuple=True)
        row_C, child_C = scorer.trie.children(beams.node_BW[forced_BW])
        users.append(user_M[row_C])
        nodes.append(child_C)
        log_probs.append(beams.log_prob_BW[forced_BW][row_C])
    asks_BW = asks_BW & stepping_B[:, None]
    if asks_BW.any():
        user_M, _ = asks_BW.nonzero(as_tuple=True)
        row_C, child_C, log_prob_C = ask(user_M, beams.node_BW[asks_BW])
        users.append(user_M[row_C])
        nodes.append(child_C)
        log_probs.append(beams.log_prob_BW[asks_BW][row_C] + log_prob_C)
    return torch.cat(users), torch.cat(nodes), torch.cat(log_probs)


def _best(
    user_C: Tensor, node_C: Tensor, log_prob_C: Tensor, num_users: int, beam_width: int
) -> tuple[Tensor, Tensor]:
    """Each user's 2W best candidates, best first; ties go to the smaller node.

    Args:
        user_C: User of each candidate; int64.
        node_C: Trie node; int64.
        log_prob_C: Nats; float32.
        num_users: B.
        beam_width: W.

    Returns:
        Nodes, -1 where there are fewer, and log-probabilities; each (B, 2W).
    """
    could_be_C = _could_be_best(user_C, log_prob_C, num_users, 2 * beam_width)
    user_C, node_C, log_prob_C = user_C[could_be_C], node_C[could_be_C], log_prob_C[could_be_C]
    by_node_C = node_C.sort(dim=0, stable=True).indices
    by_score_C = by_node_C[log_prob_C[by_node_C].sort(dim=0, descending=True, stable=True).indices]
    order_C = by_score_C[user_C[by_score_C].sort(dim=0, stable=True).indices]
    user_C, node_C, log_prob_C = user_C[order_C], node_C[order_C], log_prob_C[order_C]
    count_B = torch.bincount(user_C, minlength=num_users)
    rank_C = torch.arange(len(user_C), device=user_C.device) - (count_B.cumsum(0) - count_B)[user_C]
    kept_C = rank_C < 2 * beam_width
    node_BX = node_C.new_full((num_users, 2 * beam_width), -1)
    log_prob_BX = log_prob_C.new_full((num_users, 2 * beam_width), NEVER)
    node_BX[user_C[kept_C], rank_C[kept_C]] = node_C[kept_C]
    log_prob_BX[user_C[kept_C], rank_C[kept_C]] = log_prob_C[kept_C]
    return node_BX, log_prob_BX


def _could_be_best(user_C: Tensor, log_prob_C: Tensor, num_users: int, k: int) -> Tensor:
    """Candidates no worse than their user's k-th best, ties included. Shape (C,), bool.

    The root of a large catalogue has more children than are worth sorting.
    """
    count_B = torch.bincount(user_C, minlength=num_users)
    most = int(count_B.max())
    if most <= k:
        return torch.ones_like(user_C, dtype=torch.bool)
    by_user_C = user_C.sort(stable=True).indices
    place_C = (
        torch.arange(len(user_C), device=user_C.device)
        - (count_B.cumsum(0) - count_B)[user_C[by_user_C]]
    )
    log_prob_BX = log_prob_C.new_full((num_users, most), NEVER)
    log_prob_BX[user_C[by_user_C], place_C] = log_prob_C[by_user_C]
    worst_B = log_prob_BX.topk(k).values[:, -1]
    return log_prob_C >= worst_B[user_C]


def _merge(
    found: Answers, node_BX: Tensor, log_prob_BX: Tensor, score_BX: Tensor, ends_BX: Tensor
) -> Answers:
    W = found.leaf_BW.shape[1]
    leaf = torch.cat([found.leaf_BW, node_BX.masked_fill(~ends_BX, -1)], 1)
    log_prob = torch.cat([found.log_prob_BW, log_prob_BX.masked_fill(~ends_BX, NEVER)], 1)
    score = torch.cat([found.score_BW, score_BX.masked_fill(~ends_BX, NEVER)], 1)
    order_BW = score.sort(dim=1, descending=True, stable=True).indices[:, :W]
    return Answers(
        leaf.gather(1, order_BW), log_prob.gather(1, order_BW), score.gather(1, order_BW)
    )
