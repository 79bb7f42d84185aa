"""The run of model=fusion: two finished runs' answers as one list, weighed on valid."""

from pathlib import Path

import polars as pl

from hatllm.baselines.fusion import best_share, fused_predictions, gain_of_shares
from hatllm.config import Config
from hatllm.data.prepare import Dataset
from hatllm.files import write_json
from hatllm.runs.folder import load_config
from hatllm.runs.run_files import FUSION_FILE, PREDICTIONS, read_manifest, read_predictions

FIELDS = ("first_run", "second_run")


def fused_answers(config: Config, folder: Path, dataset: Dataset) -> dict[str, pl.DataFrame]:
    """Choose the share of the first run on valid, and fuse both splits.

    Args:
        config: The run.
        folder: Its folder; ``fusion.json`` gains the share, and the NDCG of every share tried.
        dataset: Its prepared examples.

    Returns:
        split -> predictions table.

    Raises:
        ValueError: If a run is not finished or has answered other examples.
    """
    fusion = config.model.fusion
    assert fusion is not None
    first, second = (_answers_of(config, field, dataset) for field in FIELDS)
    top_k, items = config.decode.top_k, dataset.items
    gains = gain_of_shares(first["valid"], second["valid"], items, fusion, top_k)
    share = best_share(gains)
    write_json(
        folder / FUSION_FILE,
        {
            "share": share, "constant": fusion.constant,
            "valid_NDCG": {f"{tried:g}": gain for tried, gain in gains.items()},
        },
    )  # fmt: skip
    return {
        split: fused_predictions(first[split], second[split], items, share, fusion.constant, top_k)
        for split in PREDICTIONS
    }


def _answers_of(config: Config, field: str, dataset: Dataset) -> dict[str, pl.DataFrame]:
    """The predictions tables of one of the two runs."""
    folder = Path(str(getattr(config.model, field)))
    theirs_excludes = load_config(folder, f"model.{field}").decode.exclude_history
    if theirs_excludes != config.decode.exclude_history:
        raise ValueError(
            f"decode.exclude_history={config.decode.exclude_history} must be {theirs_excludes}, as "
            f"in the run of model.{field}={str(folder)!r}, whose lists are fused"
        )
    theirs, ours = read_manifest(folder)["split_hashes"], dataset.manifest["split_hashes"]
    for split in PREDICTIONS:
        if theirs[split] != ours[split]:
            raise ValueError(
                f"model.{field}={str(folder)!r} has answered other {split} examples than those of "
                f"this run ({theirs[split][:12]}, here {ours[split][:12]}): give runs on the same "
                "data, protocol, data.valid_rows, data.test_rows and data.sample_seed"
            )
    return {split: read_predictions(folder, split) for split in PREDICTIONS}
