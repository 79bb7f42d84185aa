from pathlib import Path

import pytest
import torch
from toys import Compose, schedule_of

from hatllm.model.backbone import load_masked_lm


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to compile for")
def test_flex_without_a_gpu_falls_back_to_sdpa_and_says_so(
    compose_config: Compose, tmp_path: Path
) -> None:
    config = compose_config("model=tiny", "model.backend=flex").model
    with pytest.warns(UserWarning, match="model.backend=flex needs a GPU"):
        lm = load_masked_lm(config, schedule_of("IFFC"), tmp_path, seed=0)
    assert lm.backbone[0].config._attn_implementation == "hatllm_sdpa"
