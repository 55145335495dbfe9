"""Locks: who may fill a key. One protocol, one mechanism per file, chosen by URL.

A lock is there so that many pods do not do the same work; it is *not* what keeps the volume
right. No lock on a shared filesystem fences its zombie's other writes, so correctness comes
from `warmer.fill.publish`: unique staging, and a rename that never replaces.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from warmer.errors import UsageError

if TYPE_CHECKING:
    from warmer.layout import Volume
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


def open_lock(url: str, *, volume: Volume, me: str) -> Lock:
    """Choose a mechanism by URL.

    Args:
        url: ``file``, the kernel's lock on the volume.
        volume: the volume it is about.
        me: how this process is named to waiters.

    Raises:
        UsageError: an unknown mechanism.
    """
    if url == "file":
        from warmer.fill.locks.file import FileLock  # noqa: PLC0415 - pay for one mechanism

        return FileLock(volume, me=me)
    raise UsageError(f"got --lock {url!r}, expected file", reason="bad-lock")
