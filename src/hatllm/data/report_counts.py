"""What a data set looks like in numbers."""

from dataclasses import dataclass

import polars as pl

from hatllm.data.prepare import Dataset
from hatllm.data.split import SPLITS


@dataclass(frozen=True)
class Spread:
    """Smallest, mean and largest of some numbers; all 0 where there are none."""

    low: float
    mean: float
    high: float


@dataclass(frozen=True)
class SplitStatistics:
    """One split, after row sampling.

    Shares are fractions of the split's targets; 'train' means all of train, before row sampling.

    Attributes:
        rows: Examples.
        rows_before_sampling: Examples before row sampling.
        users: Users with an example.
        history_items: Items in a history.
        first_time: Earliest target, Unix seconds; None where there are no rows.
        last_time: Latest target.
        unseen_share: Targets that no train interaction has.
        never_target_share: Targets that are no train example's target (but may be in a history).
        unseen_in_sample_share: Targets in no history of a sampled row of train and not its target.
        shared_title_share: Targets whose title another item has too.
        targets_in_history: Targets that stand in their own history.
        targets_last: Targets that are the last item of their history.
        targets_tied: Targets at the same time as another target of their user, in any split: the
            order of the two is that of the source file.
    """

    rows: int
    rows_before_sampling: int
    users: int
    history_items: Spread
    first_time: int | None
    last_time: int | None
    unseen_share: float
    never_target_share: float
    unseen_in_sample_share: float
    shared_title_share: float
    targets_in_history: int
    targets_last: int
    targets_tied: int


@dataclass(frozen=True)
class DatasetStatistics:
    """A whole data set.

    Attributes:
        users: Users with at least one example.
        items: Items of the catalogue.
        interactions: Kept interactions; None for prepared windows, which do not tell.
        train_interactions: Those of train, each once, before row sampling.
        title_characters: Length of titles.
        duplicate_titles: Titles that two or more items share.
        items_sharing_titles: Items that share their title with another.
        wordless_titles: Items whose title has no letter a-z and no digit, in either case.
        splits: Per split.
    """

    users: int
    items: int
    interactions: int | None
    train_interactions: int
    title_characters: Spread
    duplicate_titles: int
    items_sharing_titles: int
    wordless_titles: int
    splits: dict[str, SplitStatistics]


def dataset_statistics(dataset: Dataset) -> DatasetStatistics:
    """Count a data set."""
    titles = dataset.items["title"]
    shared = dataset.items.filter(titles.is_duplicated())
    steps = dataset.manifest["steps"]
    return DatasetStatistics(
        users=dataset.users.height,
        items=dataset.items.height,
        interactions=steps[-1]["interactions"] if steps else None,
        train_interactions=dataset.train_interactions.height,
        title_characters=_spread(titles.str.len_chars()),
        duplicate_titles=shared["title"].n_unique(),
        items_sharing_titles=shared.height,
        wordless_titles=int((~titles.str.contains("[A-Za-z0-9]")).sum()),
        splits={name: _split_statistics(dataset, name, shared["item_id"]) for name in SPLITS},
    )


def items_anywhere(examples: pl.DataFrame) -> pl.Series:
    """Return every item of the examples once, from histories and targets."""
    in_histories = examples["history"].explode().drop_nulls()
    return pl.concat([in_histories.alias("item_id"), examples["target"].alias("item_id")]).unique()


def _split_statistics(dataset: Dataset, name: str, shared: pl.Series) -> SplitStatistics:
    rows = dataset.splits[name]
    targets = rows["target"]
    low, high = rows["timestamp"].min(), rows["timestamp"].max()
    return SplitStatistics(
        rows=rows.height,
        rows_before_sampling=dataset.manifest["rows"][name]["before_sampling"],
        users=rows["user_id"].n_unique(),
        history_items=_spread(rows["history"].list.len()),
        first_time=low if isinstance(low, int) else None,
        last_time=high if isinstance(high, int) else None,
        unseen_share=1 - _share_in(targets, dataset.train_interactions["item_id"].unique()),
        never_target_share=1 - _share_in(targets, dataset.full_train["target"].unique()),
        unseen_in_sample_share=1 - _share_in(targets, items_anywhere(dataset.splits["train"])),
        shared_title_share=_share_in(targets, shared),
        targets_in_history=_num(rows, pl.col("history").list.contains(pl.col("target"))),
        targets_last=_num(rows, pl.col("history").list.last() == pl.col("target")),
        targets_tied=_num_tied(rows, dataset),
    )


def _num_tied(rows: pl.DataFrame, dataset: Dataset) -> int:
    """Targets of some rows that share their user and time with another row's target."""
    others = [dataset.splits[name] for name in SPLITS if name != "train"]
    every = pl.concat(
        [part.select("user_id", "timestamp") for part in (dataset.full_train, *others)]
    )
    tied = every.filter(every.is_duplicated()).unique()
    return rows.join(tied, on=["user_id", "timestamp"], how="semi").height


def _num(rows: pl.DataFrame, condition: pl.Expr) -> int:
    return int(rows.select(condition.sum()).item())


def _share_in(targets: pl.Series, items: pl.Series) -> float:
    found = targets.is_in(items.implode()).sum()
    return float(found) / len(targets) if len(targets) else 0.0


def _spread(numbers: pl.Series) -> Spread:
    if numbers.is_empty():
        return Spread(0.0, 0.0, 0.0)
    values = numbers.cast(pl.Float64).to_numpy()
    return Spread(float(values.min()), float(values.mean()), float(values.max()))
