"""Locks: who may fill a key. One protocol, one mechanism per file, chosen by URL.

A lock is there so that many pods do not do the same work; it is *not* what keeps the volume
right. No lock on a shared filesystem fences its zombie's other writes, so correctness comes
from `warmer.fill.publish`: unique staging, and a rename that never replaces.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from warmer.model import Key


@dataclass(frozen=True, slots=True)
class Owner:
    """Who holds a lock, as far as its record says; for waiters to show, never to decide by."""

    name: str
    epoch: int


class Grant(Protocol):
    """The right to fill one key, until released or lost."""

    epoch: int
    """Grows with every grant of the key."""

    def still_mine(self) -> bool:
        """Ask, with a round trip, whether the grant still holds. Called last before publishing."""

    def release(self) -> None:
        """Give it back; safe to call twice, and after it was lost."""


class Lock(Protocol):
    """A place to ask for grants."""

    def try_acquire(self, key: Key) -> Grant | None:
        """Take the key's lock without blocking; None while another owner has it.

        Raises:
            VolumeError: the mechanism does not work here.
        """

    def owner(self, key: Key) -> Owner | None:
        """Who holds it now; None when nobody does."""
