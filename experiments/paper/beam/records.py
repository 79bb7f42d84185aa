"""Where a beam let go of a title, and what kind of token that was.

Dimension key: N trie nodes.
"""

from collections.abc import Callable, Sequence

from torch import Tensor, tensor

from hatllm.decode.trie import ItemTrie

EXACT = "exact"
PLACES = ("first", "branching", "forced")  # of a token in its title, see `path_kinds`
TEXTS = ("word", "inside a word", "digit", "mark", "end")  # what the token is
SPACES = "Ġ▁"  # how tokenizers write a space before a word

Kinds = list[tuple[str, str]]  # place and text of each token of a title


def fell_at(
    trie: ItemTrie, weighed_N: Tensor, proven: Sequence[int], found: Sequence[int]
) -> list[int | None]:
    """The depth at which each title of the proven list fell out of a beam.

    A beam weighs the continuations of the prefixes that it keeps. So the deepest node of a title
    that was weighed is the prefix that was not kept.

    Args:
        trie: All titles.
        weighed_N: Nodes that the beam has weighed. Shape (N,), bool.
        proven: Leaves of the exact list.
        found: Leaves that the beam answered with.

    Returns:
        Of each proven leaf the tokens of that prefix, from 1; None = the title was found.
    """
    depths: list[int | None] = []
    for leaf in proven:
        path = [node for node in trie.path_to(tensor([leaf]))[0].tolist() if node >= 0]
        weighed = weighed_N[path].tolist()
        assert sorted(weighed, reverse=True) == weighed, "a prefix is weighed before what follows"
        depths.append(None if leaf in set(found) else sum(weighed))
    return depths


def path_kinds(
    trie: ItemTrie, leaves: Sequence[int], tokens: Callable[[list[int]], list[str]]
) -> list[Kinds]:
    """Of each title every token's place and text.

    Args:
        trie: All titles.
        leaves: The titles.
        tokens: From token ids to their texts, as the tokenizer writes them.

    Returns:
        Place: the title's ``first`` token, one ``branching`` off where several may follow, or
        ``forced``, the only legal one. Text: begins a ``word``, goes on ``inside a word``, is a
        ``digit``, a punctuation ``mark`` or the ``end`` of the title, its closing quotation mark
        among it.
    """
    found = []
    for leaf in leaves:
        path = [node for node in trie.path_to(tensor([leaf]))[0].tolist() if node >= 0]
        texts = tokens(trie.token_N[path].tolist())
        found.append(
            [
                (_place(trie, node, depth), _text(text, depth, len(path) - depth))
                for depth, (node, text) in enumerate(zip(path, texts, strict=True))
            ]
        )
    return found


def _place(trie: ItemTrie, node: int, depth: int) -> str:
    if depth == 0:
        return "first"
    return "branching" if int(trie.num_children_N[trie.parent_N[node]]) > 1 else "forced"


def _text(text: str, depth: int, num_left: int) -> str:
    bare = text.lstrip(SPACES)
    if num_left == 1 or (num_left == 2 and bare == '"'):
        return "end"
    if bare.isdigit():
        return "digit"
    if bare and not any(character.isalnum() for character in bare):
        return "mark"
    return "word" if depth == 0 or bare != text else "inside a word"
