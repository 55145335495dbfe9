"""One turn of a wait: a look at the volume or a question to the lock, which may hang."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from warmer.fill.locks import Grant
    from warmer.fill.locks.record import Owner

TURN: Final = 0.5
"""Seconds between two times that who waits for an answer sees to anything else."""


class Settled:
    """The end of a wait: a grant, or None where the piece is there."""

    def __init__(self, grant: Grant | None) -> None:
        self.grant = grant


class Turn:
    """One look or question on a thread of its own.

    A lock call can hang in the kernel for a minute while an NFS server restarts. Whoever waits
    goes on saying so, is bounded by ``--wait``, and can be stopped. A grant that comes after
    nobody waits for it is given back.

    Args:
        ask: looks or asks.
        late: called where the answer came after nobody waited for it.
    """

    def __init__(self, ask: Callable[[], Owner | Settled], *, late: Callable[[], None]) -> None:
        self._ask = ask
        self._late = late
        self._mutex = threading.Lock()
        self._ready = threading.Event()
        self._left = False
        self._found: Owner | Settled | None = None
        self._failure: BaseException | None = None
        threading.Thread(target=self._run, name="claim", daemon=True).start()

    def result(self, *, until: float, say: Callable[[], None]) -> Owner | Settled | None:
        """Wait for the answer; None where it did not come in time."""
        try:
            while not self._ready.wait(TURN):
                say()
                if time.monotonic() > until:
                    return None
            if self._failure is not None:
                raise self._failure
            found, self._found = self._found, None
            return found
        finally:
            self._leave()

    def _run(self) -> None:
        try:
            self._found = self._ask()
        except BaseException as exc:  # noqa: BLE001 - it is raised where it is waited for
            self._failure = exc
        with self._mutex:
            self._ready.set()
            if not self._left:
                return
        self._give_back()
        self._late()

    def _leave(self) -> None:
        with self._mutex:
            self._left = True
            if self._ready.is_set():
                self._give_back()

    def _give_back(self) -> None:
        if isinstance(self._found, Settled) and self._found.grant is not None:
            self._found.grant.release()
        self._found = None
