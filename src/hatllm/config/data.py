"""Settings of ``conf/data/``."""

from dataclasses import dataclass

from hatllm.config.checks import LARGEST, check_choice, check_range, check_url

SOURCES = ("ml100k", "amazon", "windows", "custom")
RELEASES = ("2014", "2018", "2023")
TAB = "\\t"  # as one types it
TRAIN_TARGETS = ("last", "every")
TARGET_FORMS = ("in_place", "branches")
TARGET_WEIGHTS = ("equal", "rising")
PROTOCOLS = ("sliding_window", "all_prefixes", "leave_one_out")


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
    source: str  # how the tables are fetched and read; one of SOURCES
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
    rating_column: str | None  # null = the source's own; custom has none
    min_rating: float | None  # interactions rated lower are dropped; null = all are kept
    separator: str | None  # custom: of CSV files, one character or TAB; null = told from the header
    encoding: str | None  # custom: of CSV files; null = told from the file
    train_file: str  # windows: file names inside the folder
    valid_file: str
    test_file: str
    protocol: str  # one of PROTOCOLS; windows are split already
    min_interactions: int  # k of the k-core on users and items; 1 = keep all
    max_history_items: int
    min_history_items: int
    clean_titles: bool  # unescape HTML entities twice, drop HTML tags, fold white space
    max_title_characters: int | None  # longer titles are cut between words; null = whole
    holdout_fraction: float  # share of the end of train used as valid where there is no valid split
    train_rows: int | None  # rows sampled from a split (seeded by sample_seed); null = all
    valid_rows: int | None
    test_rows: int | None
    sample_seed: int  # the sample stays the same over run seeds
    train_targets: str  # one of TRAIN_TARGETS: LLM arms learn the row's target, or every item too
    target_form: str  # one of TARGET_FORMS
    target_weights: str  # one of TARGET_WEIGHTS
    histories: str | None  # task=recommend: Parquet, JSONL or CSV, one history a row
    prompt: PromptConfig

    def __post_init__(self) -> None:
        check_choice("data.source", self.source, SOURCES)
        check_choice("data.protocol", self.protocol, PROTOCOLS)
        check_choice("data.train_targets", self.train_targets, TRAIN_TARGETS)
        check_choice("data.target_form", self.target_form, TARGET_FORMS)
        check_choice("data.target_weights", self.target_weights, TARGET_WEIGHTS)
        check_range("data.min_interactions", self.min_interactions, 1)
        check_range("data.max_history_items", self.max_history_items, 1)
        check_range("data.min_history_items", self.min_history_items, 1, self.max_history_items)
        check_range("data.max_title_characters", self.max_title_characters, 1)
        self._check_ratings()
        self._check_csv_form()
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

    def _check_ratings(self) -> None:
        if self.min_rating is None:
            return
        check_range("data.min_rating", self.min_rating, -LARGEST)
        if self.source == "windows":
            raise ValueError(
                f"data.min_rating={self.min_rating} must be null: prepared windows have no ratings"
            )
        if self.source == "custom" and self.rating_column is None:
            raise ValueError(
                f"data.min_rating={self.min_rating} needs data.rating_column, the ratings' column "
                "in data.interactions_file"
            )

    def _check_csv_form(self) -> None:
        separator = self.separator
        one = separator is None or separator == TAB or len(separator) == 1
        if not one or separator in ('"', "\r", "\n"):
            raise ValueError(
                f"data.separator={separator!r} must be one character, not a quote or line break, "
                f"or {TAB}"
            )
        if self.encoding is not None:
            try:
                "a".encode(self.encoding)
            except (LookupError, ValueError) as error:
                raise ValueError(
                    f"data.encoding={self.encoding!r} is no encoding that Python knows, such as "
                    "utf-8, latin-1, cp1251 or gbk"
                ) from error
