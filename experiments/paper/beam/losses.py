"""From the records of users to tables: what each decoder loses, where, and what it costs."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from experiments.paper.beam.records import EXACT, PLACES, TEXTS
from hatllm.files import write_csv, write_text
from hatllm.metrics.from_predictions import example_metrics
from hatllm.metrics.ranking import standard_error
from hatllm.metrics.uncertainty import MeanInterval, example_differences, mean_interval
from hatllm.tables.numbers import DASH, format_difference, format_value
from hatllm.tables.writers import markdown_table

Record = Mapping[str, Any]
METRICS = ("HR@10", "NDCG@10")
BOUNDS = [f"{metric}_{x}" for metric in METRICS for x in ("minus", "low", "high")]  # to exact
LOSS_COLUMNS = ("run", "decoder", "users", "lost", "lost_se", "users_with_loss", "lost_of_own",
                "seconds", *METRICS, *BOUNDS)  # fmt: skip


def proven_of(records: Sequence[Record]) -> list[Record]:
    """The records whose exact list is proven under every temperature; others tell nothing."""
    return [
        record
        for record in records
        if all(part.get("is_proven", True) for part in record["decoders"].values())
    ]


def proven_runs(found: Mapping[str, Sequence[Record]]) -> dict[str, list[Record]]:
    """The proven records of each run that has some.

    Raises:
        ValueError: If no run has any.
    """
    proven = {label: proven_of(records) for label, records in found.items()}
    if not any(proven.values()):
        raise ValueError(
            f"{', '.join(found)}: no exact list is proven within decode.max_expansions, so that "
            "there is nothing to hold a decoder against; scores normalised over the whole "
            "vocabulary are seldom proven"
        )
    return {label: records for label, records in proven.items() if records}


def lost_share(record: Record, decoder: str, reference: str = EXACT) -> float:
    """Share of the reference's titles that a decoder did not find, of one user."""
    proven = set(record["decoders"][reference]["leaves"])
    return len(proven - set(record["decoders"][decoder]["leaves"])) / len(proven)


def loss_table(label: str, records: Sequence[Record]) -> pl.DataFrame:
    """A row a decoder: LOSS_COLUMNS.

    ``lost`` is the share of the proven titles that it misses, ``lost_of_own`` that of the titles
    that an exact search proves under the decoder's own temperature (null where none was made).
    """
    rows = []
    users = pl.Series([record["user_id"] for record in records])
    values = {name: _metrics(records, name) for name in records[0]["decoders"]}
    for name in values:
        lost = pl.Series([lost_share(record, name) for record in records])
        own = f"{EXACT}, {name}"
        seconds = [record["decoders"][name]["seconds"] for record in records]
        timed = [second for second in seconds if second is not None]
        row = {
            "run": label, "decoder": name, "users": users.n_unique(), "lost": lost.mean(),
            "lost_se": float(standard_error(lost.to_torch(), users.to_torch())),
            "users_with_loss": float((lost > 0).mean() or 0.0),
            "lost_of_own": pl.Series([lost_share(r, name, own) for r in records]).mean()
            if own in values else None,
            "seconds": sum(timed) / len(timed) if timed else None,
        }  # fmt: skip
        for metric in METRICS:
            difference = mean_interval(example_differences(values[name], values[EXACT], metric))
            row |= {metric: values[name][metric].mean(), f"{metric}_minus": difference.mean,
                    f"{metric}_low": difference.low, f"{metric}_high": difference.high}  # fmt: skip
        rows.append(row)
    return pl.DataFrame(rows).select(LOSS_COLUMNS)


def _metrics(records: Sequence[Record], decoder: str) -> pl.DataFrame:
    rank = [record["decoders"][decoder]["target_rank"] for record in records]
    columns = {name: [record[name] for record in records] for name in ("example_id", "user_id")}
    ranks = pl.Series(rank, dtype=pl.Int64)
    return example_metrics(
        pl.DataFrame({**columns, "target_rank": ranks, "target_item_rank": ranks}), (10,)
    )


def _weighed(records: Sequence[Record], decoder: str) -> Iterator[tuple[int, str, str, bool]]:
    """Each token of the proven titles that a beam has weighed, and whether the title fell there."""
    for record in records:
        for kinds, fell in zip(record["kinds"], record["decoders"][decoder]["fell"], strict=True):
            for depth, (place, text) in enumerate(kinds[: fell or len(kinds)], start=1):
                yield depth, place, text, depth == fell


def token_table(label: str, records: Sequence[Record]) -> pl.DataFrame:
    """Where titles fell out of the beams: run, decoder, by, kind, weighed, fell, share.

    ``weighed`` counts tokens of proven titles whose prefix a beam had kept so far, ``fell`` those
    at which it let go, ``share`` is of all that fell. ``by`` is the token's place in the title, its
    text or its depth, from 1.
    """
    rows = []
    for name, part in records[0]["decoders"].items():
        if "fell" not in part:
            continue
        weighed = [*_weighed(records, name)]
        depths = range(1, max(depth for depth, *_ in weighed) + 1)
        kinds_of: dict[str, tuple[Sequence[Any], Callable[[tuple[int, str, str, bool]], Any]]] = {
            "place": (PLACES, lambda token: token[1]),
            "text": (TEXTS, lambda token: token[2]),
            "depth": (depths, lambda token: token[0]),
        }
        for by, (kinds, kind_of) in kinds_of.items():
            count = Counter(map(kind_of, weighed))
            fell = Counter(kind_of(token) for token in weighed if token[3])
            rows += [
                (label, name, by, str(kind), count[kind], fell[kind],
                 fell[kind] / max(1, fell.total()))
                for kind in kinds
            ]  # fmt: skip
    columns = ["run", "decoder", "by", "kind", "weighed", "fell", "share"]
    return pl.DataFrame(rows, schema=columns, orient="row")


def loss_markdown(table: pl.DataFrame) -> str:
    """The losses as a reader sees them."""
    head = ["run", "decoder", "lost titles", "users with a loss", "HR@10", "minus exact",
            "NDCG@10", "minus exact", "s a user"]  # fmt: skip
    rows = []
    for row in table.rows(named=True):
        cells = [row["run"], row["decoder"], f"{row['lost']:.1%} ± {row['lost_se']:.1%}"]
        cells.append(f"{row['users_with_loss']:.0%}")
        for metric in METRICS:
            interval = MeanInterval(*(row[f"{metric}_{x}"] for x in ("minus", "low", "high")))
            is_own = row["decoder"] == EXACT
            cells += [format_value(metric, row[metric]),
                      DASH if is_own else format_difference(metric, interval)]  # fmt: skip
        cells.append(DASH if row["seconds"] is None else f"{row['seconds']:.1f}")
        rows.append(cells)
    return markdown_table(head, rows)


def token_markdown(table: pl.DataFrame) -> str:
    """Falls by place and text of the token."""
    rows = [
        [row["run"], row["decoder"], row["kind"], f"{row['weighed']:,}", f"{row['fell']:,}",
         f"{row['fell'] / row['weighed']:.2%}" if row["weighed"] else DASH, f"{row['share']:.0%}"]
        for row in table.filter(pl.col("by") != "depth").rows(named=True)
    ]  # fmt: skip
    head = ["run", "decoder", "token", "weighed", "fell there", "rate", "share of the lost"]
    return markdown_table(head, rows)


def write_tables(found: Mapping[str, Sequence[Record]], folder: Path) -> None:
    """Write losses.csv, tokens.csv and decoders.md.

    Args:
        found: Label of a run -> its records.
        folder: Where to.
    """
    proven = proven_runs(found)
    losses = pl.concat(loss_table(*entry) for entry in proven.items())
    tokens = pl.concat(token_table(*entry) for entry in proven.items())
    write_csv(folder / "losses.csv", losses)
    write_csv(folder / "tokens.csv", tokens)
    left_out = ", ".join(
        f"{label}: {len(records) - len(proven.get(label, []))} of {len(records)}"
        for label, records in found.items()
    )
    write_text(
        folder / "decoders.md",
        f"{loss_markdown(losses)}\n\n{token_markdown(tokens)}\n\n± is the standard error over "
        "users; intervals are at 95 % over users, paired. Users whose exact list was not proven "
        f"are left out ({left_out}).\n",
    )
