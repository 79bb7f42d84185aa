"""Where curves go: always curves.csv in the run folder; W&B or TensorBoard beside it by name."""

import os
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger
from pytorch_lightning.utilities import rank_zero_only

from hatllm.config import Config
from hatllm.tasks.run_folder import config_hash, run_label
from hatllm.whole_files import write_csv

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
        names = {"learning_rate": "train/learning_rate", "lr-AdamW": "train/learning_rate"}
        row = {names.get(n, n): float(v) for n, v in metrics.items() if n != "epoch"}
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


def build_loggers(config: Config, folder: Path) -> list[Any]:
    """The loggers of a run.

    Args:
        config: The run.
        folder: Run folder, which exists.

    Returns:
        Lightning loggers.

    Raises:
        ValueError: If the logger's package is not installed.
    """
    loggers: list[Any] = [CurvesLogger(folder / "curves.csv")]
    match config.logger.name:
        case "wandb":
            loggers.append(_wandb(config, folder))
        case "tensorboard":
            try:
                loggers.append(TensorBoardLogger(str(folder), name="", version="tensorboard"))
            except ModuleNotFoundError as error:
                raise ValueError(
                    "logger=tensorboard needs a package: pip install -e '.[tensorboard]'"
                ) from error
    return loggers


def _wandb(config: Config, folder: Path) -> WandbLogger:
    try:
        import wandb  # noqa: F401
    except ImportError as error:
        raise ValueError("logger=wandb needs a package: pip install -e '.[wandb]'") from error
    logger = WandbLogger(
        project=config.logger.project,
        group=config.logger.group,
        tags=config.logger.tags,
        name=f"{run_label(config)}-s{config.seed}",
        id=f"{folder.name}"[-64:],
        resume="allow",
        save_dir=str(folder.resolve()),  # W&B's service process has a working folder of its own
        offline=not wandb_logged_in(),
        config=asdict(config) | {"config_hash": config_hash(config)},
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
) -> None:
    """Send test metrics, and a sample of predictions to W&B.

    Args:
        loggers: From `build_loggers`.
        metrics: split -> name -> value.
        predictions: The test predictions table.
        items: item_id, title.
    """
    title = dict(zip(items["item_id"].to_list(), items["title"].to_list(), strict=True))
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            for split in ("test", "popularity"):
                values = {f"{split}/{name}": value for name, value in metrics[split].items()}
                logger.experiment.summary.update(values)
            rows = [
                [r["example_id"], title[r["target_item"]], r["target_rank"],
                 " | ".join(title[i] for i in r["top_items"][:5])]
                for r in predictions.head(SHOWN_PREDICTIONS).to_dicts()
            ]  # fmt: skip
            columns = ["example_id", "target", "target_rank", "top five"]
            logger.log_text("test/predictions", columns=columns, data=rows)
            logger.experiment.finish()
        elif isinstance(logger, TensorBoardLogger):
            logger.log_metrics({f"test/{n}": v for n, v in metrics["test"].items()})
            logger.finalize("success")
