"""The verb as it is called."""

import os
import sys

import pytest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))

from warmer.cli.advise import command


@pytest.fixture(autouse=True)
def _logs_stay_as_they_are(monkeypatch):
    """structlog is set up once for a process, and this one has other tests to run."""
    monkeypatch.setattr("warmer.cli.logs.configure", lambda: None)


@pytest.fixture
def advise(capsys):
    """Run the verb in this process; returns what it printed."""

    def run(*words):
        assert command.main([*map(str, words)], standalone_mode=False) == 0
        return capsys.readouterr().out

    return run
