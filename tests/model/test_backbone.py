from pathlib import Path

import pytest
import torch
from families import build
from rows import padded
from toys import Compose, schedule_of

from hatllm.files import folder_written_whole, record_checksums
from hatllm.masks.patterns import PREFIX
from hatllm.model.backbone import load_masked_lm, smollm2_folder
from hatllm.model.masked_lm import MaskedLM


def test_the_output_layer_takes_no_adapter(compose_config: Compose, tmp_path: Path) -> None:
    config = compose_config("model=tiny", "model.lora.target_modules=[q_proj,lm_head]").model
    with pytest.raises(ValueError, match=r"model.lora.target_modules holds lm_head"):
        load_masked_lm(config, schedule_of("IFFC"), tmp_path, seed=0)


def test_a_damaged_converted_model_is_converted_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def convert(folder: Path, _: Path) -> None:
        converted.append(folder)
        with folder_written_whole(folder) as partial:
            for name in ("config.json", "model.safetensors"):
                (partial / name).write_text("content")
            record_checksums(partial)

    converted: list[Path] = []
    monkeypatch.setattr("hatllm.model.backbone._convert_smollm2", convert)
    for _ in range(2):
        folder = smollm2_folder(tmp_path)
    assert converted == [folder]
    (folder / "model.safetensors").write_text("c0ntent")
    assert smollm2_folder(tmp_path) == folder and len(converted) == 2
    (folder / "checksums.json").unlink()  # as older versions left it
    assert smollm2_folder(tmp_path) == folder and len(converted) == 2
    assert (folder / "checksums.json").exists()


@torch.no_grad()
@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_prompts_beyond_the_constant_rotary_positions_are_refused(kind: str) -> None:
    rope = {"rope_type": kind, "rope_theta": 10000.0, "factor": 2.0}
    rope |= {"original_max_position_embeddings": 8}
    if kind == "longrope":
        rope |= {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    lm = MaskedLM(build("Llama", rope_parameters=rope), schedule_of("FFFF"), "sdpa")
    for length in (8, 9):
        batch = padded([[PREFIX] * 2 + [0] * (length - 2)], [torch.arange(3, 3 + length)])
        if length == 9:
            with pytest.raises(ValueError, match="9 tokens is longer than the 8"):
                lm.hidden_of_prompts(*batch)
        else:
            lm.hidden_of_prompts(*batch)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to compile for")
def test_flex_without_a_gpu_falls_back_to_sdpa_and_says_so(
    compose_config: Compose, tmp_path: Path
) -> None:
    config = compose_config("model=tiny", "model.backend=flex").model
    with pytest.warns(UserWarning, match="model.backend=flex needs a GPU"):
        lm = load_masked_lm(config, schedule_of("IFFC"), tmp_path, seed=0)
    assert lm.backbone[0].config._attn_implementation == "hatllm_sdpa"
