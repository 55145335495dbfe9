"""Locks that two pods take in turns: each holds while the other tries.

As in `warmer.doctor.together`, a step only collects facts.
"""

from __future__ import annotations

import os
import socket
import time
from typing import TYPE_CHECKING, Final

from warmer.doctor import locking, place
from warmer.errors import LockError, VolumeError
from warmer.fill.locks import file
from warmer.fill.locks.record import Owner
from warmer.fill.locks.registry import open_lock

if TYPE_CHECKING:
    from warmer.doctor.pair import Pair
    from warmer.fill.locks import Grant
    from warmer.layout import Volume
    from warmer.urls import LockUrl

_FREED: Final = 60.0
"""Seconds within which a lock given back is free for the other."""

_POLL: Final = 0.05


def file_locks(pair: Pair) -> None:
    """Take one lock in turns: each holds while the other tries, and gives it to the other.

    Raises:
        BusyError: the other left.
        OSError: the volume failed.
    """
    path = os.path.join(pair.first, "lock")
    place.reopen(pair.first)
    for holder, other in (("a", "b"), ("b", "a")):
        if pair.role == holder:
            grant, word = _take(path)
            pair.tell(**{f"file_{holder}_holds": word})
            pair.learn()
            _release(grant)
            pair.learn()
            continue
        held = pair.learn()[f"file_{holder}_holds"] == "got"
        grant, word = _take(path)
        _release(grant)
        pair.tell(**{f"file_{other}_tries": word})
        seconds = _until_free(path) if held and word == "refused" else None
        pair.tell(**{f"file_{other}_seconds": seconds})


def service(pair: Pair, url: LockUrl, volume: Volume) -> None:
    """Have ``a`` hold the doctors' key at the lock's service while ``b`` tries, then the other way.

    Raises:
        BusyError: the other left.
        OSError: the volume failed.
    """
    for holder, other in (("a", "b"), ("b", "a")):
        if pair.role == holder:
            grant, word = _ask(url, volume, patient=True)
            try:
                pair.tell(**{f"service_{holder}_holds": word})
                pair.learn()
            finally:
                _release(grant)
            continue
        pair.learn()
        grant, word = _ask(url, volume, patient=False)
        _release(grant)
        pair.tell(**{f"service_{other}_tries": word})


def _take(path: str) -> tuple[Grant | None, str]:
    try:
        found = file.acquire(path, me=Owner(name="a doctor"), place=place.VOLUME)
    except VolumeError as exc:
        return None, exc.message
    return (None, "refused") if isinstance(found, Owner) else (found, "got")


def _ask(url: LockUrl, volume: Volume, *, patient: bool) -> tuple[Grant | None, str]:
    try:
        lock = open_lock(url, volume=volume, me=f"a doctor on {socket.gethostname()}")
        found = locking.patiently(lock, url) if patient else lock.try_acquire(locking.KEY)
    except (LockError, VolumeError) as exc:
        return None, exc.message
    return (None, "refused") if isinstance(found, Owner) else (found, "got")


def _release(grant: Grant | None) -> None:
    if grant is not None:
        grant.release()


def _until_free(path: str) -> float | None:
    """Try for a lock until it is there; return the seconds that took, None after a minute."""
    began = time.monotonic()
    while (seconds := time.monotonic() - began) < _FREED:
        grant, word = _take(path)
        _release(grant)
        if word == "got":
            return seconds
        time.sleep(_POLL)
    return None
