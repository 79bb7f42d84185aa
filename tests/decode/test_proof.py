"""Model types that no other test covers: right in every path, or refused by name."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, SIZE, build
from toys import Compose, schedule_of
from transformers import CONFIG_MAPPING

from hatllm.decode.proof import differences, prove
from hatllm.model.before_loading import check_backbone
from hatllm.model.masked_lm import MaskedLM
from hatllm.model.suitability import PROVEN
from hatllm.tasks.before_imports import check_layers
from hatllm.tasks.train import train

LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8,
          "v_head_dim": 12, "num_key_value_heads": 4, "first_k_dense_replace": 1,
          "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2,
          "n_group": 1, "topk_group": 1, "moe_intermediate_size": 16}  # fmt: skip
# Attention twice a layer over the same keys; keys of 16 and values of 12 numbers a head.
ODD: dict[str, dict[str, Any]] = {
    "DiffLlama": {},
    "DeepseekV2": LATENT,
    "DeepseekV3": LATENT,
    "Glm4MoeLite": LATENT,
    "Youtu": LATENT,
}


def test_the_types_that_need_no_proof_are_those_the_tests_cover() -> None:
    assert set(PROVEN) == {build(family).config.model_type for family in FAMILIES}


@pytest.mark.parametrize("scope", ["items", "segments"])
@pytest.mark.parametrize("family", ODD)
def test_odd_attention_gives_in_every_path_what_transformers_gives(family: str, scope: str) -> None:
    lm = MaskedLM(build(family, **ODD[family]), schedule_of("IIFC", scope), "sdpa")
    with torch.no_grad():
        found = differences(lm, "sdpa", seed=0)
    assert len(found) == 3
    # Float32 sums in another order, on logits up to about 20.
    assert max(found.values()) < 2e-4


def save(folder: Path, model_type: str, **settings: Any) -> str:
    """A model folder without weights: its config.json only."""
    config = CONFIG_MAPPING[model_type](**SIZE | settings)
    config.save_pretrained(folder / model_type)
    return str(folder / model_type)


@pytest.mark.parametrize(
    ("model_type", "settings", "words", "message"),
    [
        ("falcon", {}, [], "'falcon' has no stack of layers"),
        ("stablelm", {}, [], "'stablelm' does not compute attention through"),
        ("gpt2", {"n_layer": 4, "n_head": 4, "n_embd": 32}, [], "'gpt2' has no rotary position"),
        ("bert", {}, [], "'bert' has no rotary position"),
        ("gemma2", {"head_dim": 8}, [], "model.backend='sdpa' cannot soft-cap"),
        ("granite", {"logits_scaling": 4.0}, [], "'granite' scales its logits"),
        ("lfm2", {"layer_types": ["conv", "full_attention"] * 2}, [], r"no mask governs \(conv\)"),
        ("t5", {}, [], "'t5' is no causal LM"),
        ("qwen3", {}, ["model.lora.target_modules=[qkv]"], "target_modules holds qkv"),
        ("qwen3", {"num_hidden_layers": 5}, [], "the schedule has 4 layers, the model 5"),
    ],
)
def test_what_a_config_shows_is_refused_before_there_are_weights(
    model_type: str,
    settings: dict[str, Any],
    words: list[str],
    message: str,
    tmp_path: Path,
    compose_config: Compose,
) -> None:
    source = save(tmp_path, model_type, **settings)
    config = compose_config("model=huggingface", f"model.source={source}", *words).model
    with pytest.raises(ValueError, match=message):
        check_backbone(config, schedule_of("IFFC"), tmp_path)


def test_a_backbone_that_cannot_be_masked_leaves_no_run_folder(
    tmp_path: Path, compose_config: Compose
) -> None:
    config = compose_config("model=huggingface", f"model.source={save(tmp_path, 'falcon')}")
    config = replace(config, output_root=str(tmp_path / "out"), data_root=str(tmp_path / "none"))
    with pytest.raises(ValueError, match="'falcon' has no stack of layers"):
        train(config)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".locks"]


def test_masks_that_do_not_fit_a_folders_layers_are_refused_from_its_config_file(
    tmp_path: Path, compose_config: Compose
) -> None:
    words = ["model=huggingface", f"model.source={save(tmp_path, 'qwen3')}"]
    check_layers(compose_config(*words, "mask.split_layer=4"))
    with pytest.raises(ValueError, match=r"mask.split_layer=5 must be between 0 and 4"):
        check_layers(compose_config(*words, "mask.split_layer=5"))


def test_masks_are_checked_without_waiting_for_torch() -> None:
    code = "import sys, hatllm.tasks, hatllm.compose; print({'torch'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def unproven(tmp_path: Path, compose_config: Compose) -> tuple[MaskedLM, Any]:
    """An Arcee in bfloat16, and its model settings; its config lies in a folder."""
    source = save(tmp_path, "arcee")
    words = ["model=huggingface", f"model.source={source}", "model.tuning=none"]
    lm = MaskedLM(build("Arcee").bfloat16(), schedule_of("IFFC", "segments"), "sdpa")
    return lm, compose_config(*words).model


def test_a_model_that_is_computed_wrongly_is_refused_and_next_time_before_it_is_loaded(
    tmp_path: Path, compose_config: Compose
) -> None:
    lm, config = unproven(tmp_path, compose_config)
    check_backbone(config, lm.schedule, tmp_path)
    lm.final_softcap = 1.0  # which transformers' own pass does not have
    with pytest.raises(ValueError, match=r"'arcee' is not computed rightly .* transformers' own"):
        prove(lm, "sdpa", config, tmp_path)
    with pytest.raises(ValueError, match=r"'arcee' is not computed rightly"):
        check_backbone(config, lm.schedule, tmp_path)
    check_backbone(config, schedule_of("FFFF"), tmp_path)  # another schedule was not tried


def test_a_proof_in_float32_leaves_bfloat16_weights_as_they_were(
    tmp_path: Path, compose_config: Compose
) -> None:
    lm, config = unproven(tmp_path, compose_config)
    before = {name: tensor.clone() for name, tensor in lm.state_dict().items()}
    prove(lm, "sdpa", config, tmp_path)
    for name, tensor in lm.state_dict().items():
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor, before[name])
    (verdict,) = (tmp_path / "proofs").glob("arcee-*.json")
    said = json.loads(verdict.read_text())
    assert said["dtype"] == "torch.float32" and said["refused"] is None
    assert max(said["differences"].values()) < 1e-3
