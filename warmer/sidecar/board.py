"""What the sidecar's threads know of each other: the loop writes, those that answer read."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from warmer.model import Kind

TURN: Final = 120.0
"""Seconds that one turn of the loop may take: it asks the server and looks at local trees."""

HARVEST: Final = 1800.0
"""Seconds for a harvest between two signs of life: gigabytes to a slow volume."""


class Board:
    """What the loop is at, and what came of it.

    Attributes:
        results: how often a harvest of a kind ended how.
        bytes: kind → bytes published.
        waited: seconds spent waiting for locks.
        takeovers: owners succeeded that had not given a lock back.
        ready_s: seconds from the server's start to its first good answer, where that was seen.
    """

    def __init__(self) -> None:
        self.results: Counter[tuple[Kind, str]] = Counter()
        self.bytes: Counter[Kind] = Counter()
        self.waited = 0.0
        self.takeovers = 0
        self.ready_s: float | None = None
        self._doing = ("starting", time.monotonic(), TURN)

    def alive(self, doing: str, *, within: float = TURN) -> None:
        """Give a sign of life; the next comes within so many seconds, or something hangs."""
        self._doing = (doing, time.monotonic(), within)

    def stuck(self) -> str:
        """Say what the loop has been at for too long; empty while it is well."""
        doing, since, within = self._doing
        spent = time.monotonic() - since
        return f"{doing} for {spent:.0f} s, expected {within:.0f} at most" if spent > within else ""
