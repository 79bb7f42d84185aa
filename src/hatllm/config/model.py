"""Settings of ``conf/model/``."""

from dataclasses import dataclass

from hatllm.config.baseline import (
    SEEDLESS_KINDS,
    SEQUENCE_KINDS,
    KnnConfig,
    PopularityConfig,
    SequenceConfig,
)
from hatllm.config.checks import check_choice, check_range

BACKENDS = ("sdpa", "eager", "flex")
MODEL_KINDS = ("llm", *SEEDLESS_KINDS, *SEQUENCE_KINDS)
DTYPES = ("auto", "float32", "bfloat16")
TUNINGS = ("lora", "full", "none")


@dataclass
class LoraConfig:
    """Low-rank adapters (peft)."""

    r: int
    alpha: float
    dropout: float
    target_modules: list[str]

    def __post_init__(self) -> None:
        check_range("model.lora.r", self.r, 1)
        check_range("model.lora.alpha", self.alpha, 0.0)
        check_range("model.lora.dropout", self.dropout, 0.0, 0.99)
        if not self.target_modules:
            raise ValueError("model.lora.target_modules=[] must name at least one linear layer")


@dataclass
class ModelConfig:
    """What recommends: a backbone and how it is tuned, or a baseline."""

    name: str
    kind: str  # one of MODEL_KINDS
    source: str  # 'smollm2' (package index), 'tiny' (random), a Hugging Face name or a folder
    num_layers: int | None  # known layer count, for early checks; null = read from the model
    dtype: str  # one of DTYPES; of the frozen weights (adapters: float32); auto = the fastest here
    tuning: str  # one of TUNINGS
    start_from: str | None  # finished run of the same model and adapters, whose weights come first
    lora: LoraConfig
    quantization_bits: int | None  # 4 or 8 with bitsandbytes on a GPU
    backend: str  # one of BACKENDS: how the masks are applied
    gradient_checkpointing: bool
    compile: bool  # decoder layers through torch.compile
    popularity: PopularityConfig | None  # kind popularity
    knn: KnnConfig | None  # kind knn
    sequence: SequenceConfig | None  # one of SEQUENCE_KINDS
    item_vectors: str | None  # finished run of SEQUENCE_KINDS whose items get tokens of their own
    item_curriculum: bool  # from prompts of text to prompts with these tokens, over the training

    def __post_init__(self) -> None:
        check_choice("model.kind", self.kind, MODEL_KINDS)
        self._check_baseline()
        self._check_item_tokens()
        if not self.source:
            raise ValueError(
                "model.source='' must be a Hugging Face name or a local folder, such as "
                "model.source=Qwen/Qwen3-0.6B"
            )
        check_choice("model.dtype", self.dtype, DTYPES)
        check_choice("model.tuning", self.tuning, TUNINGS)
        check_choice("model.backend", self.backend, BACKENDS)
        check_range("model.num_layers", self.num_layers, 1)
        if self.quantization_bits not in (None, 4, 8):
            raise ValueError(
                f"model.quantization_bits={self.quantization_bits} must be 4, 8 or null"
            )
        if self.quantization_bits and self.tuning == "full":
            raise ValueError("model.tuning='full' cannot train quantized weights; use 'lora'")

    def _check_item_tokens(self) -> None:
        if self.item_curriculum and self.item_vectors is None:
            raise ValueError("model.item_curriculum=true needs model.item_vectors=FOLDER")
        if self.item_vectors is None:
            return
        if self.kind != "llm":
            raise ValueError(
                f"model.item_vectors={self.item_vectors!r} must be null with model={self.name}: "
                "only an LLM reads items as tokens"
            )
        if self.tuning == "none":
            raise ValueError(
                f"model.item_vectors={self.item_vectors!r} needs model.tuning=lora or full: the "
                "vectors reach the model through a projector that is trained"
            )

    def _check_baseline(self) -> None:
        for field, kinds in (
            ("knn", ("knn",)),
            ("sequence", SEQUENCE_KINDS),
            ("popularity", ("popularity",)),
        ):
            if (getattr(self, field) is None) == (self.kind in kinds):
                raise ValueError(
                    f"model.{field} must be given for model.kind={', '.join(kinds)} and null for "
                    f"any other, got model.kind={self.kind!r}; choose model=NAME of conf/model/"
                )
        if self.sequence is None:
            return
        needed = {
            "sasrec": ("num_heads", "feedforward_size", "attention_dropout"),
            "bert4rec": ("num_heads", "feedforward_size", "attention_dropout", "cloze"),
        }
        for field in needed.get(self.kind, ()):
            if getattr(self.sequence, field) is None:
                raise ValueError(f"model.sequence.{field}=null must be set for model={self.name}")
        if self.kind == "bert4rec" and self.sequence.shared_embedding is not None:
            raise ValueError(
                f"model.sequence.shared_embedding={self.sequence.shared_embedding} must be null "
                f"for model={self.name}, whose output layer always is the item embedding"
            )
