"""Settings of ``conf/model/`` for models that know items by id."""

from dataclasses import dataclass

from hatllm.config.checks import check_choice, check_positive, check_range

SEQUENCE_KINDS = ("sasrec", "gru4rec", "bert4rec")
SEEDLESS_KINDS = ("popularity", "knn")  # no seed changes what they answer
TRAIN_ON = ("full", "sampled")
POPULARITY_COUNTS = ("interactions", "targets")
SEQUENCE_LOSSES = ("bce", "ce")
OPTIMIZERS = ("adam", "adamw")


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
    hidden_size: int
    num_layers: int
    num_heads: int | None  # transformers only
    feedforward_size: int | None  # transformers only
    dropout: float
    attention_dropout: float | None  # transformers only
    init_std: float  # of item and position embeddings
    shared_embedding: bool | None  # the output layer is the item embedding; null: bert4rec, always
    loss: str  # one of SEQUENCE_LOSSES
    num_negatives: int | None  # bce: sampled items for each target
    every_position: bool  # learn from every next item of a row; false = from its target alone
    cloze: ClozeConfig | None  # bert4rec only
    dros: DrosConfig | None  # null = no robust term
    optimizer: str  # one of OPTIMIZERS
    learning_rate: float
    weight_decay: float  # adam: L2 in the gradient; adamw: decoupled
    batch_size: int
    max_epochs: int
    patience: int | None  # epochs without a better val/NDCG@10, an equal one is none; null = never

    def __post_init__(self) -> None:
        check_choice("model.sequence.train_on", self.train_on, TRAIN_ON)
        check_choice("model.sequence.loss", self.loss, SEQUENCE_LOSSES)
        check_choice("model.sequence.optimizer", self.optimizer, OPTIMIZERS)
        low_one = ("hidden_size", "num_layers", "num_heads", "feedforward_size", "num_negatives",
                   "batch_size", "max_epochs", "patience")  # fmt: skip
        for field in low_one:
            check_range(f"model.sequence.{field}", getattr(self, field), 1)
        for field in ("dropout", "attention_dropout"):
            check_range(f"model.sequence.{field}", getattr(self, field), 0.0, 0.99)
        check_range("model.sequence.weight_decay", self.weight_decay, 0.0)
        for field in ("learning_rate", "init_std"):
            check_positive(f"model.sequence.{field}", getattr(self, field))
        if self.num_heads is not None and self.hidden_size % self.num_heads:
            raise ValueError(
                f"model.sequence.hidden_size={self.hidden_size} must be a multiple of "
                f"num_heads={self.num_heads}"
            )
        if self.loss == "bce" and self.num_negatives is None:
            raise ValueError("model.sequence.num_negatives=null must be a number with loss=bce")
