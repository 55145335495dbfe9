"""How long a record has been seen unchanged, by this process's own clock.

Only time between two looks counts, and of each gap at most a few seconds: a waiter that was
stopped, or whose storage hung, has not *seen* the record stand still meanwhile. Its owner may
have hung with it. Clocks of other machines, and times written in records, are never compared.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

GAP: Final = 5.0
"""Seconds that one gap between two looks counts at most."""


@dataclass(slots=True)
class _Seen:
    version: Hashable
    at: float
    unchanged: float


class Sight:
    """What one waiter has seen of each record.

    Args:
        clock: seconds that never run backwards.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: dict[str, _Seen] = {}

    def unchanged(self, name: str, version: Hashable) -> float:
        """Take note of a look at a record; return the seconds it has been seen as it is.

        Args:
            name: which record.
            version: anything that differs once the record does.
        """
        now = self._clock()
        seen = self._seen.get(name)
        if seen is None or seen.version != version:
            self._seen[name] = _Seen(version, now, 0.0)
            return 0.0
        seen.unchanged += min(max(now - seen.at, 0.0), GAP)
        seen.at = now
        return seen.unchanged
