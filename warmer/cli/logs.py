"""Logs go to stderr: JSON when nobody watches, aligned text on a terminal; secrets to neither."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, TextIO, cast

from warmer import secrecy

if TYPE_CHECKING:
    from collections.abc import MutableMapping


def redact(text: str) -> str:
    """Take the secrets of this process out of a text."""
    return secrecy.redact(text, os.environ)


class _Stderr:
    """Whatever stands for stderr when something is logged: bars put themselves in its place."""

    def write(self, text: str) -> int:
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()


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
            *([_escaped] if terminal else []),  # JSON escapes by itself
            renderer,
        ],
        logger_factory=structlog.WriteLoggerFactory(file=cast("TextIO", _Stderr())),
        cache_logger_on_first_use=True,
    )


def _escaped(
    _logger: Any, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    for name, value in event.items():
        if isinstance(value, str):
            event[name] = "\n".join(map(secrecy.printable, value.split("\n")))
    return event


def _redacted(
    _logger: Any, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    for name, value in event.items():
        if isinstance(value, str):
            event[name] = redact(value)
    return event
