"""How soon a waiter asks a lock again: the longer it has waited, the later. Pure.

Who has waited for minutes loses little by a few seconds more, and hundreds who ask as often as at first
are a load on whoever keeps the lock. Two things bound how late the next question may be. `sight` counts
five seconds of a gap at most, so that a question later than that would put a dead owner's succession off.
And when an owner that shows no life may be succeeded, the question is due: by then, not a pause later.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from warmer.fill.locks import BEATS, LEASE
from warmer.fill.locks.sight import GAP

SHARE: Final = 1 / 8
"""Of the time waited so far, what the next pause may add to it."""
_ANSWER: Final = 0.5
"""Seconds of a gap that are left for the answer."""
LONGEST: Final = GAP - _ANSWER
"""Seconds between two questions at most, however long the wait."""
_OF_A_LEASE: Final = 1 / 6
"""Pauses at most, of a lease: two for each sign of life."""
_SPREAD: Final = 0.2
"""Of a pause, what chance takes away, so that those who came at once do not ask at once."""


def obeyed(told: float | None, *, lease: float = LEASE, chance: float) -> float:
    """Return the seconds for which a service that said when to ask again is left alone.

    No longer than from one renewal to the next: an owner that asks thrice a lease keeps it, whatever a
    service says.

    Args:
        told: what it said (``Retry-After``); None where it said nothing.
        lease: seconds that this process's own record may stand still.
        chance: from 0 to 1, drawn anew each time: those who were told the same do not ask at once.
    """
    longest = lease / BEATS
    return min(told or 0.0, longest / (1 + _SPREAD)) * (1 + _SPREAD * chance)


@dataclass(frozen=True, slots=True)
class Pace:
    """How often a lock may be asked.

    Attributes:
        least: seconds between two questions of a wait that has just begun, give or take a half.
        lease: seconds that this process's own record may stand still.
    """

    least: float
    lease: float = LEASE

    def pause(
        self, waited: float, *, chance: float, silent: float = 0.0, lease: float = 0.0
    ) -> float:
        """Return the seconds until the next question.

        Args:
            waited: seconds since the wait began.
            chance: from 0 to 1, drawn anew each time.
            silent: seconds for which the owner's record has been seen unchanged.
            lease: seconds after which that owner may be succeeded; 0 where it does not say.
        """
        shortest, middle = 0.5 * self.least, 1.5 * self.least
        theirs = lease or self.lease
        longest = max(middle, min(LONGEST, _OF_A_LEASE * min(self.lease, theirs)))
        latest = min(max(middle, SHARE * waited), longest)
        soonest = max(shortest, (1 - _SPREAD) * min(SHARE * waited, longest))
        pause = soonest + chance * (latest - soonest)
        due = theirs - silent
        return min(pause, max(due, shortest)) if due > 0 else min(pause, middle)
