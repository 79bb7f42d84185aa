"""Compiled layers against the same layers as they are."""

from functools import partial
from pathlib import Path

import pytest
import torch
from test_masked_lm import assert_same_gradients, gradients, target_logits, with_lora
from toys import Compose, schedule_of, toy_batch, toy_book

from hatllm.model.backbone import load_masked_lm, tiny_llama
from hatllm.model.fast import compiled
from hatllm.model.fast.compiled import compile_layers
from hatllm.model.masked_lm import MaskedLM

pytestmark = pytest.mark.long


# `eager` traces the layers as `inductor` does and compiles nothing, which takes a minute.
@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_layers_change_neither_logits_nor_lora_gradients(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    schedule, book = schedule_of("IFC", scope="segments"), toy_book()
    lm = MaskedLM(tiny_llama(3), schedule, "sdpa").train()
    with_lora(lm)
    batches = [
        toy_batch(book, True, True, histories, [20, 3])
        for histories in ([[3, 25, 3], [44]], [[10, 11, 52, 31], [3]])  # other numbers of tokens
    ]
    plain = [gradients(lm, lambda b=batch: target_logits(lm, b)) for batch in batches]
    compile_layers(lm)
    for batch, (expected, expected_gradients) in zip(batches, plain, strict=True):
        logits, got = gradients(lm, lambda b=batch: target_logits(lm, b, book.prefix))
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
        assert_same_gradients(got, expected_gradients)


def test_compiling_without_a_compiler_names_the_setting(
    compose_config: Compose, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(compiled.shutil, "which", lambda name: None)
    config = compose_config("model=tiny", "model.compile=true").model
    with pytest.raises(ValueError, match=r"model.compile=true needs a C\+\+ compiler and no-such"):
        load_masked_lm(config, schedule_of("IFFC"), tmp_path, seed=0)
