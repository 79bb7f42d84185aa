"""Where curves go: always curves.csv in the run folder; W&B or TensorBoard beside it by name."""

import os
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger
from pytorch_lightning.utilities import rank_zero_only

from hatllm.config import Config
from hatllm.files import write_csv
from hatllm.masks.schedule import Schedule, group_sizes
from hatllm.runs.name import config_hash, run_label
from hatllm.runs.provenance import code_hash
from hatllm.runs.run_files import CURVES_FILE

SHOWN_PREDICTIONS = 50  # rows of the prediction table sent to W&B


class CurvesLogger(Logger):
    """One row a step in curves.csv; a resumed run goes on in the same file."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.rows: dict[int, dict[str, float]] = {}
        if path.exists():
            for row in pl.read_csv(path).to_dicts():
                step = int(row.pop("step"))
                self.rows[step] = {name: v for name, v in row.items() if v is not None}

    @property
    def name(self) -> str:
        """Name of the logger."""
        return "curves"

    @property
    def version(self) -> str:
        """One version a folder."""
        return ""

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kw: Any) -> None:
        """Settings stand in config.yaml."""

    @rank_zero_only  # type: ignore[untyped-decorator,unused-ignore]
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Add values to a step's row."""
        row = {name: float(value) for name, value in metrics.items() if name != "epoch"}
        if row:
            self.rows.setdefault(step or 0, {}).update(row)
            if any(name.startswith("val/") for name in row) or len(self.rows) % 10 == 0:
                self.save()

    @rank_zero_only  # type: ignore[untyped-decorator,unused-ignore]
    def save(self) -> None:
        """Write the file anew."""
        if not self.rows:
            return
        rows = [{"step": step, **self.rows[step]} for step in sorted(self.rows)]
        names = sorted({name for row in rows for name in row} - {"step"})
        table = pl.DataFrame(rows, schema={"step": pl.Int64, **dict.fromkeys(names, pl.Float64)})
        write_csv(self.path, table)

    def finalize(self, status: str) -> None:
        """Write what is left."""
        self.save()


class KeepCurve(Callback):
    """No checkpoint knows a step that curves.csv does not, however the run ends after it."""

    def on_save_checkpoint(self, trainer: Trainer, module: Any, checkpoint: Any) -> None:
        """Write the curve with the step's loss, which Lightning logs only after saving."""
        loss = trainer.callback_metrics.get("train/loss")
        for logger in trainer.loggers:
            if isinstance(logger, CurvesLogger) and loss is not None:
                logger.log_metrics({"train/loss": float(loss)}, trainer.global_step - 1)
                logger.save()


class LearningRate(Callback):
    """The learning rate of each optimizer step, once, beside the step's loss."""

    def on_train_batch_start(
        self, trainer: Trainer, module: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log it with the first micro-batch of a step; Lightning's monitor does with each."""
        if batch_idx % trainer.accumulate_grad_batches == 0:
            rate = trainer.optimizers[0].param_groups[0]["lr"]
            for logger in trainer.loggers:
                logger.log_metrics({"train/learning_rate": rate}, trainer.global_step)


def build_loggers(
    config: Config, folder: Path, manifest: Mapping[str, Any], schedule: Schedule | None
) -> list[Any]:
    """The loggers of a run.

    Args:
        config: The run.
        folder: Run folder, which exists.
        manifest: Of its data.
        schedule: Of its layers; None = a model without.

    Returns:
        Lightning loggers.

    Raises:
        ValueError: If the logger's package is not installed.
    """
    loggers: list[Any] = [CurvesLogger(folder / CURVES_FILE)]
    match config.logger.name:
        case "wandb":
            settings = settings_to_group_by(config, manifest, schedule)
            name = f"{run_label(config)}-s{config.seed}"
            loggers.append(_wandb(config, folder, settings, name, f"{folder.name}"[-64:]))
        case "tensorboard":
            try:
                loggers.append(TensorBoardLogger(str(folder), name="", version="tensorboard"))
            except ModuleNotFoundError as error:
                raise ValueError(
                    "logger=tensorboard needs a package: pip install -e '.[tensorboard]'"
                ) from error
    return loggers


def settings_to_group_by(
    config: Config, manifest: Mapping[str, Any], schedule: Schedule | None
) -> dict[str, Any]:
    """Every setting of a run, and what it came to: equal for runs that do the same.

    Args:
        config: The run.
        manifest: Of its data.
        schedule: Of its layers; None = a model without.

    Returns:
        The settings; the hashes of settings, data, split and code; ``schedule``: ``layers`` (a
        letter each) and both depths, worked out where ``mask`` leaves them null; null themselves
        where no group differs from another, or every layer was named.
    """
    found = asdict(config) | {"config_hash": config_hash(config), "code_hash": code_hash()}
    found |= {name: manifest[name] for name in ("data_hash", "split_hash")}
    if schedule is None:
        return found
    mask, split_layer, num_cross_layers = config.mask, None, None
    if mask.layers is None and {mask.shallow, mask.middle or mask.deep} != {mask.deep}:
        split_layer, num_cross_layers = group_sizes(mask, len(schedule.patterns))
    layers = {"layers": schedule.letters, "split_layer": split_layer}
    return found | {"schedule": {**layers, "num_cross_layers": num_cross_layers}}


def log_attention(config: Config, folder: Path, picture: Path, ratios: pl.DataFrame) -> None:
    """Send figure and ratios of ``task=attention`` to W&B, as a run of its own; else nothing.

    Args:
        config: Under ``logger=wandb``, project and group to log into.
        folder: Of the figure; W&B keeps its files there.
        picture: PNG.
        ratios: One row a label and stage.

    Raises:
        ValueError: If the package of W&B is not installed.
    """
    if config.logger.name != "wandb":
        return
    logger = _wandb(config, folder, asdict(config), f"attention-{folder.name}", run_id=None)
    logger.log_image("attention", [str(picture)])
    logger.log_table("attention_ratios", columns=ratios.columns, data=[*map(list, ratios.rows())])
    logger.experiment.finish()


def _wandb(
    config: Config, folder: Path, settings: dict[str, Any], name: str, run_id: str | None
) -> WandbLogger:
    try:
        import wandb  # noqa: F401
    except ImportError as error:
        raise ValueError("logger=wandb needs a package: pip install -e '.[wandb]'") from error
    logger = WandbLogger(
        project=config.logger.project,
        group=config.logger.group,
        tags=config.logger.tags,
        name=name,
        id=run_id,
        resume="allow",
        save_dir=str(folder.resolve()),  # W&B's service process has a working folder of its own
        offline=not wandb_logged_in(),
        config=settings,
    )
    # Lightning always passes this one on, and W&B warns that it is of the past.
    logger._wandb_init.pop("anonymous", None)
    return logger


def wandb_logged_in() -> bool:
    """Whether W&B would know the user; otherwise runs stay offline and can be synced later."""
    if os.environ.get("WANDB_MODE") in ("offline", "disabled"):
        return False
    if os.environ.get("WANDB_API_KEY"):
        return True
    netrc = Path("~/.netrc").expanduser()
    return netrc.exists() and "wandb" in netrc.read_text(errors="ignore")


def log_results(
    loggers: list[Any],
    metrics: dict[str, dict[str, float]],
    predictions: pl.DataFrame,
    items: pl.DataFrame,
    picture: Path | None,
) -> None:
    """Send the metrics of the finished run; to W&B tables, a sample of predictions and a picture.

    Args:
        loggers: From `build_loggers`.
        metrics: split -> name -> value.
        predictions: The test predictions table.
        items: item_id, title.
        picture: The masks; None = a model without.
    """
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            _finish_wandb(logger, metrics, _sample(predictions, items), picture)
        elif isinstance(logger, TensorBoardLogger):
            logger.log_metrics({f"test/{n}": v for n, v in metrics["test"].items()})
            logger.finalize("success")


def wants_picture(loggers: list[Any]) -> bool:
    """Whether some logger shows the masks."""
    return any(isinstance(logger, WandbLogger) for logger in loggers)


def _finish_wandb(
    logger: WandbLogger,
    metrics: dict[str, dict[str, float]],
    sample: list[list[Any]],
    picture: Path | None,
) -> None:
    """Tables and picture, then the summary: of one model, that of the chosen checkpoint.

    W&B's own summary holds the last value of each curve. ``val/*`` is written last, so that it
    stands beside ``test/*`` and sweeps optimise it.
    """
    columns = ["example_id", "target", "target_rank", "top five"]
    logger.log_table("test/predictions", columns=columns, data=sample)
    rows = [
        [split, name, value, values.get(f"{name}_se")]
        for split, values in metrics.items()
        for name, value in values.items()
        if not name.endswith("_se")
    ]
    columns = ["split", "metric", "value", "standard error over users"]
    logger.log_table("metrics", columns=columns, data=rows)
    if picture is not None:
        logger.log_image("masks", [str(picture)])
    for split, prefix in (("popularity", "popularity"), ("test", "test"), ("valid", "val")):
        values = {f"{prefix}/{name}": value for name, value in metrics[split].items()}
        logger.experiment.summary.update(values)
    logger.experiment.finish()


def _sample(predictions: pl.DataFrame, items: pl.DataFrame) -> list[list[Any]]:
    """The first predictions in words: example_id, target, target_rank, top five."""
    title = dict(zip(items["item_id"].to_list(), items["title"].to_list(), strict=True))
    return [
        [r["example_id"], title[r["target_item"]], r["target_rank"],
         " | ".join(title[i] for i in r["top_items"][:5])]
        for r in predictions.head(SHOWN_PREDICTIONS).to_dicts()
    ]  # fmt: skip
