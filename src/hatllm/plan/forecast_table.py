"""What a run will cost, before it is launched, and the tables that say so."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.table import Table

STAGES = ("prepare", "train", "validate", "evaluate")


@dataclass(frozen=True)
class Seconds:
    """A predicted time and its range."""

    low: float
    middle: float
    high: float

    @classmethod
    def exactly(cls, seconds: float) -> "Seconds":
        """A time without a range."""
        return cls(seconds, seconds, seconds)

    def __add__(self, other: "Seconds") -> "Seconds":
        return Seconds(self.low + other.low, self.middle + other.middle, self.high + other.high)

    def __mul__(self, factor: float) -> "Seconds":
        return Seconds(self.low * factor, self.middle * factor, self.high * factor)

    def __str__(self) -> str:
        unit, size = next(
            ((unit, size) for unit, size in (("h", 3600), ("min", 60)) if self.middle >= 2 * size),
            ("s", 1),
        )
        middle, low, high = (_rounded(x / size) for x in (self.middle, self.low, self.high))
        return f"{middle} {unit}" if low == high else f"{middle} {unit} ({low}–{high})"


NO_TIME = Seconds.exactly(0.0)


def _rounded(value: float) -> str:
    return f"{value:.0f}" if value >= 100 or value == 0 else f"{value:.1f}"


@dataclass(frozen=True)
class SplitSize:
    """Rows and tokens of a split."""

    rows: int
    tokens: int  # train: prompts and titles; valid, test: prompts
    longest: int  # tokens of the longest row
    prefix_share: float  # of the tokens: the constant prefix, which fast paths run once a batch
    padding_share: float | None  # of the padded batches; null = the split is not run


@dataclass(frozen=True)
class TrieSize:
    """The item trie."""

    nodes: int
    branching: int
    titles: int


@dataclass(frozen=True)
class StatesSize:
    """The catalogue's shallow states."""

    tokens: int  # that go through the segment layers to make them
    megabytes: float
    used_by: tuple[str, ...]  # splits for which they pay

    def __str__(self) -> str:
        size = f"{self.tokens:,} tokens, {self.megabytes:,.1f} MB"
        return f"used for {' and '.join(self.used_by)}: {size}" if self.used_by else (
            f"not used, it would cost more than it saves: {size}"
        )  # fmt: skip


@dataclass
class RunPlan:
    """The cost of one run; a finished one costs nothing."""

    label: str
    seed: int
    status: str  # 'to run', 'finished', 'resumes at step N', ...
    data: str = ""  # name of the data set
    splits: dict[str, SplitSize] = field(default_factory=dict)
    num_steps: int = 0  # optimizer steps still to make
    num_validations: int = 0
    trained_tokens: int = 0  # of their batches, the most that go through the model
    trie: TrieSize | None = None
    states: StatesSize | None = None  # None = the mask has no segment layers, or the plain path
    num_tuned: int = 0  # parameters
    num_frozen: int = 0
    peak_memory_mb: float | None = None
    memory_of: str = "process"  # or 'GPU'
    seconds: dict[str, Seconds] = field(default_factory=dict)  # by stage
    calibration_seconds: float = 0.0

    @property
    def total(self) -> Seconds:
        """Time of all stages."""
        return sum(self.seconds.values(), NO_TIME)


def split_table(plan: RunPlan) -> Table:
    """Rows and tokens, one row a split."""
    table = Table(title=f"{plan.label}, seed {plan.seed}: rows and tokens")
    table.add_column("split")
    for column in ("rows", "tokens", "mean", "longest", "prefix", "padding"):
        table.add_column(column, justify="right")
    for name, size in plan.splits.items():
        table.add_row(
            name, f"{size.rows:,}", f"{size.tokens:,}", f"{size.tokens / size.rows:.1f}",
            f"{size.longest:,}", f"{size.prefix_share:.1%}",
            "–" if size.padding_share is None else f"{size.padding_share:.1%}",
        )  # fmt: skip
    table.caption = (
        "train with titles, valid and test without; prefix: share of the tokens that is the same "
        "in all prompts; padding: share of padded batches that packing leaves out"
    )
    return table


def cost_table(plan: RunPlan) -> Table:
    """What the run is made of and what it costs."""
    table = Table(title="predicted cost", show_header=False)
    table.add_column()
    table.add_column()
    for name, value in _facts(plan):
        table.add_row(name, value)
    table.add_section()
    for stage in STAGES:
        table.add_row(stage, str(plan.seconds.get(stage, NO_TIME)))
    table.add_section()
    table.add_row("[bold]total", f"[bold]{plan.total}")
    if plan.calibration_seconds:
        table.caption = _caption(plan.calibration_seconds)
    return table


def _facts(plan: RunPlan) -> list[tuple[str, str]]:
    facts = [("status", plan.status)]
    if plan.trie is None:
        return facts
    trie = f"{plan.trie.nodes:,} nodes, {plan.trie.branching:,} branching, {plan.trie.titles:,}"
    facts += [
        ("optimizer steps", f"{plan.num_steps:,}, {plan.trained_tokens:,} tokens"),
        ("validations", f"{plan.num_validations:,}"),
        ("item trie", f"{trie} titles"),
        ("parameters", f"{plan.num_tuned:,} tuned, {plan.num_frozen:,} frozen"),
        ("catalogue states", "none" if plan.states is None else str(plan.states)),
        ("peak memory", f"{plan.peak_memory_mb or 0:,.0f} MB ({plan.memory_of})"),
    ]
    return facts


def _caption(calibration_seconds: float) -> str:
    return (
        "(low–high): fastest and slowest calibration batch; linear in tokens; without start-up and "
        f"report. Calibration took {calibration_seconds:.1f} s."
    )


def experiment_table(name: str, plans: Sequence[RunPlan]) -> Table:
    """One row a cell, then their sum.

    Args:
        name: Of the experiment.
        plans: Its cells.

    Returns:
        Times are those still to be spent: finished cells count as 0 s.
    """
    table = Table(title=f"predicted cost of experiment {name}")
    several = len({plan.data for plan in plans}) > 1
    if several:
        table.add_column("data")
    table.add_column("cell", overflow="fold")
    table.add_column("seed", justify="right")
    table.add_column("status")
    for column in ("steps", "train", "decode", "total"):
        table.add_column(column, justify="right")
    for plan in plans:
        data = [plan.data] if several else []
        table.add_row(*data, plan.label, str(plan.seed), plan.status, *_times([plan]))
    table.add_section()
    unfinished = sum(plan.status != "finished" for plan in plans)
    blank = [""] if several else []
    table.add_row(f"[bold]{unfinished} to run", *blank, "", "", *_times(plans))
    peaks = [plan.peak_memory_mb for plan in plans if plan.peak_memory_mb is not None]
    memory = f" Peak memory of the largest cell: {max(peaks):,.0f} MB." if peaks else ""
    seconds = sum(plan.calibration_seconds for plan in plans)
    table.caption = f"decode: validations and evaluation. {_caption(seconds)}{memory}"
    return table


def _times(plans: Sequence[RunPlan]) -> list[str]:
    def of(*stages: str) -> Seconds:
        return sum((p.seconds.get(stage, NO_TIME) for p in plans for stage in stages), NO_TIME)

    steps = f"{sum(plan.num_steps for plan in plans):,}"
    return [steps, str(of("train")), str(of("validate", "evaluate")), str(of(*STAGES))]
