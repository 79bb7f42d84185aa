"""Vectors of texts against one forward pass a text; folders that hold no encoder."""

from pathlib import Path

import pytest
import torch
from encoders import write_encoder
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer

from hatllm.model.backbone import tiny_llama
from hatllm.model.sentence_encoder import sentence_vectors

TEXTS = ["Red Boat", "blue", "Old Lamps and tiny books", "Red red red " * 9]


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    return write_encoder(tmp_path / "encoder")


def test_a_vector_is_the_mean_of_a_texts_tokens_made_of_length_one(encoder: Path) -> None:
    found_ID = sentence_vectors(TEXTS, str(encoder), "x")
    tokenizer, model = AutoTokenizer.from_pretrained(encoder), AutoModel.from_pretrained(encoder)
    for text, vector_D in zip(TEXTS, found_ID, strict=True):
        ids = tokenizer(text)["input_ids"]
        ids = [*ids[:11], ids[-1]] if len(ids) > 12 else ids  # cut before the last, [SEP]
        with torch.no_grad():
            mean_D = model.eval()(torch.tensor([ids])).last_hidden_state[0].mean(0)
        torch.testing.assert_close(vector_D, mean_D / mean_D.norm(), rtol=1e-4, atol=1e-5)
    assert found_ID.dtype == torch.float32


def test_what_is_no_encoder_is_refused_by_name(encoder: Path, tmp_path: Path) -> None:
    llama = tmp_path / "llama"
    tiny_llama().save_pretrained(llama)
    (tmp_path / "empty").mkdir()
    for folder, part in (
        (tmp_path / "nowhere", "no such folder; give that of a sentence encoder"),
        (tmp_path / "empty", "holds no sentence encoder: "),
        (llama, "holds no sentence encoder: model_type 'llama' is none of an encoder alone"),
    ):
        with pytest.raises(ValueError, match="titles") as refused:
            sentence_vectors(TEXTS, str(folder), "model.titles.encoder")
        said = str(refused.value)
        assert said.startswith(f"model.titles.encoder={str(folder)!r}") and part in said
        assert "\n" not in said


def test_weights_that_lack_a_layer_are_refused(encoder: Path) -> None:
    weights = load_file(encoder / "model.safetensors")
    name = next(name for name in weights if "layer.1." in name)
    del weights[name]
    save_file(weights, encoder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="holds no sentence encoder: the weights lack"):
        sentence_vectors(TEXTS, str(encoder), "x")
