"""Lock, then look again: claim the right to fill a key, or find that it was filled meanwhile."""

from __future__ import annotations

import random
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import structlog

from warmer.errors import BusyError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from warmer.fill.locks import Grant, Lock
    from warmer.model import Key

_log = structlog.get_logger(__name__)
_SAY_EVERY: Final = 10.0


@contextmanager
def claim(
    lock: Lock, key: Key, *, wait: float, filled: Callable[[], bool]
) -> Iterator[Grant | None]:
    """Hold the key's lock for the block, or yield None where the piece is there already.

    Args:
        lock: where to ask.
        key: what for.
        wait: seconds to wait for another owner.
        filled: looks at the volume; asked before the lock, under it, and between polls.

    Raises:
        BusyError: another owner is still filling after `wait` seconds.
        VolumeError: the lock does not work here.
    """
    grant = _wait(lock, key, wait=wait, filled=filled)
    try:
        yield grant
    finally:
        if grant is not None:
            grant.release()


def _wait(lock: Lock, key: Key, *, wait: float, filled: Callable[[], bool]) -> Grant | None:
    started = time.monotonic()
    said = started
    while True:
        if filled():
            return None
        grant = lock.try_acquire(key)
        if grant is not None:
            if not filled():
                return grant
            grant.release()
            return None
        owner = lock.owner(key)
        name = (owner.name if owner else "") or "an unnamed owner"
        now = time.monotonic()
        if now - started >= wait:
            raise BusyError(
                f"waited {now - started:.0f} s for {name} to fill {key.kind} {key.short}, "
                f"expected it within --wait {wait:.0f}",
                reason="busy",
                hint="raise --wait, or look at what the owner is doing",
            )
        if now - said >= _SAY_EVERY or said == started:
            _log.info(
                "waiting", kind=key.kind, key=key.short, owner=name, for_s=round(now - started)
            )
            said = now
        time.sleep(min(random.uniform(0.25, 1.0), max(0.05, wait - (now - started))))  # noqa: S311 - jitter
