"""Models whose tokenizers make the same tokens of different titles."""

import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import polars as pl
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from experiments.robustness.bad_tables import encoded
from experiments.robustness.inputs import DONE, SHOP, composed
from hatllm.config import Config
from hatllm.decode.predict import predict
from hatllm.model.backbone import tiny_llama
from hatllm.training.assemble import assemble

LOOK = {
    "lower case": normalizers.Lowercase,
    "no accents": lambda: normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()]),
    "as written": lambda: normalizers.Sequence([]),
}
WORDS = ("Sun", "Moon", "Café", "Rain", "Road", "Night", "Élan", "River")
SPELLINGS = (str.upper, str.lower, lambda title: title.replace("é", "e"), lambda title: title + "s")


@dataclass(frozen=True)
class OneTokenTitles:
    """A small random model; every input gives it another tokenizer and other titles."""

    model: Path

    @classmethod
    def made_in(cls, place: Path) -> "OneTokenTitles":
        """Save the model."""
        tiny_llama().save_pretrained(place / "model")
        return cls(place / "model")

    def input(self, random_: random.Random, folder: Path) -> tuple[str, Callable[[], str]]:
        """Titles, some spelt twice, and a tokenizer that knows some of their words."""
        titles = _titles(random_)
        look = random_.choice(list(LOOK))
        known = random_.choice((0.0, 0.9, 0.99, 1.0, 1.0))
        model = shutil.copytree(self.model, folder / "model")
        _tokenizer(titles, look, known, random_).save_pretrained(model)
        config = _config(titles, random_, folder, model)
        what = f"{len(titles)} titles, {look}, {known:.0%} of the words known"
        return what, lambda: _every_title_has_a_rank_of_its_own(config)


def _titles(random_: random.Random) -> list[str]:
    num = random_.choice((5, 30, 250))
    titles = [f"{random_.choice(WORDS)} {n // 16} of {n % 16}" for n in range(num)]
    for title in random_.sample(titles, random_.choice((0, 1, 1, 3))):
        titles.append(random_.choice(SPELLINGS)(title))
    return list(dict.fromkeys(titles))


def _tokenizer(
    titles: list[str], look: str, known: float, random_: random.Random
) -> PreTrainedTokenizerFast:
    normalizer = LOOK[look]()
    words = {word for title in titles for word in normalizer.normalize_str(title).split()}
    kept = [word for word in sorted(words) if random_.random() < known]
    vocabulary = {word: i for i, word in enumerate(["<unk>", "</s>", '"', *kept])}
    inner = Tokenizer(models.WordLevel(vocabulary, "<unk>"))
    inner.normalizer = normalizer
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", unk_token="<unk>")


def _config(titles: list[str], random_: random.Random, folder: Path, model: Path) -> Config:
    songs = [{"song": f"s{n}", "name": title} for n, title in enumerate(titles)]
    plays = [
        {"who": f"u{user}", "song": f"s{(user * 5 + step) % len(titles)}", "when": step}
        for user in range(len(titles))
        for step in range(8)
    ]
    for stem, rows in (("plays", plays), ("songs", songs)):
        (folder / f"{stem}.csv").write_bytes(encoded(rows, "csv"))
    return composed(
        [*SHOP, f"data.interactions_file={folder}/plays.csv", "data_root=null",
         f"data.items_file={folder}/songs.csv", f"cache_root={folder}/cache", "model=huggingface",
         f"model.source={model}", "model.dtype=float32", "mask=causal",
         "decode.beam_width=10", f"decode.top_k={random_.choice((1, 5))}"]
    )  # fmt: skip


def _every_title_has_a_rank_of_its_own(config: Config) -> str:
    """Take every item as the next one of one user: a rank belongs to one title only."""
    parts = assemble(config)
    lm = parts.load_model(config)
    items = parts.dataset.items["item_id"].to_list()
    history = parts.dataset.splits["test"]["history"][:1].to_list() * len(items)
    frame = pl.DataFrame(
        {"example_id": range(len(items)), "user_id": 0, "history": history, "target": items}
    )
    table = predict(lm, parts.catalogue, frame, config, "test")
    ranks = table["target_rank"].drop_nulls().to_list()
    assert sorted(ranks) == list(range(1, config.decode.top_k + 1)), f"ranks {sorted(ranks)}"
    for target, rank, answered in table.select("target_item", "target_rank", "top_items").rows():
        assert rank is None or answered[rank - 1] == target, f"{target}: {rank} in {answered}"
    total = table["target_trie_log_prob"].exp().sum()
    assert abs(total - 1) < 1e-3, f"the titles' probabilities add up to {total}"
    return DONE
