"""The fast scorer: one prompt KV a user, one KV a (user, node), each computed once.

It keeps each user's prompt and hangs every token it is ever asked about under it, in one sequence a
user whose mask says which key is whose ancestor; nothing is copied when a beam moves. It answers as
`hatllm.decode.scorer.PlainScorer` does.

Dimension key: B users, M questions, L prompt length, Z slots (tokens hung under a prompt), T packed
new tokens of all users, Q new tokens of one user, X entries (slots of all users in the order they
were run, the prompts' ends first), K keys, D hidden width, P nodes on a path.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad

from hatllm.data.prompt import Batch, IntArray, first_title_token
from hatllm.decode.catalogue import Catalogue
from hatllm.decode.fast.catalogue_states import CatalogueStates, states_for_run
from hatllm.decode.trie import ItemTrie
from hatllm.masks.layer_masks import Tokens, build_layer_masks
from hatllm.model.fast.key_values import KeyValueStore
from hatllm.model.fast.packed_prompts import Packed
from hatllm.model.fast.prefix import PrefixStates, masks_after_prefix, run_prefix
from hatllm.model.fast.stages import Band, Rows, Stage, hidden_of_stages
from hatllm.model.masked_lm import MaskedLM

if TYPE_CHECKING:
    from hatllm.config import Config

FORCED_AHEAD = 16


def tree_scorers(
    lm: MaskedLM, catalogue: Catalogue, config: "Config", prompt_lengths: IntArray
) -> "TreeScorers":
    """As `decode.scorer.build_scorers`, the fast way; with the catalogue's states if they pay."""
    states = states_for_run(lm, catalogue, config, prompt_lengths)
    # A best-first search turns to another title at any token; a beam mostly goes on.
    beam_scores_all = config.decode.normalize == "vocab" and config.decode.is_beam
    return TreeScorers(lm, catalogue, states, FORCED_AHEAD if beam_scores_all else 0)


class TreeScorers:
    """Makes the scorers of a model's batches; holds the prefix's states and the catalogue's."""

    def __init__(
        self,
        lm: MaskedLM,
        catalogue: Catalogue,
        states: CatalogueStates | None = None,
        forced_ahead: int = 0,
    ) -> None:
        """Run the constant prefix.

        Args:
            lm: Model under its schedule, on its device.
            catalogue: Tokenised titles and their trie.
            states: Shallow states of the catalogue, where it pays to have them.
            forced_ahead: Forced tokens after a node that go through the model with it; saves passes
                where every token is scored, as under `normalize: vocab`.
        """
        device = lm.output_embedding_VD.device
        self.lm, self.trie, self.states = lm, catalogue.trie.to(device), states
        self.forced_ahead = forced_ahead
        self.prefix = run_prefix(lm, torch.from_numpy(catalogue.book.prefix).to(device))

    def of(self, batch: Batch) -> "TreeScorer":
        """The scorer of one right-padded batch without titles, on the model's device."""
        return TreeScorer(self.lm, self.trie, batch, self.prefix, self.states, self.forced_ahead)


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
        self.first = first_title_token(batch, lm.schedule.target_is_item)
        self.prompt, self.prompt_valid_BL = batch.tokens, batch.valid_BL
        self.store = KeyValueStore(prefix, self.num_users, prefix.num_tokens)
        end_BD = self._run_prompts(batch, prefix.num_tokens)
        users_B = torch.arange(self.num_users, device=batch.valid_BL.device)
        # Known (user, node) pairs, sorted, and which entry of the lists below is theirs.
        self.known_X, self.entry_X = users_B * trie.num_nodes, users_B
        self.hidden_XD = end_BD
        self.slot_X = torch.full_like(users_B, -1)  # the root's token is the prompt's last
        self.count_B = torch.zeros_like(users_B)
        self.depth_BZ = users_B.new_zeros(self.num_users, 0)  # of the token in each slot

    def _run_prompts(self, batch: Batch, num_prefix: int) -> Tensor:
        """Keys and values of all prompts; hidden state of each prompt's last token, (B, D)."""
        packed = Packed.of(batch, num_prefix)
        masks = masks_after_prefix(
            self.lm.schedule, num_prefix, packed.tokens, packed.visible_YQQ, self._layers
        )
        row_T, column_T = packed.valid_YQ.nonzero(as_tuple=True)
        self.store.aim(row_T, num_prefix + column_T, batch.valid_BL.shape[1])
        stage = Stage([Band(masks, Rows.of(packed.valid_YQ), self.store)], *packed.positions)
        if self.states is not None:
            book_index_T = batch.book_index_BL[:, num_prefix:][packed.valid_YQ]
            stage.first_layer = self._layers.start
            stage.entering = self.states.of_prompt(book_index_T)
        hidden_TD = hidden_of_stages(self.lm, packed.ids_T, [stage], self._layers)
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
        return self.hidden_XD[entry_M]

    def _entry_of(self, user_M: Tensor, node_M: Tensor) -> Tensor:
        """Entry of each (user, node), -1 where it was never run; nodes of -1 have none."""
        key_M = user_M * self.trie.num_nodes + node_M
        found_M = torch.searchsorted(self.known_X, key_M).clamp_(max=len(self.known_X) - 1)
        is_known_M = (self.known_X[found_M] == key_M) & (node_M >= 0)
        return self.entry_X[found_M].masked_fill(~is_known_M, -1)

    def _hang_missing(self, user_M: Tensor, node_M: Tensor) -> None:
        """Run the nodes, and those above them that were never run."""
        path_MP = self.trie.path_to(node_M)
        user_MP = user_M[:, None].expand_as(path_MP)
        is_new_MP = (path_MP >= 0) & (self._entry_of(user_MP, path_MP) < 0)
        # By user and node; nodes are numbered breadth first, so a parent comes before its child.
        key_T = (user_MP * self.trie.num_nodes + path_MP)[is_new_MP]
        key_T = torch.unique(torch.cat([key_T, self._forced_after(user_M, node_M)]))
        user_T, node_T = key_T // self.trie.num_nodes, key_T % self.trie.num_nodes
        added_B = torch.bincount(user_T, minlength=self.num_users)
        before_B = added_B.cumsum(0) - added_B
        place_T = torch.arange(len(key_T), device=key_T.device) - before_B[user_T]
        slot_T = self.count_B[user_T] + place_T
        self.count_B = self.count_B + added_B
        self._remember(key_T, slot_T)
        depth_T = self.trie.depth_N[node_T] - 1
        num_slots = int(self.count_B.max())
        self.depth_BZ = pad(self.depth_BZ, (0, max(0, num_slots - self.depth_BZ.shape[1])))
        self.depth_BZ[user_T, slot_T] = depth_T
        rows = Rows(user_T * int(added_B.max()) + place_T, self.num_users, int(added_B.max()))
        stage = self._hung_stage(user_T, node_T, place_T, slot_T, rows)
        if self.states is not None:
            stage.first_layer = self._layers.start
            stage.entering = self.states.of_nodes(node_T)
        hidden_TD = hidden_of_stages(self.lm, self.trie.token_N[node_T], [stage], self._layers)
        self.hidden_XD = torch.cat([self.hidden_XD, hidden_TD])

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

    def _remember(self, key_T: Tensor, slot_T: Tensor) -> None:
        entry_T = len(self.slot_X) + torch.arange(len(key_T), device=key_T.device)
        self.known_X, order_X = torch.cat([self.known_X, key_T]).sort()
        self.entry_X = torch.cat([self.entry_X, entry_T])[order_X]
        self.slot_X = torch.cat([self.slot_X, slot_T])

    def _hung_stage(
        self, user_T: Tensor, node_T: Tensor, place_T: Tensor, slot_T: Tensor, rows: Rows
    ) -> Stage:
        """Each new token sees the prompt, the tokens above it and itself."""
        L, Z = self.prompt_valid_BL.shape[1], self.depth_BZ.shape[1]
        visible_BQK, own_BQK = self._visible(user_T, node_T, place_T, slot_T, rows.num_places)
        segment_B, position_B, restart_B = self.first
        position_T, restart_T = (x_B[user_T] + self.depth_BZ[user_T, slot_T]
                                 for x_B in (position_B, restart_B))  # fmt: skip
        query = Tokens(
            segment_B[:, None].expand(-1, rows.num_places),
            rows.pad(position_T[:, None])[:, :, 0],
            rows.pad(restart_T[:, None])[:, :, 0],
        )
        slots = Tokens(
            segment_B[:, None].expand(-1, Z),
            position_B[:, None] + self.depth_BZ,
            restart_B[:, None] + self.depth_BZ,
        )
        masks = build_layer_masks(
            self.lm.schedule, query, self.prompt.append(slots), visible_BQK, own_BQK, self._layers
        )
        self.store.aim(user_T, L + slot_T, L + Z)
        return Stage([Band(masks, rows, self.store)], position_T, restart_T)

    def _visible(
        self, user_T: Tensor, node_T: Tensor, place_T: Tensor, slot_T: Tensor, num_places: int
    ) -> tuple[Tensor, Tensor]:
        """Which keys each new token descends from, and which is its own; each (B, Q, K)."""
        B, L, Z = *self.prompt_valid_BL.shape, self.depth_BZ.shape[1]
        path_TP = self.trie.path_to(node_T)
        entry_TP = self._entry_of(user_T[:, None].expand_as(path_TP), path_TP)
        # After a path's end stands its own slot, which it sees anyway.
        above_TP = torch.where(entry_TP >= 0, self.slot_X[entry_TP], slot_T[:, None])
        sees_TZ = torch.zeros(len(node_T), Z, dtype=torch.bool, device=node_T.device)
        sees_TZ = sees_TZ.scatter(1, above_TP, True)
        visible_BQK = self.prompt_valid_BL.new_zeros(B, num_places, L + Z)
        visible_BQK[:, :, :L] = self.prompt_valid_BL[:, None]
        visible_BQK[user_T, place_T, L:] = sees_TZ
        own_BQK = torch.zeros_like(visible_BQK)
        own_BQK[:, :, 0] = True  # padding has to see something
        own_BQK[user_T, place_T, 0] = False
        own_BQK[user_T, place_T, L + slot_T] = True
        return visible_BQK, own_BQK
