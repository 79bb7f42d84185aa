"""Padded prompts as packed stages: nothing runs twice, and nothing that no one asks for.

The constant prefix runs once, in front of the prompts. Padding does not run, nor do tokens after
the last one asked for.
Where one row's history begins another's (prompts of one user, `all_prefixes`), the shorter row
hangs its response and title under the longer one's history. Under `intra_scope: segments` the
shallow layers run each different segment once.

Dimension key: B prompts, L columns, A prefix tokens, Y families of prompts, Q places in a family,
K keys, T packed tokens, S segments of all rows, U different segments, L tokens of the longest
segment, M tokens asked for, D hidden width.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hatllm.data.prompt import Batch
from hatllm.masks.layer_masks import Tokens, causal_visible
from hatllm.masks.schedule import Schedule
from hatllm.model.fast.prefix import PrefixStates, bands_after_prefix, prefix_band
from hatllm.model.fast.stages import Stage, hidden_of_stages
from hatllm.model.masked_lm import MaskedLM


@dataclass(frozen=True)
class Packed:
    """The tokens of a batch after the prefix that have to run, in families of prompts."""

    ids_T: Tensor
    tokens: Tokens  # padded, (Y, Q)
    valid_YQ: Tensor
    visible_YQQ: Tensor  # which tokens of the family each could see under full attention
    index_BL: Tensor  # packed index of each token of the batch; without meaning where none runs

    @classmethod
    def of(cls, batch: Batch, num_prefix: int) -> "Packed":
        """Every prompt a family of its own: all tokens after the prefix.

        Args:
            batch: Right-padded prompts, each beginning with the prefix.
            num_prefix: Its tokens.
        """
        valid_BQ = batch.valid_BL[:, num_prefix:]
        index_BL = batch.valid_BL.clone()
        index_BL[:, :num_prefix] = False
        return cls(
            batch.input_ids_BL[:, num_prefix:][valid_BQ],
            batch.tokens.select(slice(num_prefix, None)),
            valid_BQ,
            causal_visible(valid_BQ, valid_BQ.shape[1]),
            (index_BL.flatten().cumsum(0) - 1).view_as(index_BL),
        )

    @classmethod
    def in_families(cls, batch: Batch, num_prefix: int, last_B: Tensor, width: int) -> "Packed":
        """Prompts whose histories begin one another share what they have in common.

        Args:
            batch: Right-padded prompts, each beginning with the prefix.
            num_prefix: Its tokens.
            last_B: Last column of each prompt that has to run, -1 = none. Shape (B,), int64.
            width: Hidden width of the model; decides whether sharing pays.

        Returns:
            Families, those of fewest tokens first.
        """
        history_B, host_B = _hosts(batch)
        alone_B = torch.arange(len(host_B), device=host_B.device)
        plans = [
            _Families.of(batch, num_prefix, last_B, history_B, host) for host in (alone_B, host_B)
        ]
        return min(plans, key=lambda plan: plan.cost(num_prefix, width)).packed(batch)

    def stage(self, schedule: Schedule, num_prefix: int, prefix: PrefixStates) -> Stage:
        """The stage of all these tokens after a prefix, from its first layer without segments."""
        first = schedule.num_segment_layers
        layers = range(first, len(schedule.patterns))
        bands = bands_after_prefix(
            schedule, self.tokens, self.valid_YQ, self.visible_YQQ, prefix, num_prefix, layers
        )
        return Stage(bands, *self.positions, first_layer=first)

    @property
    def positions(self) -> tuple[Tensor, Tensor]:
        """Position and restarted position of every token; each (T,)."""
        return self.tokens.position_BL[self.valid_YQ], self.tokens.restart_BL[self.valid_YQ]


@dataclass(frozen=True)
class _Families:
    """Which prompt hangs under which history, and so which tokens run."""

    host_B: Tensor  # its own row where a prompt hangs under no other
    history_B: Tensor
    runs_BL: Tensor  # tokens that run, bool
    shared_BL: Tensor  # tokens that stand in their host's place instead, bool

    @classmethod
    def of(
        cls, batch: Batch, num_prefix: int, last_B: Tensor, history_B: Tensor, host_B: Tensor
    ) -> "_Families":
        column_L = torch.arange(batch.valid_BL.shape[1], device=last_B.device)
        is_guest_B = host_B != torch.arange(len(host_B), device=last_B.device)
        shared_BL = is_guest_B[:, None] & (column_L < history_B[:, None])
        asked_BL = batch.valid_BL & (column_L <= last_B[:, None])
        # A host's history runs as far as a guest needs it, whatever the host is asked for.
        needed_B = torch.where(last_B >= 0, torch.minimum(history_B, last_B + 1), 0)
        needed_B = torch.zeros_like(needed_B).scatter_reduce(0, host_B, needed_B, "amax")
        hosted_BL = column_L < needed_B[:, None]
        runs_BL = ((asked_BL & ~shared_BL) | hosted_BL) & (column_L >= num_prefix)
        return cls(host_B, history_B, runs_BL, shared_BL)

    @property
    def size_B(self) -> Tensor:
        """Tokens of each host's family; 0 for a guest."""
        return torch.zeros_like(self.host_B).index_add(0, self.host_B, self.runs_BL.sum(1))

    def cost(self, num_prefix: int, width: int) -> int:
        """Work of a layer in units of one key of one query: matrices, then padded attention."""
        longest, num_families = int(self.size_B.max()), int((self.size_B > 0).sum())
        # A Llama layer has about 12 width ** 2 weights; a key costs 2 width multiplications.
        attention = num_families * longest * (num_prefix + longest)
        return int(self.size_B.sum()) * 6 * width + attention

    def packed(self, batch: Batch) -> Packed:
        """The tokens that run, family by family, a guest's after its host's."""
        row_T, column_T, row_YQ, column_YQ = self._layout()
        index_BL = torch.zeros_like(batch.input_ids_BL)
        index_BL[row_T, column_T] = torch.arange(len(row_T), device=row_T.device)
        index_BL = torch.where(self.shared_BL, index_BL[self.host_B], index_BL)
        at = row_YQ.clamp(min=0), column_YQ
        tokens = Tokens(
            batch.tokens.segment_BL[at], batch.tokens.position_BL[at], batch.tokens.restart_BL[at]
        )
        ids_T = batch.input_ids_BL[row_T, column_T]
        return Packed(ids_T, tokens, row_YQ >= 0, self._visible(row_YQ, column_YQ), index_BL)

    def _layout(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Row and column in the batch of every token that runs: packed, and in families.

        Returns:
            Two of shape (T,) and two of shape (Y, Q), where padding has row -1 and column 0.
        """
        row_T, column_T = self.runs_BL.nonzero(as_tuple=True)
        host_T = self.host_B[row_T]
        order_T = (self.size_B[host_T] * len(self.host_B) + host_T).sort(stable=True).indices
        row_T, column_T, host_T = row_T[order_T], column_T[order_T], host_T[order_T]
        _, family_T, size_Y = torch.unique_consecutive(
            host_T, return_inverse=True, return_counts=True
        )
        start_Y = size_Y.cumsum(0) - size_Y
        place_T = torch.arange(len(row_T), device=row_T.device) - start_Y[family_T]
        row_YQ = row_T.new_full((len(size_Y), int(size_Y.max())), -1)
        column_YQ = torch.zeros_like(row_YQ)
        row_YQ[family_T, place_T], column_YQ[family_T, place_T] = row_T, column_T
        return row_T, column_T, row_YQ, column_YQ

    def _visible(self, row_YQ: Tensor, column_YQ: Tensor) -> Tensor:
        """A token sees its own prompt so far, and a guest's its part of the host's history."""
        host_YQ = self.host_B[row_YQ.clamp(min=0)]
        own_YQQ = (row_YQ[:, :, None] == row_YQ[:, None]) & (
            column_YQ[:, :, None] >= column_YQ[:, None]
        )
        is_hosts_YQ, history_YQ = row_YQ == host_YQ, self.history_B[row_YQ.clamp(min=0)]
        below_YQQ = is_hosts_YQ[:, None] & (column_YQ[:, None] < history_YQ[:, :, None])
        is_guest_YQ1 = ~is_hosts_YQ[:, :, None]
        return (own_YQQ | (below_YQQ & is_guest_YQ1)) & (row_YQ >= 0)[:, None]


def _hosts(batch: Batch) -> tuple[Tensor, Tensor]:
    """Columns up to the end of each history, and the prompt under whose history each one hangs.

    Returns:
        history_B: Prefix and history tokens. Shape (B,), int64.
        host_B: The longest history that begins with this one, the first of equals. Shape (B,).
    """
    is_item_BL = (batch.tokens.segment_BL >= 0) & (batch.book_index_BL >= 0)
    L = is_item_BL.shape[1]
    column_L = torch.arange(L, device=is_item_BL.device)
    history_B = torch.where(is_item_BL, column_L + 1, 0).amax(1)
    item_BL = batch.book_index_BL.masked_fill(~is_item_BL, -1)
    differs_BBL = (item_BL[:, None] != item_BL[None]) & (column_L < history_B[:, None, None])
    begins_BB = ~differs_BBL.any(-1) & (history_B > 0)[:, None]
    begins_BB.fill_diagonal_(True)
    host_B = torch.where(begins_BB, history_B[None], -1).argmax(1)
    return history_B, host_B


def hidden_at(
    lm: MaskedLM, batch: Batch, prefix_ids_A: Tensor, row_M: Tensor, column_M: Tensor
) -> Tensor:
    """Hidden states of chosen tokens; equal to the padded way, gradients included.

    Args:
        lm: The model under its schedule.
        batch: Right-padded prompts, each beginning with the prefix.
        prefix_ids_A: Token ids of the prefix. Shape (A,), int64.
        row_M: Prompt of each token asked for. Shape (M,), int64.
        column_M: Its column, prefix included, >= A. Shape (M,), int64.

    Returns:
        hidden_MD: Shape (M, D).
    """
    last_B = torch.full_like(batch.prompt_length_B, -1).scatter_reduce(0, row_M, column_M, "amax")
    width = lm.output_embedding_VD.shape[1]
    packed = Packed.in_families(batch, len(prefix_ids_A), last_B, width)
    return hidden_of_packed(lm, packed, prefix_ids_A)[packed.index_BL[row_M, column_M]]


def hidden_of_packed(lm: MaskedLM, packed: Packed, prefix_ids_A: Tensor) -> Tensor:
    """Hidden states of all packed tokens. Shape (T, D)."""
    num_prefix, states = len(prefix_ids_A), PrefixStates()
    whole, ids_T = packed.stage(lm.schedule, num_prefix, states), packed.ids_T
    stages = [whole]
    if lm.schedule.num_segment_layers:
        segments = Segments.of(packed)
        whole.from_T, ids_T = segments.from_T, segments.ids_SL[segments.valid_SL]
        once = segment_stage(lm.schedule, segments.valid_SL, num_prefix, states)
        stages = [once, whole] if whole.first_layer < lm.num_layers else [once]
    stages = [_with_prefix(stage, lm.schedule, prefix_ids_A, states) for stage in stages]
    hidden_TD = hidden_of_stages(lm, torch.cat([prefix_ids_A, ids_T]), stages)[num_prefix:]
    return hidden_TD if stages[-1].first_layer or whole.from_T is None else hidden_TD[whole.from_T]


def _with_prefix(
    stage: Stage, schedule: Schedule, prefix_ids_A: Tensor, states: PrefixStates
) -> Stage:
    """A stage with the prefix's tokens in front of its own; they leave their keys in `states`."""
    if not len(prefix_ids_A):
        return stage
    position_A = torch.arange(len(prefix_ids_A), device=prefix_ids_A.device)
    from_T = stage.from_T
    return replace(
        stage,
        bands=[prefix_band(schedule, states, prefix_ids_A), *stage.bands],
        position_T=torch.cat([position_A, stage.position_T]),
        restart_T=torch.cat([position_A, stage.restart_T]),
        from_T=None if from_T is None else torch.cat([position_A, len(position_A) + from_T]),
    )


@dataclass(frozen=True)
class Segments:
    """Different segments, each once, as rows of their own, the shortest first."""

    ids_SL: Tensor  # -1 on padding
    valid_SL: Tensor
    from_T: Tensor  # where each token of the prompts stands among the packed segments' tokens

    @classmethod
    def of(cls, packed: Packed) -> "Segments":
        """Cut packed prompts into segments and keep one of those with equal tokens."""
        row_T = packed.valid_YQ.nonzero()[:, 0]
        label_T = packed.tokens.segment_BL[packed.valid_YQ]
        _, restart_T = packed.positions
        starts_T = torch.ones_like(label_T, dtype=torch.bool)
        # A title ends one prompt of a family; the next begins with a response of its own.
        starts_T[1:] = (label_T[1:] != label_T[:-1]) | (row_T[1:] != row_T[:-1])
        starts_T[1:] |= restart_T[1:] <= restart_T[:-1]
        segment_T = starts_T.cumsum(0) - 1
        start_S = starts_T.nonzero()[:, 0]
        offset_T = torch.arange(len(label_T), device=label_T.device) - start_S[segment_T]
        ids_SL = label_T.new_full((len(start_S), int(offset_T.max()) + 1), -1)
        ids_SL[segment_T, offset_T] = packed.ids_T
        ids_UL, unique_S = torch.unique(ids_SL, dim=0, return_inverse=True)
        order_U = (ids_UL >= 0).sum(1).sort(stable=True).indices
        ids_UL, unique_S = ids_UL[order_U], order_U.argsort()[unique_S]
        valid_UL = ids_UL >= 0
        length_U = valid_UL.sum(1)
        start_U = length_U.cumsum(0) - length_U
        return cls(ids_UL, valid_UL, start_U[unique_S[segment_T]] + offset_T)


def segment_stage(
    schedule: Schedule, valid_SL: Tensor, num_prefix: int, prefix: PrefixStates
) -> Stage:
    """Segments as rows of their own, right after the prefix: each sees it and itself.

    Args:
        schedule: Has at least one segment layer.
        valid_SL: False on padding, which stands on the right. Shape (S, L), bool.
        num_prefix: Prefix tokens.
        prefix: Their keys and values.

    Returns:
        The stage of the schedule's segment layers.
    """
    offset_SL = torch.arange(valid_SL.shape[1], device=valid_SL.device).expand_as(valid_SL)
    position_SL = num_prefix + offset_SL
    tokens = Tokens(torch.zeros_like(offset_SL), position_SL, position_SL)
    visible_SLL = causal_visible(valid_SL, valid_SL.shape[1])
    layers = range(schedule.num_segment_layers)
    bands = bands_after_prefix(schedule, tokens, valid_SL, visible_SLL, prefix, num_prefix, layers)
    position_T = position_SL[valid_SL]
    return Stage(bands, position_T, position_T)
