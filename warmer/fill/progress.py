"""Say what a long stage is doing: one line every ten seconds."""

from __future__ import annotations

import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Protocol

import structlog

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from contextlib import AbstractContextManager

_log = structlog.get_logger(__name__)
EVERY: Final = 10.0
"""Seconds between lines."""


class Meter(Protocol):
    """Shows what a transfer does."""

    def running(self, coming: Mapping[str, int], /) -> AbstractContextManager[None]:
        """Show it during the block: of each file so many bytes are to come."""

    def moved(self, path: str, count: int, /) -> None:
        """Take note of bytes of a file that arrived; called from several threads."""


class Lines:
    """A transfer as one structured line every ten seconds: bytes, rate, time left."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._mutex = threading.Lock()
        self._done = 0

    @contextmanager
    def running(self, coming: Mapping[str, int], /) -> Iterator[None]:
        """Say it during the block, also while nothing arrives; see `Meter.running`."""
        over = threading.Event()
        need = sum(coming.values())
        thread = threading.Thread(target=self._say, args=(need, over), name="progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def moved(self, _path: str, count: int, /) -> None:
        """Take note of bytes that arrived; see `Meter.moved`."""
        with self._mutex:
            self._done += count

    def _say(self, need: int, over: threading.Event) -> None:
        """Tell the rate of the time since the last line, which is what the wire does now."""
        at, before = time.monotonic(), 0
        while not over.wait(EVERY):
            now, done = time.monotonic(), self._done
            rate = (done - before) / (now - at)
            _log.info(
                "downloading",
                kind=self._kind,
                bytes=done,
                of=need,
                bytes_per_s=round(rate),
                eta_s=round(max(0, need - done) / rate) if rate else None,
            )
            at, before = now, done


def meter(kind: str) -> Meter:
    """Bars where stderr is a terminal that can show them, else lines."""
    if not sys.stderr.isatty():
        return Lines(kind)
    from warmer.fill.bars import Bars, console  # noqa: PLC0415 - 0.1 s, for people alone

    return Lines(kind) if (terminal := console()).is_dumb_terminal else Bars(terminal)


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
