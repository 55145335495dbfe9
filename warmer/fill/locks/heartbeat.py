"""The owner's sign of life: a thread of its own, which a busy fill cannot hold up."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

import structlog

from warmer.errors import WarmerError

if TYPE_CHECKING:
    from collections.abc import Callable

_log = structlog.get_logger(__name__)
_JOIN: Final = 1.0
"""Seconds a release waits for a beat that is under way."""


class Heartbeat:
    """Calls `beat` every so often until it is stopped, or `beat` says that the grant is lost.

    A beat that fails is tried again: no answer is no proof of a loss, and whoever cannot prove
    at the end that the grant is still its own publishes nothing.

    Args:
        what: names the lock in the log.
        beat: rewrites the record; False where the grant is lost.
        every: seconds between beats.
    """

    def __init__(self, what: str, beat: Callable[[], bool], *, every: float) -> None:
        self._what = what
        self._beat = beat
        self._every = every
        self._stop = threading.Event()
        self.lost = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"heartbeat {what}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Beat no more."""
        self._stop.set()
        if threading.current_thread() is not self._thread:
            self._thread.join(_JOIN)

    def _run(self) -> None:
        failing = False
        while not self._stop.wait(self._every):
            try:
                mine = self._beat()
            except Exception as exc:  # noqa: BLE001 - a thread that ended would beat no more
                if not failing:
                    # The text of an error that is not ours may hold a secret.
                    why = str(exc) if isinstance(exc, OSError | WarmerError) else type(exc).__name__
                    _log.warning("the lock does not answer, working on", lock=self._what, why=why)
                failing = True
                continue
            if not mine:
                if not self._stop.is_set():
                    _log.warning("the lock was lost", lock=self._what)
                self.lost.set()
                return
            if failing:
                _log.info("the lock answers again", lock=self._what)
            failing = False
