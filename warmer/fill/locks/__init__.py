"""Locks: who may fill a key. One protocol, one mechanism per file, chosen by URL.

A lock is there so that many pods do not do the same work; it is *not* what keeps the volume
right. No lock on a shared filesystem fences its zombie's other writes, so correctness comes
from `warmer.fill.publish`: unique staging, and a rename that never replaces.

Every mechanism keeps an owner's record, which the owner rewrites three times a lease. Who waits
takes over from an owner whose record it has itself seen unchanged for a whole lease, measured by
its own clock (`sight`): no clock of another machine is ever compared.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from warmer.errors import BusyError, LockError
from warmer.urls import DEFAULT_LEASE

if TYPE_CHECKING:
    from warmer.fill.locks.pace import Pace
    from warmer.fill.locks.record import Owner
    from warmer.model import Key

LEASE: Final = DEFAULT_LEASE
BEATS: Final = 3
"""Times an owner rewrites its record within a lease."""

ANSWER: Final = 10.0
"""Seconds in which a lock's service answers, or does not: a third of a lease."""


class LostGrantError(BusyError):
    """The lock was lost; nothing is published under it."""


class UnansweredError(LockError):
    """The lock's service gave no answer: what was written may be there or not; ask again.

    Attributes:
        retry_after: seconds the service told to wait, whatever it said; None where it did not. How
            much of it is obeyed says `pace.obeyed`.
    """

    def __init__(
        self, message: str, *, reason: str, hint: str = "", retry_after: float | None = None
    ) -> None:
        super().__init__(message, reason=reason, hint=hint)
        self.retry_after = retry_after


class Grant(Protocol):
    """The right to fill one key, until released or lost."""

    epoch: int
    """Grows with every grant of the key, as long as the record of the one before is kept."""

    exclusive: bool
    """Whether the mechanism keeps others from being granted the key meanwhile."""

    took_over: bool
    """Whether the owner before never gave it back: it died, or showed no life."""

    def still_mine(self) -> bool:
        """Ask, with a round trip, whether the grant still holds. Called last before publishing."""

    def note(self, phase: str, done: int = 0, total: int = 0) -> None:
        """Say what is being done, for waiters to read in the record's next rewriting.

        Args:
            phase: a word or two.
            done: bytes done in it.
            total: bytes in all; 0 where bytes say nothing.

        Raises:
            LostGrantError: a rewriting found the lock lost; the work is in vain.
        """

    def release(self) -> None:
        """Give it back; safe to call twice, and after it was lost."""


class Lock(Protocol):
    """A place to ask for grants."""

    pace: Pace
    """How soon who waits asks again about one key."""

    def try_acquire(self, key: Key) -> Grant | Owner:
        """Take the key's lock without blocking, or learn who has it.

        Raises:
            VolumeError: the mechanism does not work on this volume.
            LockError: the lock's service failed or refused.
        """

    def leave(self, key: Key, /) -> None:
        """Wait for the key no more: what others could see of the waiting is removed."""


def lost(key: str) -> LostGrantError:
    """Make the error of a grant that is gone."""
    return LostGrantError(
        f"got the lock on {key} taken over by another owner, expected to hold it",
        reason="lost-lock",
        hint="nothing was published; run again: the other owner may have filled it",
    )
