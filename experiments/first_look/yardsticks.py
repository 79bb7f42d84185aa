"""What the trie NLL of the table would be without a model, on the same test rows.

    HATLLM_DATA_ROOT=FOLDER python experiments/first_look/yardsticks.py

Dimension key: B test rows, P nodes on a title's path, N trie nodes, F titles.
"""

import math
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from torch import Tensor

from hatllm.compose import checked, register_schema
from hatllm.decode.trie import ItemTrie
from hatllm.training.assemble import assemble

CONF = Path(__file__).parents[2] / "conf"


def flat_nll(trie: ItemTrie, leaf_B: Tensor) -> Tensor:
    """Nats of each title where every legal token is equally likely. Shape (B,)."""
    path_BP = trie.path_to(leaf_B)
    children_BP = trie.num_children_N[trie.parent_N[path_BP.clamp(min=0)]].clamp(min=1)
    return children_BP.double().log().masked_fill(path_BP < 0, 0.0).sum(1)


def popularity_nll(trie: ItemTrie, train_leaf_R: Tensor, leaf_B: Tensor, added: float) -> Tensor:
    """Nats of each title where its probability is its share of the training targets. Shape (B,).

    Args:
        trie: All titles.
        train_leaf_R: Leaf of each training target.
        leaf_B: Leaf of each test target.
        added: Targets added to every title, so that an unseen one is possible.
    """
    count_N = torch.bincount(train_leaf_R, minlength=trie.num_nodes).double()
    total = float(count_N.sum()) + added * trie.num_leaves
    return -((count_N[leaf_B] + added) / total).log()


def main() -> None:
    """Print the yardsticks."""
    register_schema()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = checked(compose("config", ["experiment=first_look", "scale=published"]))
    parts = assemble(config)
    trie = parts.catalogue.trie
    train_R, test_B = (
        trie.leaf_of_item(torch.from_numpy(frame["target"].to_numpy()))
        for frame in (parts.dataset.full_train, parts.dataset.splits["test"])
    )
    print(f"every title equally likely        {math.log(trie.num_leaves):6.2f} nats")
    print(f"every legal token equally likely  {float(flat_nll(trie, test_B).mean()):6.2f} nats")
    for added in (0.1, 1.0, 10.0):
        nll = float(popularity_nll(trie, train_R, test_B, added).mean())
        print(f"popularity, {added:4} added a title   {nll:6.2f} nats")


if __name__ == "__main__":
    main()
