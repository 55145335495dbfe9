"""Logs go to stderr: JSON when nobody watches, aligned text on a terminal; secrets to neither."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, Final

from warmer.freedoms import secret

if TYPE_CHECKING:
    from collections.abc import MutableMapping

_SHORTEST: Final = 6
"""Characters a value must have to be taken for a secret: shorter ones would hit words."""


def redact(text: str) -> str:
    """Replace the values of secret variables of this process wherever they stand in a text."""
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST and secret(name) and value in text:
            text = text.replace(value, f"<{name}>")
    return text


def configure() -> None:
    """Set structlog up for this process."""
    import structlog  # noqa: PLC0415 - 0.1 s, not paid by help or serve

    terminal = sys.stderr.isatty()
    renderer: Any = (
        structlog.dev.ConsoleRenderer() if terminal else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=not terminal),
            _redacted,
            renderer,
        ],
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )


def _redacted(
    _logger: Any, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    for name, value in event.items():
        if isinstance(value, str):
            event[name] = redact(value)
    return event
