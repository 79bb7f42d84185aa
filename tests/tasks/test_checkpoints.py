"""Which validation is the best, and that a killed run goes on knowing it."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as lightning

from hatllm.model.recommender import Recommender
from hatllm.tasks.checkpoints import Checkpoints, Validation

Curve = list[tuple[float, float | None]]


def after(curve: Curve, patience: int | None = None, monitor: str = "val/NDCG@10") -> Checkpoints:
    """The callback after validations with these values and NLLs, ten steps apart."""
    config: Any = SimpleNamespace(
        monitor=monitor, early_stopping_patience=patience, checkpoint_every_seconds=60.0,
        checkpoint_every_steps=50, higher_is_better=not monitor.endswith("NLL"),
    )  # fmt: skip
    checkpoints = Checkpoints(Path("run"), config)
    trainer: Any = SimpleNamespace(
        global_step=0, callback_metrics={}, should_stop=False, save_checkpoint=lambda *_, **__: None
    )
    for value, nll in curve:
        trainer.global_step += 10
        trainer.callback_metrics = {monitor: value} | ({} if nll is None else {"val/trie_NLL": nll})
        checkpoints.on_validation_end(trainer, None)
        if trainer.should_stop:
            break
    checkpoints.stopped_at = trainer.global_step if trainer.should_stop else None  # type: ignore[attr-defined]
    return checkpoints


@pytest.mark.parametrize(
    ("curve", "step"),
    [
        ([(0.1, 9.0), (0.3, 9.5), (0.2, 8.0)], 20),
        ([(0.0, 9.2), (0.0, 9.0), (0.0, 8.8), (0.0, 8.9)], 30),  # equal: the lower NLL
        ([(0.2, 9.0), (0.2, 9.0), (0.1, 8.0)], 20),  # equal in both: the later
        ([(0.2, None), (0.2, None), (0.1, None)], 20),  # a model without an NLL
    ],
)
def test_the_best_is_by_the_metric_then_by_nll_then_the_later(curve: Curve, step: int) -> None:
    best = after(curve).best
    assert best is not None and best.step == step


def test_an_nll_that_is_monitored_is_best_where_it_is_lowest() -> None:
    best = after([(9.0, 9.0), (8.5, 8.5), (8.7, 8.7)], monitor="val/trie_NLL").best
    assert best == Validation(20, 8.5, 8.5)


def test_patience_counts_a_lower_nll_as_better_and_an_equal_one_as_nothing_new() -> None:
    falling: Curve = [(0.0, 9.0 - k / 10) for k in range(6)]
    assert after(falling, patience=2).stopped_at is None  # type: ignore[attr-defined]
    flat: Curve = [(0.0, 9.0)] * 6
    assert after(flat, patience=2).stopped_at == 30  # type: ignore[attr-defined]
    assert after(flat, patience=0).stopped_at == 20  # type: ignore[attr-defined]


def test_what_is_known_goes_through_a_checkpoint() -> None:
    known = after([(0.1, 9.0), (0.3, 9.5), (0.2, 8.0)])
    again = after([])
    again.load_state_dict(json.loads(json.dumps(known.state_dict())))
    assert (again.best, again.num_worse) == (known.best, 1)


SCORES = [0.08, 0.05, 0.06, 0.04, 0.03]  # val/NDCG@10 of the validations after steps 7, 14, ...


@pytest.fixture
def told_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Validations that find SCORES, whatever the weights are."""

    def validation_step(self: Recommender, *_: Any) -> None:
        number = self.trainer.global_step // 7 - 1
        for name, value in {"NDCG@10": SCORES[number], "HR@10": 0.1, "trie_NLL": 9.0}.items():
            self.log(f"val/{name}", value, batch_size=1)

    monkeypatch.setattr(Recommender, "validation_step", validation_step)


# 60 rows, 8 a step: validations after steps 7, 14, 21, 28, 35. Kills around the second and third.
@pytest.mark.parametrize("killed_before", [7, 8, 13, 14, 15, 16, 22])
@pytest.mark.usefixtures("told_scores")
def test_a_run_killed_around_a_validation_exports_the_step_it_would_have(
    killed_before: int,
    cli: Callable[..., int],
    shop: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    recwarn: pytest.WarningsRecorder,
) -> None:
    class Kill(lightning.Callback):
        def on_train_batch_start(self, trainer: lightning.Trainer, *_: Any) -> None:
            if trainer.global_step == killed_before:
                raise RuntimeError("killed")  # nothing is saved on the way out

    words = [*shop, "trainer.max_epochs=5", "trainer.checkpoint_every_steps=3",
             "trainer.early_stopping_patience=3", "run_name=run"]  # fmt: skip
    fit = lightning.Trainer.fit

    def fit_and_die(self: lightning.Trainer, *args: Any, **named: Any) -> None:
        self.callbacks.append(Kill())
        fit(self, *args, **named)

    with monkeypatch.context() as patched:
        patched.setattr(lightning.Trainer, "fit", fit_and_die)
        with pytest.raises(RuntimeError, match="killed"):
            cli(*words)
    assert cli(*words) == 0
    made = json.loads((tmp_path / "outputs/run/environment.json").read_text())
    expected = {"monitor": "val/NDCG@10", "step": 7, "value": pytest.approx(0.08), "nll": 9.0}
    assert made["exported"] == expected
    assert made["resumed"] is True
    # Patience of three: stopped after the fourth validation, not the fifth. Steps count from 0.
    curve = (tmp_path / "outputs/run/curves.csv").read_text().splitlines()
    assert curve[-1].split(",")[0] == "27"
    assert "answers are those of step 7" in (tmp_path / "outputs/run/report.md").read_text()
    assert not [w for w in recwarn if "monitored key" in str(w.message)]


def test_a_monitor_that_is_no_metric_is_refused(
    cli: Callable[..., int], shop: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli(*shop, "trainer.monitor=val/loss") == 2
    assert "trainer.monitor='val/loss'" in capsys.readouterr().err
