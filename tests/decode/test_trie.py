from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hatllm.decode.trie import ItemTrie

END = 0
bodies = st.lists(st.integers(1, 5), max_size=5)  # few tokens: many shared prefixes and titles
catalogues = st.dictionaries(st.integers(0, 10**12), bodies, min_size=1, max_size=30).map(
    lambda catalogue: {item_id: [*body, END] for item_id, body in catalogue.items()}
)


def flatten(sequences: list[list[int]]) -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([0] + [len(s) for s in sequences])
    return torch.tensor([t for s in sequences for t in s], dtype=torch.int64), lengths.cumsum(0)


def build(catalogue: dict[int, list[int]]) -> ItemTrie:
    return ItemTrie.build(*flatten(list(catalogue.values())), torch.tensor(list(catalogue)))


def dict_trie(titles: list[list[int]]) -> dict[int, Any]:
    root: dict[int, Any] = {}
    for title in titles:
        node = root
        for token in title:
            node = node.setdefault(token, {})
    return root


#       root            two titles share "7 3"; items 20 and 5 have the same title
#      4    7
#      0    3
#           0 9
#             0
HAND = {11: [7, 3, 0], 20: [7, 3, 9, 0], 5: [7, 3, 9, 0], 8: [4, 0]}


def test_a_small_trie_matches_the_one_drawn_by_hand() -> None:
    trie = build(HAND)
    assert trie.token_N.tolist() == [-1, 4, 7, 0, 3, 0, 9, 0]
    assert trie.parent_N.tolist() == [-1, 0, 0, 1, 2, 4, 4, 6]
    assert trie.depth_N.tolist() == [0, 1, 1, 2, 2, 3, 3, 4]
    assert trie.num_children_N.tolist() == [2, 1, 1, 0, 2, 0, 1, 0]
    inner_N = trie.num_children_N > 0
    assert trie.first_child_N[inner_N].tolist() == [1, 3, 4, 5, 7]
    assert trie.is_branching_N.tolist() == [True, False, False, False, True, False, False, False]
    assert trie.leaf_F.tolist() == [3, 5, 7]
    assert (trie.num_nodes, trie.num_leaves, trie.num_items, trie.max_depth) == (8, 3, 4, 4)


def test_items_with_one_title_share_a_leaf_in_ascending_order() -> None:
    trie = build(HAND)
    assert trie.leaf_of_item(torch.tensor([20, 5, 8])).tolist() == [7, 7, 3]
    assert trie.items_of_leaf(7).tolist() == [5, 20]
    row_C, item_id_C = trie.items_of_leaves(torch.tensor([7, 3, 7]))
    assert row_C.tolist() == [0, 0, 1, 2, 2]
    assert item_id_C.tolist() == [5, 20, 8, 5, 20]


def test_children_come_flat_with_the_query_each_belongs_to() -> None:
    row_C, node_C = build(HAND).children(torch.tensor([4, 3, 0, -1, 6, 4]))
    assert row_C.tolist() == [0, 0, 2, 2, 4, 5, 5]
    assert node_C.tolist() == [5, 6, 1, 2, 7, 5, 6]


def test_an_illegal_token_leads_nowhere() -> None:
    trie = build(HAND)
    node_M = torch.tensor([0, 0, 0, 0, 0, 3, -1, -1, 4])
    token_M = torch.tensor([7, 3, 10, 10**9, -1, 0, 7, 9, 9])
    assert trie.child(node_M, token_M).tolist() == [2, -1, -1, -1, -1, -1, -1, -1, 6]


def test_a_path_stays_lost_after_an_illegal_token() -> None:
    node_T = build(HAND).path(*flatten([[7, 3], [7, 4, 0], [], [4, 0, 0]]))
    assert node_T.tolist() == [2, 4, 2, -1, -1, 1, 3, -1]


def test_path_to_pads_short_titles_with_minus_one() -> None:
    trie = build(HAND)
    assert trie.path_to(torch.tensor([7, 3])).tolist() == [[2, 4, 6, 7], [1, 3, -1, -1]]
    assert trie.path_to(torch.tensor([0])).shape == (1, 0)
    assert trie.path_to(torch.tensor([], dtype=torch.int64)).shape == (0, 0)


def test_a_catalogue_of_one_item_is_one_forced_path() -> None:
    trie = build({3: [6, 6, 0]})
    assert trie.num_children_N.tolist() == [1, 1, 1, 0]
    assert not trie.is_branching_N.any()
    assert trie.items_of_leaf(3).tolist() == [3]


@given(catalogues)
def test_every_item_is_found_again(catalogue: dict[int, list[int]]) -> None:
    trie = build(catalogue)
    leaf_M = trie.leaf_of_item(torch.tensor(list(catalogue)))
    node_MD = trie.path_to(leaf_M)
    titles = list(catalogue.values())
    assert [trie.token_N[row[row >= 0]].tolist() for row in node_MD] == titles
    assert torch.equal(trie.path(*flatten(titles)), node_MD[node_MD >= 0])
    for leaf, title in zip(leaf_M.tolist(), titles, strict=True):
        same_title = sorted(i for i, other in catalogue.items() if other == title)
        assert trie.items_of_leaf(leaf).tolist() == same_title


@given(catalogues)
def test_children_equal_those_of_a_trie_of_dicts(catalogue: dict[int, list[int]]) -> None:
    trie = build(catalogue)
    level = [(0, dict_trie(list(catalogue.values())))]
    num_nodes = 0
    while level:
        num_nodes += len(level)
        nodes = torch.tensor([node for node, _ in level])
        row_C, node_C = trie.children(nodes)
        below = [(row, t, d[t]) for row, (_, d) in enumerate(level) for t in sorted(d)]
        assert list(zip(row_C.tolist(), trie.token_N[node_C].tolist(), strict=True)) == [
            (row, token) for row, token, _ in below
        ]
        assert torch.equal(trie.parent_N[node_C], nodes[row_C])
        assert torch.equal(trie.num_children_N[nodes], row_C.bincount(minlength=len(level)))
        level = [(node, d) for node, (_, _, d) in zip(node_C.tolist(), below, strict=True)]
    assert trie.num_nodes == num_nodes
    assert trie.num_leaves == len({tuple(title) for title in catalogue.values()})


@given(catalogues)
def test_child_equals_a_scan_over_all_edges(catalogue: dict[int, list[int]]) -> None:
    trie = build(catalogue)
    parents, tokens = trie.parent_N.tolist()[1:], trie.token_N.tolist()[1:]
    edges = {edge: n for n, edge in enumerate(zip(parents, tokens, strict=True), start=1)}
    query = torch.cartesian_prod(torch.arange(-1, trie.num_nodes), torch.arange(-2, 9))
    expected = [edges.get((n, t), -1) for n, t in query.tolist()]
    assert trie.child(query[:, 0], query[:, 1]).tolist() == expected


@given(catalogues)
def test_the_arrays_keep_the_breadth_first_laws(catalogue: dict[int, list[int]]) -> None:
    trie = build(catalogue)
    assert (trie.edge_key_N.diff() > 0).all()
    assert (trie.depth_N.diff() >= 0).all()
    assert torch.equal(trie.depth_N[1:], trie.depth_N[trie.parent_N[1:]] + 1)
    assert torch.equal(trie.leaf_F, (trie.num_children_N == 0).nonzero().flatten())
    assert trie.item_offset_F[-1] == len(catalogue)


@given(catalogues, st.randoms(use_true_random=False))
def test_the_order_of_the_catalogue_does_not_matter(
    catalogue: dict[int, list[int]], random: Any
) -> None:
    items = list(catalogue.items())
    random.shuffle(items)
    trie, shuffled = build(catalogue), build(dict(items))
    for name in ("token_N", "parent_N", "leaf_F", "leaf_item_I", "item_id_I", "item_leaf_I"):
        assert torch.equal(getattr(trie, name), getattr(shuffled, name))


def test_int32_tokens_give_the_same_trie() -> None:
    tokens, offsets = flatten(list(HAND.values()))
    trie = ItemTrie.build(tokens.int(), offsets, torch.tensor(list(HAND)))
    assert torch.equal(trie.token_N, build(HAND).token_N)
    assert trie.token_N.dtype == torch.int64
    assert trie.path(tokens.int(), offsets).tolist() == trie.path(tokens, offsets).tolist()


def test_moving_to_a_device_moves_every_array() -> None:
    moved = build(HAND).to("meta")
    arrays = [value for value in vars(moved).values() if isinstance(value, Tensor)]
    assert len(arrays) == 11
    assert {array.device.type for array in arrays} == {"meta"}


@pytest.mark.parametrize(
    ("catalogue", "message"),
    [
        ({4: [1, 2], 9: [1, 2, 3]}, "item_id 4: its tokens are a proper prefix .* item_id 9"),
        ({4: [1, 0], 9: [], 7: []}, "item_id 9, 7: its title has no tokens"),
        ({4: [1, -2, 0]}, "tokens must be 0 or above, got -2"),
        ({}, "at least one item"),
    ],
)
def test_a_wrong_catalogue_is_refused_by_item_id(
    catalogue: dict[int, list[int]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build(catalogue)


def test_a_repeated_item_id_is_refused() -> None:
    with pytest.raises(ValueError, match="item_id 6"):
        ItemTrie.build(*flatten([[1, 0], [2, 0]]), torch.tensor([6, 6]))


@pytest.mark.parametrize("offsets", [[0, 1], [1, 3], [0, 2, 1, 3], []])
def test_offsets_that_do_not_fit_the_tokens_are_refused(offsets: list[int]) -> None:
    ids = torch.arange(max(len(offsets) - 1, 0))
    with pytest.raises(ValueError, match="offsets must"):
        ItemTrie.build(torch.tensor([1, 2, 0]), torch.tensor(offsets, dtype=torch.int64), ids)


def test_one_item_id_a_title_is_required() -> None:
    with pytest.raises(ValueError, match=r"item_ids must have shape \(1,\)"):
        ItemTrie.build(torch.tensor([1, 0]), torch.tensor([0, 2]), torch.tensor([1, 2]))


def test_unknown_items_and_inner_nodes_are_refused() -> None:
    trie = build(HAND)
    with pytest.raises(ValueError, match="item_id 6, 99: not in the catalogue"):
        trie.leaf_of_item(torch.tensor([5, 6, 99]))
    with pytest.raises(ValueError, match="1, 2, 3, 4, 6 and 1 more"):
        trie.leaf_of_item(torch.tensor([1, 2, 3, 4, 6, 7]))
    with pytest.raises(ValueError, match="node 2: not a leaf"):
        trie.items_of_leaf(2)


def test_queries_of_the_wrong_shape_are_refused() -> None:
    trie = build(HAND)
    with pytest.raises(ValueError, match="one dimension"):
        trie.children(torch.zeros(1, 1, dtype=torch.int64))
    with pytest.raises(ValueError, match="one shape"):
        trie.child(torch.tensor([0]), torch.tensor([4, 7]))
