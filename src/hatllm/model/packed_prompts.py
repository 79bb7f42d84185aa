"""Padded prompts as packed stages: nothing runs twice, and nothing that no one asks for.

The constant prefix runs once. Padding does not run. Tokens after the last one asked for do not run.
Where one row's history begins another's (prompts of one user, `all_prefixes`), the shorter row
hangs its response and title under the longer one's history. Under `intra_scope: segments` the
shallow layers run each different segment once.

Dimension key: B prompts, L columns, P prefix tokens, F families of prompts, Q places in a family,
K keys, T packed tokens, S segments of all rows, U different segments, N tokens of the longest
segment, M tokens asked for, D hidden width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from hatllm.data.prompt import Batch
from hatllm.masks.layer_masks import LayerMasks, Tokens, build_layer_masks, causal_visible
from hatllm.masks.patterns import PREFIX
from hatllm.masks.schedule import Schedule
from hatllm.model.masked_lm import MaskedLM
from hatllm.model.stages import AfterPrefix, Past, PrefixStates, Rows, Stage


@dataclass(frozen=True)
class Packed:
    """The tokens of a batch after the prefix that have to run, in families of prompts."""

    ids_T: Tensor
    tokens: Tokens  # padded, (F, Q)
    valid_FQ: Tensor
    visible_FQQ: Tensor  # which tokens of the family each could see under full attention
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
        """
        L = batch.valid_BL.shape[1]
        history_B, host_B = _hosts(batch)
        alone_B = torch.arange(len(host_B), device=host_B.device)
        plans = [
            (host, *_running(batch, num_prefix, last_B, history_B, host))
            for host in (alone_B, host_B)
        ]
        host_B, runs_BL, shared_BL = min(
            plans, key=lambda plan: _cost(plan[1], plan[0], num_prefix, width)
        )
        row_T, column_T = runs_BL.nonzero(as_tuple=True)
        by_family_T = host_B[row_T].sort(stable=True).indices
        row_T, column_T = row_T[by_family_T], column_T[by_family_T]
        host_T = host_B[row_T]
        hosts_F, family_T = torch.unique_consecutive(host_T, return_inverse=True)
        size_F = torch.bincount(family_T, minlength=len(hosts_F))
        start_F = size_F.cumsum(0) - size_F
        place_T = torch.arange(len(row_T), device=row_T.device) - start_F[family_T]

        def laid_out(value_T: Tensor, padding: int) -> Tensor:
            out = value_T.new_full((len(hosts_F), int(size_F.max())), padding)
            out[family_T, place_T] = value_T
            return out

        row_FQ, column_FQ = laid_out(row_T, -1), laid_out(column_T, L)
        index_BL = torch.zeros_like(batch.input_ids_BL)
        index_BL[row_T, column_T] = torch.arange(len(row_T), device=row_T.device)
        index_BL = torch.where(shared_BL, index_BL[host_B], index_BL)
        guest_history_FQ = history_B[row_FQ.clamp(min=0)]
        own_FQQ = (row_FQ[:, :, None] == row_FQ[:, None]) & (
            column_FQ[:, :, None] >= column_FQ[:, None]
        )
        is_hosts_FQ = row_FQ == hosts_F[:, None]
        below_FQQ = is_hosts_FQ[:, None] & (column_FQ[:, None] < guest_history_FQ[:, :, None])
        valid_FQ = row_FQ >= 0
        is_guest_FQ1 = ~is_hosts_FQ[:, :, None]
        at = row_FQ.clamp(min=0), column_FQ.clamp(max=L - 1)
        tokens = Tokens(
            batch.tokens.segment_BL[at], batch.tokens.position_BL[at], batch.tokens.restart_BL[at]
        )
        visible_FQQ = (own_FQQ | (below_FQQ & is_guest_FQ1)) & valid_FQ[:, None]
        return cls(batch.input_ids_BL[row_T, column_T], tokens, valid_FQ, visible_FQQ, index_BL)

    def stage(self, masks: LayerMasks, past: Past) -> Stage:
        """The stage of all these tokens."""
        position_T = self.tokens.position_BL[self.valid_FQ]
        restart_T = self.tokens.restart_BL[self.valid_FQ]
        return Stage(masks, position_T, restart_T, Rows.of(self.valid_FQ), past)


def _running(
    batch: Batch, num_prefix: int, last_B: Tensor, history_B: Tensor, host_B: Tensor
) -> tuple[Tensor, Tensor]:
    """Which tokens run, and which stand in their host's place instead; both (B, L), bool."""
    column_L = torch.arange(batch.valid_BL.shape[1], device=last_B.device)
    is_guest_B = host_B != torch.arange(len(host_B), device=last_B.device)
    shared_BL = is_guest_B[:, None] & (column_L < history_B[:, None])
    asked_BL = batch.valid_BL & (column_L <= last_B[:, None])
    # A host's history runs as far as a guest needs it, whatever the host is asked for.
    needed_B = torch.where(last_B >= 0, torch.minimum(history_B, last_B + 1), 0)
    needed_B = torch.zeros_like(needed_B).scatter_reduce(0, host_B, needed_B, "amax")
    hosted_BL = column_L < needed_B[:, None]
    runs_BL = ((asked_BL & ~shared_BL) | hosted_BL) & (column_L >= num_prefix)
    return runs_BL, shared_BL


def _cost(runs_BL: Tensor, host_B: Tensor, num_prefix: int, width: int) -> int:
    """Work of a layer in units of one key of one query: matrices, then padded attention."""
    size_B = torch.zeros_like(host_B).index_add(0, host_B, runs_BL.sum(1))
    longest, num_families = int(size_B.max()), int((size_B > 0).sum())
    # A Llama layer has about 12 width ** 2 weights; a key costs 2 width multiplications.
    return int(size_B.sum()) * 6 * width + num_families * longest * (num_prefix + longest)


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


def masks_after_prefix(
    schedule: Schedule,
    num_prefix: int,
    tokens: Tokens,
    visible_FQQ: Tensor,
    layers: range | None = None,
) -> LayerMasks:
    """Masks of rows whose keys are the prefix and themselves.

    Args:
        schedule: One pattern for each layer.
        num_prefix: Prefix tokens, P.
        tokens: The rows' own tokens. Shape (F, Q).
        visible_FQQ: Which of a row's tokens could see which under full attention. Bool.
        layers: The layers the masks are for; None = all.

    Returns:
        Masks with P + Q keys.
    """
    F, Q = tokens.segment_BL.shape
    position_FP = torch.arange(num_prefix, device=visible_FQQ.device).expand(F, -1)
    prefix = Tokens(torch.full_like(position_FP, PREFIX), position_FP, position_FP)
    sees_prefix_FQP = visible_FQQ.new_ones(F, Q, num_prefix)
    visible_FQK = torch.cat([sees_prefix_FQP, visible_FQQ], 2)
    return build_layer_masks(schedule, tokens, prefix.append(tokens), visible_FQK, layers=layers)


def hidden_at(
    lm: MaskedLM, batch: Batch, prefix_ids_P: Tensor, row_M: Tensor, column_M: Tensor
) -> Tensor:
    """Hidden states of chosen tokens; equal to the padded way, gradients included.

    Args:
        lm: The model under its schedule.
        batch: Right-padded prompts, each beginning with the prefix.
        prefix_ids_P: Token ids of the prefix. Shape (P,), int64.
        row_M: Prompt of each token asked for. Shape (M,), int64.
        column_M: Its column, prefix included, >= P. Shape (M,), int64.

    Returns:
        hidden_MD: Shape (M, D).
    """
    last_B = torch.full_like(batch.prompt_length_B, -1).scatter_reduce(0, row_M, column_M, "amax")
    width = lm.output_embedding_VD.shape[1]
    packed = Packed.in_families(batch, len(prefix_ids_P), last_B, width)
    return hidden_of_packed(lm, packed, prefix_ids_P)[packed.index_BL[row_M, column_M]]


def hidden_of_packed(lm: MaskedLM, packed: Packed, prefix_ids_P: Tensor) -> Tensor:
    """Hidden states of all packed tokens. Shape (T, D)."""
    num_prefix, shallow = len(prefix_ids_P), lm.schedule.num_segment_layers
    prefix = lm.run_prefix(prefix_ids_P)
    layers = range(shallow, lm.num_layers)
    masks = masks_after_prefix(lm.schedule, num_prefix, packed.tokens, packed.visible_FQQ, layers)
    whole = packed.stage(masks, AfterPrefix(prefix))
    if not shallow:
        return lm.hidden(packed.ids_T, [whole])
    segments = Segments.of(packed)
    whole.first_layer, whole.from_T = shallow, segments.from_T
    once = segments.stage(lm.schedule, num_prefix, prefix)
    ids_T = segments.ids_SN[segments.valid_SN]
    if not layers:
        return lm.hidden(ids_T, [once])[segments.from_T]
    return lm.hidden(ids_T, [once, whole])


@dataclass(frozen=True)
class Segments:
    """Different segments, each once, as rows of their own."""

    ids_SN: Tensor  # -1 on padding
    valid_SN: Tensor
    from_T: Tensor  # where each token of the prompts stands among the packed segments' tokens

    @classmethod
    def of(cls, packed: Packed) -> "Segments":
        """Cut packed prompts into segments and keep one of those with equal tokens."""
        row_T = packed.valid_FQ.nonzero()[:, 0]
        label_T = packed.tokens.segment_BL[packed.valid_FQ]
        restart_T = packed.tokens.restart_BL[packed.valid_FQ]
        starts_T = torch.ones_like(label_T, dtype=torch.bool)
        # A title ends one prompt of a family; the next begins with a response of its own.
        starts_T[1:] = (label_T[1:] != label_T[:-1]) | (row_T[1:] != row_T[:-1])
        starts_T[1:] |= restart_T[1:] <= restart_T[:-1]
        segment_T = starts_T.cumsum(0) - 1
        start_S = starts_T.nonzero()[:, 0]
        offset_T = torch.arange(len(label_T), device=label_T.device) - start_S[segment_T]
        ids_SN = label_T.new_full((len(start_S), int(offset_T.max()) + 1), -1)
        ids_SN[segment_T, offset_T] = packed.ids_T
        ids_UN, unique_S = torch.unique(ids_SN, dim=0, return_inverse=True)
        valid_UN = ids_UN >= 0
        length_U = valid_UN.sum(1)
        start_U = length_U.cumsum(0) - length_U
        return cls(ids_UN, valid_UN, start_U[unique_S[segment_T]] + offset_T)

    def stage(self, schedule: Schedule, num_prefix: int, prefix: PrefixStates) -> Stage:
        """The shallow layers' stage: each segment sees the prefix and itself."""
        return segment_stage(schedule, self.valid_SN, num_prefix, prefix)


def segment_stage(
    schedule: Schedule, valid_SN: Tensor, num_prefix: int, prefix: PrefixStates
) -> Stage:
    """Segments as rows of their own, right after the prefix.

    Args:
        schedule: Has at least one segment layer.
        valid_SN: False on padding, which stands on the right. Shape (S, N), bool.
        num_prefix: Prefix tokens.
        prefix: Their keys and values.

    Returns:
        The stage of the schedule's segment layers.
    """
    offset_SN = torch.arange(valid_SN.shape[1], device=valid_SN.device).expand_as(valid_SN)
    position_SN = num_prefix + offset_SN
    tokens = Tokens(torch.zeros_like(offset_SN), position_SN, position_SN)
    visible_SNN = causal_visible(valid_SN, valid_SN.shape[1])
    layers = range(schedule.num_segment_layers)
    masks = masks_after_prefix(schedule, num_prefix, tokens, visible_SNN, layers)
    position_T = position_SN[valid_SN]
    return Stage(masks, position_T, position_T, Rows.of(valid_SN), AfterPrefix(prefix))
