"""The schema of every setting: its type, its unit, its range.

Values stand in ``conf/`` only; nothing here has a default. Types are checked when Hydra composes,
ranges in ``__post_init__`` (run by ``OmegaConf.to_object``), and whatever needs the data or the
model in the room that knows it.
"""

import difflib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

LARGEST = 2**53  # of any number; a float still tells its neighbours apart
TASKS = ("prepare", "train", "evaluate", "recommend", "masks", "experiment", "table", "plan",
         "attention")  # fmt: skip
SOURCES = ("ml100k", "amazon", "windows", "custom")
RELEASES = ("2014", "2018", "2023")
PROTOCOLS = ("sliding_window", "all_prefixes", "leave_one_out")
PATTERNS = ("intra", "full", "cross")
INTRA_SCOPES = ("items", "segments")
BACKENDS = ("sdpa", "eager", "flex")
SEQUENCE_KINDS = ("sasrec", "gru4rec", "bert4rec")
SEEDLESS_KINDS = ("popularity", "knn")  # no seed changes what they answer
MODEL_KINDS = ("llm", *SEEDLESS_KINDS, *SEQUENCE_KINDS)
TRAIN_ON = ("full", "sampled")
SEQUENCE_LOSSES = ("bce", "ce")
OPTIMIZERS = ("adam", "adamw")
DTYPES = ("float32", "bfloat16")
TUNINGS = ("lora", "full", "none")
LOSSES = ("lml", "msl", "msl_ats", "sdpo")
SEARCHES = ("beam", "exact", "d3", "grounding")
NORMALIZATIONS = ("trie", "vocab")
ACCELERATORS = ("cpu", "gpu", "auto")
STRATEGIES = ("auto", "ddp", "fsdp")
ENGINES = ("local", "ray")
LOGGERS = ("csv", "wandb", "tensorboard")
VIEWS = ("bars", "grid", "slices", "efficiency")
# Settings that cannot change a run's numbers: where files lie, what is logged, how it is launched.
NOT_IN_HASH = ("task", "logger", "experiment", "sweep", "num_threads", "data_root", "cache_root",
               "output_root", "run_name")  # fmt: skip
# Settings that name the folder of another run. Its own name tells its settings; where it lies, it
# may move.
OTHER_RUNS = (("model", "start_from"), ("model", "item_vectors"), ("decode", "assistant_run"))
SWEEP_METRICS = tuple(
    f"{split}/{metric}"
    for split in ("valid", "test")
    for metric in ("NDCG@10", "HR@10", "NDCG@5", "HR@5", "trie_NLL", "vocab_NLL")
)


def check_choice(field: str, value: str, choices: Iterable[str]) -> None:
    """Refuse a value outside a closed set, naming the nearest valid one.

    Raises:
        ValueError: If ``value`` is not one of ``choices``.
    """
    choices = list(choices)
    if value in choices:
        return
    near = difflib.get_close_matches(str(value), choices, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"{field}={value!r} must be one of {', '.join(choices)}{hint}")


def check_range(field: str, value: float | None, low: float, high: float | None = None) -> None:
    """Refuse a number outside ``[low, high]``; null passes.

    Raises:
        ValueError: If the number is out of range.
    """
    if value is None:
        return
    if (isinstance(value, float) and not math.isfinite(value)) or value > LARGEST:
        raise ValueError(f"{field}={value} must be a finite number of at most {LARGEST}")
    if value < low or (high is not None and value > high):
        limit = f"at least {low}" if high is None else f"between {low} and {high}"
        raise ValueError(f"{field}={value} must be {limit}")


def check_positive(field: str, value: float | None) -> None:
    """Refuse what is not a finite number above 0; null passes.

    Raises:
        ValueError: If it is not.
    """
    if value is not None and not 0 < value < math.inf:
        raise ValueError(f"{field}={value} must be above 0, and finite")


def check_url(field: str, value: str | None, has_checksum: bool) -> None:
    """Refuse an address whose file nobody could vouch for; null passes.

    Raises:
        ValueError: If it is neither https, nor http with a known checksum.
    """
    if value is None or value.startswith("https://"):
        return
    if not (value.startswith("http://") and has_checksum):
        raise ValueError(
            f"{field}={value!r} must begin with https:// (http:// needs its _sha256 setting too)"
        )


def check_extras(
    group: str, config: Any, name: str, needed: Iterable[str], optional: Iterable[str]
) -> None:
    """Refuse settings of one choice of a group under another, and their absence under that one.

    Raises:
        ValueError: If a setting is null where it counts, or given where it does not.
    """
    for field in (*needed, *optional):
        value = getattr(config, field)
        if config.name == name and value is None and field in needed:
            raise ValueError(f"{group}.{field}=null must be given with {group}={name}")
        if config.name != name and value is not None:
            raise ValueError(
                f"{group}.{field}={value!r} must be null with {group}={config.name}: it belongs to "
                f"{group}={name}"
            )


def makes_steps(tuning: str, max_steps: int) -> bool:
    """Whether an LLM is trained: ``model.tuning`` and ``trainer.max_steps`` both allow it."""
    return tuning != "none" and max_steps != 0


def can_seed_change(
    kind: str, tuning: str, max_steps: int, other_runs: Iterable[str | None]
) -> bool:
    """Whether two seeds can give two results.

    Args:
        kind: ``model.kind``.
        tuning: ``model.tuning``.
        max_steps: ``trainer.max_steps``.
        other_runs: The values of OTHER_RUNS; a run that it needs has another seed too.
    """
    if kind != "llm":
        return kind not in SEEDLESS_KINDS
    return makes_steps(tuning, max_steps) or any(run is not None for run in other_runs)


@dataclass
class TaskConfig:
    """What to do with the composed run."""

    name: str  # one of TASKS
    run_folder: str | None  # evaluate, recommend: folder of a finished run; table: folder of runs
    split: str  # evaluate, masks, recommend, attention: valid or test
    history: list[str]  # recommend: item ids or titles, oldest first
    engine: str  # recommend, with data.histories: one of ENGINES
    chunk_rows: int  # recommend, with data.histories: histories of a shard, at most
    example: int  # masks: which example of the split to draw
    force: bool  # train: start over although the folder holds a run, finished or not
    num_users: int  # attention: rows of the split whose prompts are read
    attention: bool  # experiment: attention shares of its runs after the table
    batches_a_shard: int | None  # train, evaluate: batches of users between two writes of answers

    def __post_init__(self) -> None:
        check_choice("task", self.name, TASKS)
        check_choice("task.split", self.split, ("valid", "test"))
        check_range("task.example", self.example, 0)
        check_choice("task.engine", self.engine, ENGINES)
        check_range("task.chunk_rows", self.chunk_rows, 1)
        check_range("task.num_users", self.num_users, 1)
        check_range("task.batches_a_shard", self.batches_a_shard, 1)
        if self.name in ("evaluate", "recommend") and self.run_folder is None:
            raise ValueError(
                f"task={self.name} needs task.run_folder=FOLDER, the folder of a finished run"
            )


@dataclass
class PromptConfig:
    """The prompt's constant texts; ``{title}`` stands for an item's title."""

    prefix: str  # before the history
    history_item: str  # one history item, with its quotes and separator
    response: str  # after the history, up to where the title begins
    target: str  # the title to generate, up to the end token

    def __post_init__(self) -> None:
        for field in ("history_item", "target"):
            if "{title}" not in getattr(self, field):
                value = getattr(self, field)
                raise ValueError(f"data.prompt.{field}={value!r} must contain {{title}}")


@dataclass
class DataConfig:
    """Where interactions and titles come from and how they become examples."""

    name: str
    source: str  # one of SOURCES
    folder: str | None  # folder of ready tables under data_root; null = name
    release: str | None  # amazon: one of RELEASES
    category: str | None  # amazon: the category's name in the release's file names
    reviews_url: str | None  # amazon: overrides the release's own address
    metadata_url: str | None
    reviews_sha256: str | None  # null = recorded at the first download and checked from then on
    metadata_sha256: str | None
    interactions_file: str | None  # custom: CSV, Parquet or JSONL
    items_file: str | None
    user_column: str
    item_column: str
    time_column: str
    title_column: str
    train_file: str  # windows: file names inside the folder
    valid_file: str
    test_file: str
    protocol: str  # one of PROTOCOLS; windows are split already
    min_interactions: int  # k of the k-core on users and items; 1 = keep all
    max_history_items: int
    min_history_items: int
    clean_titles: bool  # unescape HTML entities twice and fold white space
    holdout_fraction: float  # share of the end of train used as valid where there is no valid split
    train_rows: int | None  # rows sampled from a split (seeded by sample_seed); null = all
    valid_rows: int | None
    test_rows: int | None
    sample_seed: int  # the sample stays the same over run seeds
    histories: str | None  # task=recommend: Parquet, JSONL or CSV, one history a row
    prompt: PromptConfig

    def __post_init__(self) -> None:
        check_choice("data.source", self.source, SOURCES)
        check_choice("data.protocol", self.protocol, PROTOCOLS)
        check_range("data.min_interactions", self.min_interactions, 1)
        check_range("data.max_history_items", self.max_history_items, 1)
        check_range("data.min_history_items", self.min_history_items, 1, self.max_history_items)
        check_range("data.holdout_fraction", self.holdout_fraction, 0.0, 0.5)
        for field in ("train_rows", "valid_rows", "test_rows"):
            check_range(f"data.{field}", getattr(self, field), 1)
        for field, sha256 in (
            ("reviews_url", self.reviews_sha256),
            ("metadata_url", self.metadata_sha256),
        ):
            check_url(f"data.{field}", getattr(self, field), sha256 is not None)
        if self.source == "amazon":
            check_choice("data.release", str(self.release), RELEASES)
            if self.category is None:
                raise ValueError("data.category=null must name an Amazon category")
        if self.source == "custom":
            for field in ("interactions_file", "items_file"):
                if getattr(self, field) is None:
                    raise ValueError(
                        f"data.{field}=null must name a CSV, Parquet or JSONL file (data=custom)"
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
class KnnConfig:
    """The last-item kNN baseline."""

    train_on: str  # one of TRAIN_ON: the whole train split, or the rows the LLM arms see
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

    train_on: str  # one of TRAIN_ON: whole train and valid splits, or the rows the LLM arms see
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
    patience: int | None  # epochs without a better val/NDCG@10; null = never stop early

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


@dataclass
class ModelConfig:
    """What recommends: a backbone and how it is tuned, or a baseline."""

    name: str
    kind: str  # one of MODEL_KINDS
    source: str  # 'smollm2' (package index), 'tiny' (random), a Hugging Face name or a folder
    num_layers: int | None  # known layer count, for early checks; null = read from the model
    dtype: str  # one of DTYPES; weights of the frozen backbone (adapters stay float32)
    tuning: str  # one of TUNINGS
    start_from: str | None  # finished run of the same model and adapters, whose weights come first
    lora: LoraConfig
    quantization_bits: int | None  # 4 or 8 with bitsandbytes on a GPU
    backend: str  # one of BACKENDS: how the masks are applied
    gradient_checkpointing: bool
    compile: bool  # decoder layers through torch.compile
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
        for field, kinds in (("knn", ("knn",)), ("sequence", SEQUENCE_KINDS)):
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


@dataclass
class MaskConfig:
    """Which layer uses which attention pattern (arXiv:2510.10955)."""

    name: str
    shallow: str  # one of PATTERNS: layers [0, split_layer)
    middle: str | None  # layers between; null = none: the deep group starts at split_layer
    deep: str  # the last num_cross_layers layers
    split_layer: int | None  # null = a quarter of the layers (half where there is no middle group)
    num_cross_layers: int | None  # null = a quarter of the layers
    layers: str | None  # one letter a layer (I, F, C), instead of the three groups
    intra_scope: str  # one of INTRA_SCOPES
    cross_sees_self: bool  # cross layers: a token sees itself
    target_is_item: bool  # the title being generated is a segment of its own

    def __post_init__(self) -> None:
        check_choice("mask.shallow", self.shallow, PATTERNS)
        check_choice("mask.deep", self.deep, PATTERNS)
        check_choice("mask.intra_scope", self.intra_scope, INTRA_SCOPES)
        if self.middle is not None:
            check_choice("mask.middle", self.middle, PATTERNS)
        check_range("mask.split_layer", self.split_layer, 0)
        check_range("mask.num_cross_layers", self.num_cross_layers, 0)
        if self.name == "custom" and self.layers is None:
            raise ValueError("mask=custom needs mask.layers, one letter a layer, such as IIFFFFCC")
        if self.layers is not None and (bad := sorted(set(self.layers) - set("IFC"))):
            raise ValueError(
                f"mask.layers={self.layers!r} holds {', '.join(map(repr, bad))}; use only "
                "I (intra), F (full) and C (cross)"
            )


@dataclass
class LossConfig:
    """The training loss."""

    name: str  # one of LOSSES
    tau: float  # msl: temperature
    eta: float  # msl_ats: the positive's aimed-at probability
    min_tau: float  # msl_ats: clamp
    max_tau: float
    ema: float  # msl_ats: weight of the old temperature in the moving average
    beta: float | None  # sdpo: how far a preference counts; null = any other loss
    num_negatives: int | None  # sdpo: titles each target competes with

    def __post_init__(self) -> None:
        check_choice("loss", self.name, LOSSES)
        check_extras("loss", self, "sdpo", ("beta", "num_negatives"), ())
        check_range("loss.num_negatives", self.num_negatives, 1)
        check_positive("loss.beta", self.beta)
        for field in ("tau", "min_tau"):
            check_positive(f"loss.{field}", getattr(self, field))
        check_range("loss.max_tau", self.max_tau, self.min_tau)
        check_range("loss.ema", self.ema, 0.0, 1.0)
        if not 0 < self.eta < 1:
            raise ValueError(f"loss.eta={self.eta} must be between 0 and 1")


@dataclass
class DecodeConfig:
    """How titles are searched and how many users go through at once."""

    name: str  # one of SEARCHES
    beam_width: int
    length_penalty: float  # finished score = log_prob / length ** length_penalty
    normalize: str  # one of NORMALIZATIONS
    top_k: int  # titles kept for each user
    users_per_batch: int
    max_expansions: int  # exact: model calls a user before it gives up its certificate
    state_cache: bool | None  # keep shallow states of the catalogue; null = where it pays
    assistant_run: str | None  # d3: finished run of a model of SEQUENCE_KINDS
    llm_weight: float | None  # d3: of the LLM's log-probabilities; the rest is the assistant's
    max_title_tokens: int | None  # grounding: longest text written; null = the longest title's

    def __post_init__(self) -> None:
        check_choice("decode", self.name, SEARCHES)
        check_extras("decode", self, "d3", ("assistant_run", "llm_weight"), ())
        check_extras("decode", self, "grounding", (), ("max_title_tokens",))
        check_range("decode.llm_weight", self.llm_weight, 0.0, 1.0)
        check_range("decode.max_title_tokens", self.max_title_tokens, 1)
        check_choice("decode.normalize", self.normalize, NORMALIZATIONS)
        check_range("decode.beam_width", self.beam_width, 1)
        check_range("decode.top_k", self.top_k, 1)
        check_range("decode.users_per_batch", self.users_per_batch, 1)
        check_range("decode.max_expansions", self.max_expansions, 1)
        check_range("decode.length_penalty", self.length_penalty, 0.0)
        if self.name in ("beam", "d3") and self.top_k > self.beam_width:
            raise ValueError(
                f"decode.top_k={self.top_k} must be at most decode.beam_width={self.beam_width}"
            )
        if self.name == "exact" and self.length_penalty != 0:
            raise ValueError(
                f"decode.length_penalty={self.length_penalty} must be 0 with decode=exact: only "
                "then do scores fall along the trie"
            )
        if self.name == "d3" and self.length_penalty != 0:
            raise ValueError(
                f"decode.length_penalty={self.length_penalty} must be 0 with decode=d3, which does "
                "without length normalisation"
            )
        writes_for_free = self.normalize == "vocab" and self.state_cache is False
        if self.name == "grounding" and not writes_for_free:
            raise ValueError(
                f"decode.normalize={self.normalize!r}, decode.state_cache={self.state_cache} must "
                "be vocab and false with decode=grounding, which writes free text"
            )


@dataclass
class TrainerConfig:
    """Hardware and optimisation."""

    name: str
    accelerator: str  # one of ACCELERATORS
    devices: int
    num_nodes: int
    strategy: str  # one of STRATEGIES
    max_epochs: int
    max_steps: int  # optimizer steps; -1 = as many as max_epochs gives; 0 = do not train
    global_batch_size: int  # rows an optimizer step, over all processes
    micro_batch_size: int  # rows a forward pass in one process, at most
    group_by_user: bool  # shuffle users, not rows, so that the rows of a batch share histories
    learning_rate: float
    warmup_steps: int  # linear warm-up, then linear decay to 0
    weight_decay: float
    gradient_clip: float  # largest gradient norm; 0 = no clipping
    validate_every_steps: int | None  # optimizer steps; null = at the end of every epoch
    early_stopping_patience: int | None  # validations without a better val/NDCG@10; null = never
    checkpoint_every_steps: int  # optimizer steps between two writes of last.ckpt

    def __post_init__(self) -> None:
        check_choice("trainer.accelerator", self.accelerator, ACCELERATORS)
        check_choice("trainer.strategy", self.strategy, STRATEGIES)
        low_one = ("devices", "num_nodes", "max_epochs", "global_batch_size", "micro_batch_size")
        for field in (*low_one, "checkpoint_every_steps", "validate_every_steps"):
            check_range(f"trainer.{field}", getattr(self, field), 1)
        for field in ("warmup_steps", "weight_decay", "gradient_clip", "early_stopping_patience"):
            check_range(f"trainer.{field}", getattr(self, field), 0)
        check_range("trainer.max_steps", self.max_steps, -1)
        check_positive("trainer.learning_rate", self.learning_rate)
        if self.num_processes > 1 and self.strategy == "auto":
            raise ValueError(
                f"trainer.devices={self.devices} needs trainer=ddp or trainer=fsdp "
                f"(trainer.strategy='auto' runs one process)"
            )

    def check_batches(self) -> None:
        """Refuse a global batch that is not the same number of whole passes for every process.

        Raises:
            ValueError: If so, with the next sizes that are.
        """
        rows = self.rows_a_pass * self.num_processes
        if self.global_batch_size % rows:
            below = self.global_batch_size - self.global_batch_size % rows
            near = f"{below} or {below + rows}" if below else f"{rows}"
            raise ValueError(
                f"trainer.global_batch_size={self.global_batch_size} must be a multiple of "
                f"micro_batch_size x devices x num_nodes = {rows}, such as {near}: only then does "
                "every row count alike"
            )

    @property
    def num_processes(self) -> int:
        """Processes of the run, over all machines."""
        return self.devices * self.num_nodes

    @property
    def rows_a_pass(self) -> int:
        """Rows of a forward pass: `micro_batch_size`, or a process's share where that is less."""
        return max(1, min(self.micro_batch_size, self.global_batch_size // self.num_processes))


@dataclass
class LoggerConfig:
    """Where curves go besides the run folder's own files."""

    name: str  # one of LOGGERS
    project: str  # wandb project
    group: str | None  # wandb group: the runs of one sweep
    tags: list[str]

    def __post_init__(self) -> None:
        check_choice("logger", self.name, LOGGERS)


@dataclass
class GridConfig:
    """Cells over how many layers are intra-item and how many cross-item, as shares of them all."""

    overrides: list[str]  # of every cell of the grid
    split_layer: list[float]  # shares of the backbone's layers, rounded down
    num_cross_layers: list[float]

    def __post_init__(self) -> None:
        for field in ("split_layer", "num_cross_layers"):
            if not getattr(self, field):
                raise ValueError(f"experiment.grid.{field}=[] must hold at least one share")
            for share in getattr(self, field):
                check_range(f"experiment.grid.{field}", share, 0.0, 1.0)


@dataclass
class ExperimentConfig:
    """Several runs that make one table; each cell is a list of overrides."""

    name: str | None
    datasets: list[str]  # choices of data, each run with every cell; empty = the composed data
    data_overrides: dict[str, list[str]]  # choice of data -> what its cells change besides
    cells: dict[str, list[str]]  # label -> overrides of this config
    only: list[str]  # labels to run now, in this order; empty = all
    grid: GridConfig | None  # more cells
    compared_with: dict[str, str]  # label -> the cell it is compared with, where not reference
    views: list[str]  # some of VIEWS: tables and figures beside the main one
    published: str | None  # CSV of published numbers to show beside ours
    seeds: list[int]
    reference: str | None  # the cell that paired differences are taken against
    folder: str | None  # where table and figures go
    cell: str | None  # label of this run in tables; null = named by its mask

    def __post_init__(self) -> None:
        for view in self.views:
            check_choice("experiment.views", view, VIEWS)


@dataclass
class SweepConfig:
    """How the cells of ``python run.py -m`` become one table; what varies is Hydra's."""

    name: str | None  # of the sweep's folder and W&B group; null = a sweep of the command line
    objective: str  # one of SWEEP_METRICS: what a search optimises and the best cell is named by
    metrics: list[str]  # of SWEEP_METRICS: a figure each
    is_search: bool  # the next cell depends on the objective of those before it

    def __post_init__(self) -> None:
        check_choice("sweep.objective", self.objective, SWEEP_METRICS)
        for metric in self.metrics:
            check_choice("sweep.metrics", metric, SWEEP_METRICS)


@dataclass
class Config:
    """One composed run."""

    task: TaskConfig
    data: DataConfig
    model: ModelConfig
    mask: MaskConfig
    loss: LossConfig
    decode: DecodeConfig
    trainer: TrainerConfig
    logger: LoggerConfig
    experiment: ExperimentConfig
    sweep: SweepConfig
    scale: str
    seed: int
    fast: bool  # false = the plain paths everywhere, the oracles of the fast ones
    num_threads: int | None  # CPU threads of torch; null = torch's own choice
    data_root: str | None  # folder of ready tables; null = none
    cache_root: str  # downloads, converted weights, prepared tables
    output_root: str  # run folders
    run_name: str | None  # folder of this run under output_root; null = named by its settings

    def __post_init__(self) -> None:
        check_range("seed", self.seed, 0, 2**31 - 1)
        check_range("num_threads", self.num_threads, 1)
        if self.task.name not in ("evaluate", "recommend"):  # those use a run on any processes
            self.trainer.check_batches()
        if self.trainer.strategy == "fsdp":
            self._check_sharding()

    @property
    def trains(self) -> bool:
        """Whether the run, one of an LLM, makes optimizer steps."""
        return makes_steps(self.model.tuning, self.trainer.max_steps)

    @property
    def is_seeded(self) -> bool:
        """Whether two seeds can give two results."""
        other_runs = [getattr(getattr(self, group), setting) for group, setting in OTHER_RUNS]
        return can_seed_change(
            self.model.kind, self.model.tuning, self.trainer.max_steps, other_runs
        )

    def _check_sharding(self) -> None:
        """Refuse what FSDP would compute wrongly, because it lies outside the sharded layers."""
        for setting, is_given, why in (
            ("loss=sdpo", self.loss.name == "sdpo", "keeps a copy of what is tuned whole"),
            ("model.tuning=full", self.model.tuning == "full", "tunes the embeddings too"),
            ("model.item_vectors", self.model.item_vectors is not None, "has a tuned projector"),
            ("model.quantization_bits", self.model.quantization_bits is not None, "packs weights"),
        ):
            if is_given:
                raise ValueError(
                    f"trainer.strategy='fsdp' shards the decoder layers under LoRA; {setting} "
                    f"{why}; use trainer=ddp"
                )


SCHEMAS: dict[str, Any] = {
    "task": TaskConfig,
    "data": DataConfig,
    "model": ModelConfig,
    "mask": MaskConfig,
    "loss": LossConfig,
    "decode": DecodeConfig,
    "trainer": TrainerConfig,
    "logger": LoggerConfig,
    "experiment": ExperimentConfig,
    "sweep": SweepConfig,
}
