"""What tests of several rooms share: `shared_fixtures.py`, for every process that runs tests."""

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """With `-n` the first process only hands out tests, and need not wait for torch's import."""
    hands_out = config.getoption("dist", "no") != "no" and not hasattr(config, "workerinput")
    if not hands_out:
        config.pluginmanager.import_plugin("shared_fixtures")
