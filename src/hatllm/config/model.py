"""Settings of ``conf/model/``: a backbone, or a model that knows items by id."""

from dataclasses import dataclass

from hatllm.config.checks import check_choice, check_positive, check_range

SEQUENCE_KINDS = ("sasrec", "gru4rec", "bert4rec")
# No seed changes what they answer.
SEEDLESS_KINDS = ("popularity", "knn", "titles", "titles_graph", "sentences")
TITLE_KINDS = ("titles", "titles_graph", "sentences")
TRAIN_ON = ("full", "sampled")
ANALYZERS = ("word", "char", "char_wb")
POPULARITY_COUNTS = ("interactions", "targets")
SEQUENCE_LOSSES = ("bce", "ce", "sampled_softmax")
SAMPLED_LOSSES = ("bce", "sampled_softmax")
OPTIMIZERS = ("adam", "adamw")
BLOCKS = ("sasrec", "ligr")
PLACES_FROM = ("oldest", "newest")
SASREC_ONLY = ("block", "positions_from", "reads_padding")  # settings of model.sequence
BACKENDS = ("sdpa", "eager", "flex")
MODEL_KINDS = ("llm", "fusion", *SEEDLESS_KINDS, *SEQUENCE_KINDS)
DTYPES = ("auto", "float32", "bfloat16")
TUNINGS = ("lora", "full", "none")


@dataclass
class PopularityConfig:
    """The popularity baseline."""

    count: str  # one of POPULARITY_COUNTS: every train interaction once, or train targets alone

    def __post_init__(self) -> None:
        check_choice("model.popularity.count", self.count, POPULARITY_COUNTS)


@dataclass
class KnnConfig:
    """The last-item kNN baseline."""

    train_on: str  # one of TRAIN_ON: all train interactions, or those in the rows the LLM arms see
    num_neighbours: int  # most similar items kept for each item
    shrinkage: float  # added to every item's count: discounts chance meetings of rare items
    balance: float  # 0.5 = cosine, 1 = confidence in the last item

    def __post_init__(self) -> None:
        check_choice("model.knn.train_on", self.train_on, TRAIN_ON)
        check_range("model.knn.num_neighbours", self.num_neighbours, 1)
        check_range("model.knn.shrinkage", self.shrinkage, 0.0)
        check_range("model.knn.balance", self.balance, 0.0, 1.0)


@dataclass
class TitlesConfig:
    """The title rules."""

    analyzer: str  # one of ANALYZERS: what a title is cut into
    shortest_ngram: int  # pieces that count together
    longest_ngram: int  # likewise, the most
    last_items: int  # newest titles of a history that count
    decay: float  # weight of a title over that of the next one
    encoder: str | None  # kind sentences: folder of a sentence encoder

    def __post_init__(self) -> None:
        check_choice("model.titles.analyzer", self.analyzer, ANALYZERS)
        check_range("model.titles.shortest_ngram", self.shortest_ngram, 1)
        check_range("model.titles.longest_ngram", self.longest_ngram, self.shortest_ngram)
        check_range("model.titles.last_items", self.last_items, 1)
        check_range("model.titles.decay", self.decay, 0.0, 1.0)


@dataclass
class FusionConfig:
    """How the lists of two finished runs become one."""

    constant: float  # added to every rank
    steps: int  # shares of the first run tried on valid: 0, 1 / steps, ..., 1

    def __post_init__(self) -> None:
        check_positive("model.fusion.constant", self.constant)
        check_range("model.fusion.steps", self.steps, 1)


@dataclass
class TransitionsConfig:
    """What the title rule with transitions counts in train."""

    train_on: str  # one of TRAIN_ON: all train interactions, or those in the rows the LLM arms see
    weight: float  # of log(1 + count), beside a cosine in [0, 1]

    def __post_init__(self) -> None:
        check_choice("model.transitions.train_on", self.train_on, TRAIN_ON)
        check_range("model.transitions.weight", self.weight, 0.0)


@dataclass
class ClozeConfig:
    """How BERT4Rec hides items of a training sequence."""

    mask_prob: float  # each item is hidden with this probability
    last_only_prob: float  # share of rows that hide the target and nothing else

    def __post_init__(self) -> None:
        check_range("model.sequence.cloze.mask_prob", self.mask_prob, 0.0, 1.0)
        check_range("model.sequence.cloze.last_only_prob", self.last_only_prob, 0.0, 1.0)


@dataclass
class DrosConfig:
    """Distributionally robust optimisation beside the loss."""

    weight: float  # of the robust term; alpha in the authors' code
    radius: float  # beta in the authors' code
    popularity_power: float  # nominal distribution = popularity to this power

    def __post_init__(self) -> None:
        check_range("model.sequence.dros.weight", self.weight, 0.0)
        check_range("model.sequence.dros.popularity_power", self.popularity_power, 0.0)
        check_positive("model.sequence.dros.radius", self.radius)


@dataclass
class SequenceConfig:
    """The baselines that learn a vector for every item id."""

    train_on: str  # one of TRAIN_ON: all of train and valid, or the rows the LLM arms see
    hidden_size: int  # of an item's vector
    block: str | None  # sasrec only: the layer, one of BLOCKS
    positions_from: str | None  # sasrec only: item of position 0, one of PLACES_FROM
    reads_padding: bool | None  # sasrec only: attention sees the zeros before a short history
    num_layers: int  # blocks, or GRU layers
    num_heads: int | None  # transformers only
    feedforward_size: int | None  # transformers only
    dropout: float  # of hidden states, in training
    attention_dropout: float | None  # transformers only
    item_dropout: float  # of item vectors: drawn once a step, the same in reading and answering
    init_std: float | None  # of item and position embeddings; null: Xavier's for every matrix
    shared_embedding: bool | None  # the output layer is the item embedding; null: bert4rec, always
    loss: str  # one of SEQUENCE_LOSSES
    num_negatives: int | None  # SAMPLED_LOSSES: sampled items for each target
    every_position: bool  # learn from every next item of a row; false = from its target alone
    cloze: ClozeConfig | None  # bert4rec only
    dros: DrosConfig | None  # null = no robust term
    optimizer: str  # one of OPTIMIZERS
    learning_rate: float
    second_beta: float  # decay of adam's mean of squared gradients
    weight_decay: float  # adam: L2 in the gradient; adamw: decoupled
    batch_size: int
    max_epochs: int
    patience: int | None  # epochs without a better val/NDCG@10, an equal one is none; null = never

    def __post_init__(self) -> None:
        check_choice("model.sequence.train_on", self.train_on, TRAIN_ON)
        check_choice("model.sequence.loss", self.loss, SEQUENCE_LOSSES)
        check_choice("model.sequence.optimizer", self.optimizer, OPTIMIZERS)
        if self.block is not None:
            check_choice("model.sequence.block", self.block, BLOCKS)
        if self.positions_from is not None:
            check_choice("model.sequence.positions_from", self.positions_from, PLACES_FROM)
        low_one = ("hidden_size", "num_layers", "num_heads", "feedforward_size", "num_negatives",
                   "batch_size", "max_epochs", "patience")  # fmt: skip
        for field in low_one:
            check_range(f"model.sequence.{field}", getattr(self, field), 1)
        for field in ("dropout", "attention_dropout", "item_dropout"):
            check_range(f"model.sequence.{field}", getattr(self, field), 0.0, 0.99)
        check_range("model.sequence.second_beta", self.second_beta, 0.0, 0.9999)
        check_range("model.sequence.weight_decay", self.weight_decay, 0.0)
        for field in ("learning_rate", "init_std"):
            check_positive(f"model.sequence.{field}", getattr(self, field))
        if self.num_heads is not None and self.hidden_size % self.num_heads:
            raise ValueError(
                f"model.sequence.hidden_size={self.hidden_size} must be a multiple of "
                f"num_heads={self.num_heads}"
            )
        if self.loss in SAMPLED_LOSSES and self.num_negatives is None:
            raise ValueError(
                f"model.sequence.num_negatives=null must be a number with loss={self.loss}"
            )


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
    kind: str  # an LLM, or a baseline; one of MODEL_KINDS
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
    titles: TitlesConfig | None  # kinds titles, titles_graph and sentences
    transitions: TransitionsConfig | None  # kind titles_graph
    sequence: SequenceConfig | None  # one of SEQUENCE_KINDS
    fusion: FusionConfig | None  # kind fusion
    first_run: str | None  # fusion: finished run; of equal fused titles its list decides
    second_run: str | None  # fusion: another on the same examples
    item_vectors: str | None  # finished run of SEQUENCE_KINDS whose items get tokens of their own
    item_curriculum: bool  # from prompts of text to prompts with these tokens, over the training

    def __post_init__(self) -> None:
        check_choice("model.kind", self.kind, MODEL_KINDS)
        self._check_baseline()
        self._check_item_tokens()
        self._check_fused_runs()
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

    def _check_fused_runs(self) -> None:
        for field in ("first_run", "second_run"):
            value = getattr(self, field)
            if self.kind == "fusion" and value is None:
                raise ValueError(
                    f"model.{field}=null must be the folder of a finished run with model=fusion"
                )
            if self.kind != "fusion" and value is not None:
                raise ValueError(f"model.{field}={value!r} must be null with model={self.name}")

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
            ("fusion", ("fusion",)),
            ("titles", TITLE_KINDS),
            ("transitions", ("titles_graph",)),
            ("sequence", SEQUENCE_KINDS),
            ("popularity", ("popularity",)),
        ):
            if (getattr(self, field) is None) == (self.kind in kinds):
                raise ValueError(
                    f"model.{field} must be given for model.kind={', '.join(kinds)} and null for "
                    f"any other, got model.kind={self.kind!r}; choose model=NAME of conf/model/"
                )
        if self.titles is not None and (self.titles.encoder is None) == (self.kind == "sentences"):
            raise ValueError(
                f"model.titles.encoder={self.titles.encoder!r} must be the folder of a sentence "
                "encoder with model=sentences, and null with any other model"
            )
        if self.sequence is None:
            return
        needed = {
            "sasrec": ("num_heads", "feedforward_size", "attention_dropout", *SASREC_ONLY),
            "bert4rec": ("num_heads", "feedforward_size", "attention_dropout", "cloze"),
        }
        for field in needed.get(self.kind, ()):
            if getattr(self.sequence, field) is None:
                raise ValueError(f"model.sequence.{field}=null must be set for model={self.name}")
        for field in SASREC_ONLY:
            value = getattr(self.sequence, field)
            if self.kind != "sasrec" and value is not None:
                raise ValueError(
                    f"model.sequence.{field}={value} must be null for model={self.name}: SASRec "
                    "and its like alone have it"
                )
        if self.kind == "bert4rec" and self.sequence.shared_embedding is not None:
            raise ValueError(
                f"model.sequence.shared_embedding={self.sequence.shared_embedding} must be null "
                f"for model={self.name}, whose output layer always is the item embedding"
            )
