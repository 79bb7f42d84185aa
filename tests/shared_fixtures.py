"""What tests of several rooms share: the composed settings, the mask presets, a small model."""

import gc
import shutil
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from cli import call_cli, run_here, smoke_words
from composing import compose_once
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from matplotlib.figure import Figure
from thin import thin_out
from toys import CONF, PRESETS, Compose

from hatllm.compose import checked, register_schema
from hatllm.config import Config
from hatllm.data.report_picture import draw_data_report
from hatllm.figures.saving import save_figure

# One thread each: the models are so small that more would only wait for each other, and sums are
# then added up in one order on every machine.
torch.set_num_threads(1)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Before `-m` looks at the marks."""
    thin_out(items)


def pytest_configure() -> None:
    """Imports leave nothing behind that the collector could find."""
    gc.disable()


def pytest_collection_finish() -> None:
    """What the imports made stays; the collector need not look through it again and again.

    Nor through every few hundred nodes of settings: looking took a quarter of composing.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def groups_composed_once() -> Iterator[None]:
    """In this process Hydra composes each choice of groups once."""
    with pytest.MonkeyPatch.context() as patch:
        compose_once(patch)
        yield


@pytest.fixture(scope="session", autouse=True)
def settings_read_by_libyaml() -> Iterator[None]:
    """OmegaConf builds on PyYAML's slow loader; libyaml's reads the same language."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(yaml, "SafeLoader", getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        yield


@pytest.fixture(scope="session", autouse=True)
def files_not_flushed_to_the_disk() -> Iterator[None]:
    """A test's folder need not outlive a power cut."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda descriptor: None)
        yield


DRAWN_BY = {
    "hatllm.data.report.draw_data_report": draw_data_report,
    "hatllm.tables.run_report.save_figure": save_figure,
    "hatllm.tables.writers.save_figure": save_figure,
}


@pytest.fixture(scope="session", autouse=True)
def pictures_of_runs_left_blank() -> Iterator[None]:
    """Curves, bars and histograms take as long to draw as what they show takes to make.

    Tests that look at them ask for `figures`, or for `drawn`.
    """

    def blank(_: object, path: Path) -> Path:
        path.write_bytes(b"")
        return path

    with pytest.MonkeyPatch.context() as patch:
        for name in DRAWN_BY:
            patch.setattr(name, blank)
        yield


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are drawn as for a user."""
    for name, draw in DRAWN_BY.items():
        monkeypatch.setattr(name, draw)


@pytest.fixture(scope="session")
def compose_config() -> Compose:
    """A function from command-line words to a checked config of the smoke scale."""
    register_schema()

    @cache
    def composed(*overrides: str) -> Config:
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return checked(compose("config", overrides=["scale=smoke", *overrides]))

    return lambda *overrides: deepcopy(composed(*overrides))


@pytest.fixture(scope="session", params=PRESETS)
def preset(request: pytest.FixtureRequest) -> list[str]:
    """The words that choose each preset of conf/mask/ in turn, for a model of 4 layers."""
    return words_of_preset(request.param)


def words_of_preset(name: str) -> list[str]:
    return [f"mask={name}", *(["mask.layers=ICFI"] if name == "custom" else [])]


@pytest.fixture
def figures(drawn: None, monkeypatch: pytest.MonkeyPatch) -> dict[str, Figure]:
    """The figures that the test saves, by the names of their files; filled while it goes on."""
    found: dict[str, Figure] = {}
    save = Figure.savefig

    def keep(self: Figure, path: Path, **settings: Any) -> None:
        save(self, path, **settings)
        found[path.name.removeprefix(".").rsplit(".", 2)[0]] = self  # of `.NAME.XXXX.part`

    monkeypatch.setattr(Figure, "savefig", keep)
    return found


@pytest.fixture(autouse=True)
def seed() -> Iterator[None]:
    """Every test draws the same numbers, whichever ran before it."""
    torch.manual_seed(0)
    yield


# All three patterns, in both orders, with items and with segments.
UNLIKE = ("causal", "custom", "hatllm", "hatllm_segments", "reversed")


@pytest.fixture(
    scope="session",
    params=[p if p in UNLIKE else pytest.param(p, marks=pytest.mark.slow) for p in PRESETS],
)
def unlike_preset(request: pytest.FixtureRequest) -> list[str]:
    """As `preset`, for what is built on masks that other tests look at one by one."""
    return words_of_preset(request.param)


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    """`python run.py ...` in an empty folder of the test's own."""
    return lambda *words: call_cli(monkeypatch, tmp_path, *words)


@pytest.fixture
def cells_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells of sweeps and experiments run in this process, where theirs is not what is tested."""
    monkeypatch.setattr("hatllm.many.cell_runner.run_child", run_here)


@pytest.fixture
def shop(tmp_path: Path) -> list[str]:
    """Overrides of a run of seconds on the small shop."""
    return smoke_words(tmp_path)


@pytest.fixture(scope="session")
def finished_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of seconds, made once a process; tests leave it as it is."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        words = [*smoke_words(folder), "run_name=done", "trainer.learning_rate=0.01"]
        assert call_cli(patch, folder, *words) == 0
    return folder / "outputs" / "done"


@pytest.fixture
def finished(finished_once: Path, tmp_path: Path) -> Path:
    """A copy of the finished run that a test may write into."""
    return shutil.copytree(finished_once, tmp_path / "outputs" / "done")
