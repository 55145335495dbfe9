"""Say what a long stage is doing: one line every ten seconds."""

from __future__ import annotations

import threading
import time
from typing import Final

import structlog

_log = structlog.get_logger(__name__)
EVERY: Final = 10.0
"""Seconds between lines."""


class Transfer:
    """Progress of a transfer in bytes; may be told from several threads."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._started = time.monotonic()
        self._said = self._started
        self._lock = threading.Lock()

    def __call__(self, done: int, total: int) -> None:
        """Take note of `done` of `total` bytes."""
        now = time.monotonic()
        with self._lock:
            if now - self._said < EVERY:
                return
            self._said = now
        rate = done / max(now - self._started, 1e-3)
        _log.info(
            "downloading",
            kind=self._kind,
            bytes=done,
            of=total,
            bytes_per_s=round(rate),
            eta_s=round((total - done) / rate) if rate else None,
        )


class Engine:
    """Progress of an engine run: its latest line."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._said = self._started

    def __call__(self, line: str) -> None:
        """Take note of the engine's latest line."""
        now = time.monotonic()
        if now - self._said < EVERY:
            return
        self._said = now
        _log.info("the engine builds kernels", for_s=round(now - self._started), engine=line[:160])
