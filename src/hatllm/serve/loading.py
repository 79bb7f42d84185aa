"""From a run's folder to what a server holds of it."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from omegaconf import OmegaConf

from hatllm.compose import checked, with_finished_run
from hatllm.config import Config
from hatllm.recommend.answerer import LlmAnswerer
from hatllm.recommend.recommender import MASKS_KEPT, Recommender, Request
from hatllm.runs.folder import load_config
from hatllm.serve.served_run import ExplainUnder, ServedRun, titles_of
from hatllm.serve.why import Explainer, is_explained

HISTORIES_TO_COME = 100_000  # of a server; decides whether states of the catalogue pay


def config_to_serve(folder: Path, config: Config, words: Sequence[str]) -> Config:
    """A finished run's settings with those of the command line on top.

    Args:
        folder: The run's.
        config: The command line's.
        words: Its words, such as ``decode.beam_width=20``.

    Raises:
        ValueError: If the folder holds no finished run, or a word would make it another one.
    """
    keys = ("task.run_folder", "task.run_folders")
    kept = [word for word in words if not word.startswith(keys)]
    merged = with_finished_run(OmegaConf.structured(config), kept, load_config(folder))
    merged.task.run_folder, merged.task.run_folders = str(folder), []
    return checked(merged)


def load_run(folder: Path, config: Config, words: Sequence[str]) -> ServedRun:
    """A run that is ready to answer: weights loaded, what all batches share made.

    Args:
        folder: The run's.
        config: The command line's.
        words: Its words.

    Raises:
        ValueError: If it cannot be loaded, or a setting does not fit.
    """
    config = config_to_serve(folder, config, words)
    recommender = Recommender(config)
    explain: ExplainUnder | None = None
    if isinstance(recommender.answerer, LlmAnswerer):
        recommender.answerer.num_histories = HISTORIES_TO_COME
        if is_explained(config):
            explain = _explainers(recommender)
    run = ServedRun(folder.name, config, recommender, explain)
    # The first request would wait for the catalogue's states and whatever else is made once.
    run.recommend([Request([recommender.catalogue["title"][0]], k=1)])
    return run


def _explainers(recommender: Recommender) -> ExplainUnder:
    """What explains under each mask; those of the last few masks stay."""
    title = titles_of(recommender)

    @lru_cache(MASKS_KEPT + 1)
    def under(mask: str | None) -> Explainer:
        answerer = recommender.answerer_under(mask)
        assert isinstance(answerer, LlmAnswerer)
        return Explainer(answerer, title)

    under(None)
    return under
