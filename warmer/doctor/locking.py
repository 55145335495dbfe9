"""Locks: the product's own, taken by two processes on the volume, or twice from its service."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Final

from warmer.doctor import place
from warmer.doctor.child import Child
from warmer.doctor.findings import ONE_CLIENT, Finding, instead_of_file_locks, of_error
from warmer.errors import LockError, VolumeError
from warmer.fill.locks import file
from warmer.fill.locks.record import Owner
from warmer.fill.locks.registry import open_lock
from warmer.model import Key

if TYPE_CHECKING:
    from warmer.fill.locks import Grant, Lock
    from warmer.layout import Volume
    from warmer.observe.mount import Mount
    from warmer.urls import LockUrl

KEY: Final = Key("weights", {"doctor": "of all volumes"})
"""The one key doctors lock at a lock's service, where a key's record is never deleted."""

_FREED: Final = 10.0
_POLL: Final = 0.02
_SLACK: Final = 15.0
_LONGEST: Final = 90.0
"""Seconds beyond a lease, and in all, for which a doctor waits for the key of a killed one."""


def file_locks(name: str, path: str, mount: Mount, url: LockUrl) -> Finding:
    """Take one file's lock in two processes; kill -9 the one that has it.

    Raises:
        VolumeError: the volume failed, other than by having no locks.
    """
    try:
        return _file_locks(name, os.path.join(path, "lock"), mount, url)
    except VolumeError as exc:
        if exc.reason != "no-locks":
            raise
        if url.mechanism == "file" and mount.locks in ("shared", "unknown"):
            return of_error(name, exc)  # warmer would trust the mount, and fail so too
        return Finding(name, "warn", exc.message, instead_of_file_locks(url))


def _file_locks(name: str, path: str, mount: Mount, url: LockUrl) -> Finding:
    me = Owner(name="the doctor")
    mine = file.acquire(path, me=me, place=place.VOLUME)
    if isinstance(mine, Owner):
        return Finding(name, "warn", "a lock nobody holds is refused", instead_of_file_locks(url))
    with Child("try", path) as child:
        if child.hear()["got"]:
            mine.release()
            found = "two processes of this node hold one lock at once"
            return Finding(name, "warn", found, instead_of_file_locks(url))
    kept = mine.still_mine()
    mine.release()
    if not kept:
        found = "a lock is lost while it is held"
        instead = instead_of_file_locks(url)
        hint = f"{ONE_CLIENT}; {instead}" if mount.type == "nfs4" else instead
        return Finding(name, "warn", found, hint)
    with Child("hold", path) as child:
        if not child.hear()["got"]:
            found = "a released lock is not free"
            return Finding(name, "warn", found, instead_of_file_locks(url))
        child.kill()
        began = time.monotonic()
        while isinstance(again := file.acquire(path, me=me, place=place.VOLUME), Owner):
            if time.monotonic() - began > _FREED:
                found = f"not free {_FREED:.0f} s after kill -9 of its holder"
                hint = "warmer waits for a lease after a crash; " + instead_of_file_locks(url)
                return Finding(name, "warn", found, hint)
            time.sleep(_POLL)
        again.release()
    found = "exclude between two processes; free "
    return Finding(
        name, "ok", f"{found}{time.monotonic() - began:.2f} s after kill -9 of the holder"
    )


def service(url: LockUrl, volume: Volume) -> Finding:
    """Take, be refused, release and take again at the service that keeps the locks."""
    name = f"--lock {url.mechanism}"
    try:
        return _service(name, open_lock(url, volume=volume, me="a doctor"), url)
    except VolumeError as exc:  # of the mount, which has a finding of its own
        return Finding(name, "skip", exc.message, exc.hint)
    except LockError as exc:
        return of_error(name, exc, part="lock")


def _service(name: str, lock: Lock, url: LockUrl) -> Finding:
    where = f"{url.mechanism}://{url.place}/{url.prefix}"
    first = patiently(lock, url)
    if isinstance(first, Owner):
        return _held(name, first, url)
    try:
        refused = lock.try_acquire(KEY)
    finally:
        first.release()
    if not isinstance(refused, Owner):
        refused.release()
        hint = "it does not exclude: use another --lock"
        return Finding(name, "fail", f"{where} granted one key twice", hint, "lock")
    second = patiently(lock, url)
    if isinstance(second, Owner):
        return _held(name, second, url)
    second.release()
    if second.epoch <= first.epoch:
        found = f"{where} granted epoch {second.epoch} after {first.epoch}"
        hint = "somebody deletes or restores its records: leave them alone"
        return Finding(name, "fail", found, hint, "lock")
    return Finding(name, "ok", f"{where} grants, refuses, and grants again (epoch {second.epoch})")


def patiently(lock: Lock, url: LockUrl) -> Grant | Owner:
    """Take the doctors' key, which another doctor may have for a moment, or have died with.

    Raises:
        LockError: the service failed or refused.
        VolumeError: the volume failed.
    """
    deadline = time.monotonic() + _patience(url)
    while True:
        found = lock.try_acquire(KEY)
        if not isinstance(found, Owner) or time.monotonic() > deadline:
            return found
        time.sleep(lock.pace.least / 4)


def _patience(url: LockUrl) -> float:
    return min(url.lease + _SLACK, _LONGEST)


def _held(name: str, owner: Owner, url: LockUrl) -> Finding:
    who = owner.name or "somebody"
    found = f"{who} has the doctors' key, and did not give it back in {_patience(url):.0f} s"
    hint = (
        "run again when no other doctor runs; a killed one's key is free after its lease, here "
        f"{owner.lease or url.lease:.0f} s"
    )
    return Finding(name, "fail", found, hint, "lock")
