"""Decoder layers sharded over the run's processes (FSDP2); everything else is whole on each."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pytorch_lightning.strategies import ModelParallelStrategy
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from hatllm.model.masked_lm import MaskedLM


def shard_layers(lm: MaskedLM, mesh: DeviceMesh) -> None:
    """Leave each process its part of every decoder layer; a layer is put together when it runs.

    Token embeddings stay whole, because the loss and the decoder read single rows of them, and so
    does the last norm; both must be frozen.

    Args:
        lm: The model with its adapters, in place.
        mesh: One dimension, all processes.
    """
    decoder: Any = lm.decoder
    for parameter in decoder.parameters():
        parameter.data = parameter.data.contiguous()  # FSDP2 takes no other layout
    for layer in decoder.layers:
        fully_shard(layer, mesh=mesh)
    outside = {p for name, p in decoder.named_parameters() if not name.startswith("layers.")}
    assert not any(parameter.requires_grad for parameter in outside)
    fully_shard(decoder, mesh=mesh, ignored_params=outside)


@contextmanager
def whole(lm: MaskedLM) -> Iterator[None]:
    """Every process holds all layers for a while, and runs them without the others.

    For a model that is not sharded it does nothing.
    """
    sharded = [module for module in lm.modules() if isinstance(module, FSDPModule)]
    for module in sharded:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module in sharded:
            module.reshard()
            module.set_reshard_after_forward(True, recurse=False)


class ShardedStrategy(ModelParallelStrategy):
    """FSDP2 whose checkpoints are those of one process: what is tuned, put together."""

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Tuned weights and buffers, whole, on the first process; nothing on the others."""
        options = StateDictOptions(
            full_state_dict=True, cpu_offload=True, ignore_frozen_params=True
        )
        return get_model_state_dict(self.model, options=options)
