"""URL → lock; only the mechanism that is asked for is imported."""

from __future__ import annotations

from typing import TYPE_CHECKING

from warmer.errors import UsageError

if TYPE_CHECKING:
    from warmer.fill.locks import Lock
    from warmer.layout import Volume


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
    raise UsageError(f"got --lock {url!r}, expected file", reason="bad-lock", hint="--lock file")
