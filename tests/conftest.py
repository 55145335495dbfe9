"""What every test leaves as it found it, lest another depends on the order they run in."""

import os
import signal

import pytest
import structlog

SIGNALS = (signal.SIGINT, signal.SIGTERM)

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts what it leaves in the background so, and every child would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)

_configure = structlog.configure


def _configured(**words):
    """As asked, but for loggers that would keep what they were first used with."""
    _configure(**{**words, "cache_logger_on_first_use": False})


structlog.configure = _configured


@pytest.fixture(autouse=True)
def _as_it_was():
    """Handlers of signals (children inherit those that are ignored) and structlog's configuration."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    structlog.reset_defaults()
    for number, handler in before.items():
        if signal.getsignal(number) is not handler:
            signal.signal(number, handler)


@pytest.fixture
def use(monkeypatch):
    """Have these variables of AWS in the environment, and no others."""

    def use(environment):
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            monkeypatch.delenv(name)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)

    return use
