"""Hidden states at trie nodes, given each user's prompt: the model as the searches see it.

A hypothesis is a trie node, because the node fixes the tokens so far. `TreeScorer` keeps each
user's prompt once and hangs every token it is ever asked about under it, in one sequence a user
whose mask says which key is whose ancestor; nothing is copied when a beam moves. `PlainScorer` runs
the whole sequence again for every question: slow, obvious, the oracle.

Dimension key: B users, M questions, L prompt length, S slots (tokens hung under a prompt), C new
slots of all users (flat), Q new slots of one user, E entries (slots of all users in the order they
were run, the prompts' ends first), K keys, D hidden width, P nodes on a path.
"""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from hatllm.data.prompt import Batch, IntArray
from hatllm.decode.catalogue import Catalogue
from hatllm.decode.fast.catalogue_states import (
    CatalogueStates,
    catalogue_states,
    states_file,
    tokens_to_build,
)
from hatllm.decode.trie import ItemTrie
from hatllm.masks.layer_masks import Tokens, build_layer_masks
from hatllm.masks.patterns import PREFIX, RESPONSE
from hatllm.model.fast.key_values import KeyValueStore
from hatllm.model.fast.packed_prompts import Packed, masks_after_prefix
from hatllm.model.fast.stages import Band, PrefixStates, Rows, Stage
from hatllm.model.masked_lm import MaskedLM
from hatllm.processes import process_rank

if TYPE_CHECKING:
    from hatllm.config import Config


FORCED_AHEAD = 16


class Scorer(Protocol):
    """Answers with the hidden state that predicts the token after a node."""

    lm: MaskedLM
    trie: ItemTrie
    num_users: int

    def hidden_at(self, user_M: Tensor, node_M: Tensor) -> Tensor:
        """Hidden state after each user's prompt and the tokens down to the node.

        Args:
            user_M: Row of the batch. Shape (M,), int64.
            node_M: Trie node, root allowed. Shape (M,), int64.

        Returns:
            hidden_MD: Shape (M, D).
        """
        ...


def build_scorers(
    lm: MaskedLM, catalogue: Catalogue, config: "Config", prompt_lengths: IntArray
) -> "Scorers":
    """What makes the scorers of a run.

    Args:
        lm: Model under its schedule, on its device.
        catalogue: Tokenised titles and their trie.
        config: The run: fast or plain, with or without the catalogue's states.
        prompt_lengths: Tokens of every prompt to come; decides whether the states pay.

    Returns:
        Scorers for batches of these prompts.
    """
    states = None
    if config.fast and config.decode.state_cache is not False:
        folder = Path(config.cache_root).expanduser() / "states"
        wanted = config.decode.state_cache
        if wanted or states_pay(lm, catalogue, prompt_lengths, folder):
            try:
                states = catalogue_states(lm, catalogue, folder)
            except OSError as error:
                if wanted:
                    raise ValueError(
                        f"decode.state_cache=true cannot write to {folder}: {error.strerror}; free "
                        "room, choose another cache_root, or decode.state_cache=false"
                    ) from error
                warnings.warn(f"no catalogue states in {folder}: {error.strerror}", stacklevel=2)
    # A best-first search turns to another title at any token; a beam mostly goes on.
    beam_scores_all = config.decode.normalize == "vocab" and config.decode.is_beam
    ahead = FORCED_AHEAD if beam_scores_all else 0
    return Scorers(lm, catalogue, config.fast, states, ahead)


def states_pay(lm: MaskedLM, catalogue: Catalogue, prompt_lengths: IntArray, folder: Path) -> bool:
    """Whether the catalogue's states lie ready, or cost fewer tokens than the prompts hold."""
    if lm.schedule.num_segment_layers in (0, lm.num_layers) or process_rank()[1] > 1:
        return False
    own = prompt_lengths.sum() - len(prompt_lengths) * len(catalogue.book.prefix)
    return (
        own > tokens_to_build(catalogue, lm.schedule.target_is_item)
        or states_file(lm, catalogue, folder).exists()
    )


class Scorers:
    """Makes the scorers of a model's batches; holds what these share."""

    def __init__(
        self,
        lm: MaskedLM,
        catalogue: Catalogue,
        fast: bool,
        states: CatalogueStates | None = None,
        forced_ahead: int = 0,
    ) -> None:
        """Run the constant prefix.

        Args:
            lm: Model under its schedule, on its device.
            catalogue: Tokenised titles and their trie.
            fast: False gives the oracle.
            states: Shallow states of the catalogue, where it pays to have them.
            forced_ahead: Forced tokens after a node that go through the model with it; saves passes
                where every token is scored, as under `normalize: vocab`.
        """
        self.forced_ahead = forced_ahead
        device = lm.output_embedding_VD.device
        self.lm, self.trie, self.fast, self.states = lm, catalogue.trie.to(device), fast, states
        prefix_P = torch.from_numpy(catalogue.book.prefix).to(device)
        self.prefix = lm.run_prefix(prefix_P) if fast else PrefixStates()

    def of(self, batch: Batch) -> Scorer:
        """The scorer of one right-padded batch without titles, on the model's device."""
        if self.fast:
            return TreeScorer(
                self.lm, self.trie, batch, self.prefix, self.states, self.forced_ahead
            )
        return PlainScorer(self.lm, self.trie, batch)


def _title_tokens(batch: Batch, target_is_item: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Segment, position and restarted position of each user's first title token, each (B,)."""
    segment_BL = batch.tokens.segment_BL
    restart_B = ((segment_BL == PREFIX) & batch.valid_BL).sum(1)
    if target_is_item:
        segment_B = segment_BL.masked_fill(~batch.valid_BL, RESPONSE).amax(1).clamp(min=-1) + 1
    else:
        segment_B = torch.full_like(batch.prompt_length_B, RESPONSE)
        restart_B = restart_B + ((segment_BL == RESPONSE) & batch.valid_BL).sum(1)
    return segment_B, batch.prompt_length_B, restart_B


class PlainScorer:
    """Every question is a full forward pass of prompt and path."""

    def __init__(self, lm: MaskedLM, trie: ItemTrie, batch: Batch) -> None:
        self.lm, self.trie, self.batch = lm, trie, batch
        self.num_users = batch.num_rows
        self.first = _title_tokens(batch, lm.schedule.target_is_item)

    def hidden_at(self, user_M: Tensor, node_M: Tensor) -> Tensor:
        """As `Scorer.hidden_at`."""
        path_MP = self.trie.path_to(node_M)
        length_M1 = self.batch.prompt_length_B[user_M, None]
        ids_ML = pad(self.batch.input_ids_BL[user_M], (0, path_MP.shape[1]))
        segment_ML = pad(self.batch.tokens.segment_BL[user_M], (0, path_MP.shape[1]))
        restart_ML = pad(self.batch.tokens.restart_BL[user_M], (0, path_MP.shape[1]))
        step_MP = torch.arange(path_MP.shape[1], device=node_M.device).expand_as(path_MP)
        column_MP = length_M1 + step_MP
        segment_B, _, restart_B = self.first
        # After a path's end stands any token: the root's -1 is none the model could embed.
        token_MP = self.trie.token_N[path_MP.clamp(min=0)].clamp(min=0)
        ids_ML = ids_ML.scatter(1, column_MP, token_MP)
        segment_ML = segment_ML.scatter(1, column_MP, segment_B[user_M, None].expand_as(path_MP))
        restart_ML = restart_ML.scatter(1, column_MP, restart_B[user_M, None] + step_MP)
        end_M1 = length_M1 + self.trie.depth_N[node_M][:, None]
        index_ML = torch.arange(ids_ML.shape[1], device=node_M.device).expand_as(ids_ML)
        tokens = Tokens(segment_ML, index_ML, restart_ML)
        hidden_MLD = self.lm.hidden_of_prompts(ids_ML, tokens, index_ML < end_M1)
        return hidden_MLD[torch.arange(len(user_M), device=node_M.device), end_M1[:, 0] - 1]


class TreeScorer:
    """One prompt KV a user, one KV a (user, node), each computed once.

    Keys of a user stand in one row: prefix, prompt, then its slots, one for each token ever hung
    under the prompt. Nothing moves when beams do.
    """

    def __init__(
        self,
        lm: MaskedLM,
        trie: ItemTrie,
        batch: Batch,
        prefix: PrefixStates,
        states: CatalogueStates | None,
        forced_ahead: int,
    ) -> None:
        self.lm, self.trie, self.states, self.forced_ahead = lm, trie, states, forced_ahead
        self.num_users = batch.num_rows
        self.first = _title_tokens(batch, lm.schedule.target_is_item)
        self.prompt, self.prompt_valid_BL = batch.tokens, batch.valid_BL
        self.store = KeyValueStore(prefix, self.num_users, prefix.num_tokens)
        end_BD = self._run_prompts(batch, prefix.num_tokens)
        users_B = torch.arange(self.num_users, device=batch.valid_BL.device)
        # Known (user, node) pairs, sorted, and which entry of the lists below is theirs.
        self.known_E, self.entry_E = users_B * trie.num_nodes, users_B
        self.hidden_ED = end_BD
        self.slot_E = torch.full_like(users_B, -1)  # the root's token is the prompt's last
        self.count_B = torch.zeros_like(users_B)
        self.depth_BS = users_B.new_zeros(self.num_users, 0)  # of the token in each slot

    def _run_prompts(self, batch: Batch, num_prefix: int) -> Tensor:
        """Keys and values of all prompts; hidden state of each prompt's last token, (B, D)."""
        packed = Packed.of(batch, num_prefix)
        masks = masks_after_prefix(
            self.lm.schedule, num_prefix, packed.tokens, packed.visible_FQQ, self._layers
        )
        row_T, column_T = packed.valid_FQ.nonzero(as_tuple=True)
        self.store.aim(row_T, num_prefix + column_T, batch.valid_BL.shape[1])
        stage = Stage([Band(masks, Rows.of(packed.valid_FQ), self.store)], *packed.positions)
        if self.states is not None:
            book_index_T = batch.book_index_BL[:, num_prefix:][packed.valid_FQ]
            stage.first_layer = self._layers.start
            stage.entering = self.states.of_prompt(book_index_T)
        hidden_TD = self.lm.hidden(packed.ids_T, [stage], self._layers)
        users_B = torch.arange(self.num_users, device=row_T.device)
        return hidden_TD[packed.index_BL[users_B, batch.prompt_length_B - 1]]

    @property
    def _layers(self) -> range:
        """Layers that run; those before are known from the catalogue's states."""
        return range(self.states.num_layers if self.states else 0, self.lm.num_layers)

    def hidden_at(self, user_M: Tensor, node_M: Tensor) -> Tensor:
        """As `Scorer.hidden_at`."""
        entry_M = self._entry_of(user_M, node_M)
        if (entry_M < 0).any():
            self._hang_missing(user_M[entry_M < 0], node_M[entry_M < 0])
            entry_M = self._entry_of(user_M, node_M)
        return self.hidden_ED[entry_M]

    def _entry_of(self, user_M: Tensor, node_M: Tensor) -> Tensor:
        """Entry of each (user, node), -1 where it was never run; nodes of -1 have none."""
        key_M = user_M * self.trie.num_nodes + node_M
        found_M = torch.searchsorted(self.known_E, key_M).clamp_(max=len(self.known_E) - 1)
        is_known_M = (self.known_E[found_M] == key_M) & (node_M >= 0)
        return self.entry_E[found_M].masked_fill(~is_known_M, -1)

    def _hang_missing(self, user_M: Tensor, node_M: Tensor) -> None:
        """Run the nodes, and those above them that were never run."""
        path_MP = self.trie.path_to(node_M)
        user_MP = user_M[:, None].expand_as(path_MP)
        is_new_MP = (path_MP >= 0) & (self._entry_of(user_MP, path_MP) < 0)
        # By user and node; nodes are numbered breadth first, so a parent comes before its child.
        key_C = (user_MP * self.trie.num_nodes + path_MP)[is_new_MP]
        key_C = torch.unique(torch.cat([key_C, self._forced_after(user_M, node_M)]))
        user_C, node_C = key_C // self.trie.num_nodes, key_C % self.trie.num_nodes
        added_B = torch.bincount(user_C, minlength=self.num_users)
        before_B = added_B.cumsum(0) - added_B
        place_C = torch.arange(len(key_C), device=key_C.device) - before_B[user_C]
        slot_C = self.count_B[user_C] + place_C
        self.count_B = self.count_B + added_B
        self._remember(key_C, slot_C)
        depth_C = self.trie.depth_N[node_C] - 1
        num_slots = int(self.count_B.max())
        self.depth_BS = pad(self.depth_BS, (0, max(0, num_slots - self.depth_BS.shape[1])))
        self.depth_BS[user_C, slot_C] = depth_C
        rows = Rows(user_C * int(added_B.max()) + place_C, self.num_users, int(added_B.max()))
        stage = self._hung_stage(user_C, node_C, place_C, slot_C, rows)
        if self.states is not None:
            stage.first_layer = self._layers.start
            stage.entering = self.states.of_nodes(node_C)
        hidden_CD = self.lm.hidden(self.trie.token_N[node_C], [stage], self._layers)
        self.hidden_ED = torch.cat([self.hidden_ED, hidden_CD])

    def _forced_after(self, user_M: Tensor, node_M: Tensor) -> Tensor:
        """Keys of the next forced tokens, which will be asked for if their title stays in play."""
        keys = []
        for _ in range(self.forced_ahead):
            goes_on_M = self.trie.num_children_N[node_M] == 1
            user_M, node_M = user_M[goes_on_M], self.trie.first_child_N[node_M[goes_on_M]]
            inner_M = self.trie.num_children_N[node_M] > 0
            user_M, node_M = user_M[inner_M], node_M[inner_M]
            keys.append(user_M * self.trie.num_nodes + node_M)
        return torch.cat(keys) if keys else node_M[:0]

    def _remember(self, key_C: Tensor, slot_C: Tensor) -> None:
        entry_C = len(self.slot_E) + torch.arange(len(key_C), device=key_C.device)
        self.known_E, order_E = torch.cat([self.known_E, key_C]).sort()
        self.entry_E = torch.cat([self.entry_E, entry_C])[order_E]
        self.slot_E = torch.cat([self.slot_E, slot_C])

    def _hung_stage(
        self, user_C: Tensor, node_C: Tensor, place_C: Tensor, slot_C: Tensor, rows: Rows
    ) -> Stage:
        """Each new token sees the prompt, the tokens above it and itself."""
        B, L, S = *self.prompt_valid_BL.shape, self.depth_BS.shape[1]
        path_CP = self.trie.path_to(node_C)
        entry_CP = self._entry_of(user_C[:, None].expand_as(path_CP), path_CP)
        # After a path's end stands its own slot, which it sees anyway.
        above_CP = torch.where(entry_CP >= 0, self.slot_E[entry_CP], slot_C[:, None])
        sees_CS = torch.zeros(len(node_C), S, dtype=torch.bool, device=node_C.device)
        sees_CS = sees_CS.scatter(1, above_CP, True)
        visible_BQK = self.prompt_valid_BL.new_zeros(B, rows.num_places, L + S)
        visible_BQK[:, :, :L] = self.prompt_valid_BL[:, None]
        visible_BQK[user_C, place_C, L:] = sees_CS
        own_BQK = torch.zeros_like(visible_BQK)
        own_BQK[:, :, 0] = True  # padding has to see something
        own_BQK[user_C, place_C, 0] = False
        own_BQK[user_C, place_C, L + slot_C] = True
        segment_B, position_B, restart_B = self.first
        position_C, restart_C = (x_B[user_C] + self.depth_BS[user_C, slot_C]
                                 for x_B in (position_B, restart_B))  # fmt: skip
        query = Tokens(
            segment_B[:, None].expand(-1, rows.num_places),
            rows.pad(position_C[:, None])[:, :, 0],
            rows.pad(restart_C[:, None])[:, :, 0],
        )
        slots = Tokens(
            segment_B[:, None].expand(-1, S),
            position_B[:, None] + self.depth_BS,
            restart_B[:, None] + self.depth_BS,
        )
        masks = build_layer_masks(
            self.lm.schedule, query, self.prompt.append(slots), visible_BQK, own_BQK, self._layers
        )
        self.store.aim(user_C, L + slot_C, L + S)
        return Stage([Band(masks, rows, self.store)], position_C, restart_C)
