"""The doctor's private directory on the volume: made, removed, and left by those that were killed.

All that a doctor writes lies in it, except a partner's file in a `--join`. It goes however the
doctor ends, a failing volume and a kill -9 of all its processes apart; then a later doctor removes
it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from warmer.errors import using

if TYPE_CHECKING:
    from collections.abc import Iterator

    from warmer.layout import Volume

VOLUME: Final = "the volume"
_TOP_IS_OURS: Final = "top-is-ours"
"""What a doctor that made the top directory leaves to those that outlast it."""

_OLD: Final = 3600.0
"""Seconds without a change after which a doctor is dead, by its volume's clock."""

_PATIENCE: Final = 2.0
"""Seconds for which a directory that does not go is removed again."""


@contextmanager
def private(volume: Volume) -> Iterator[str]:
    """Make a private directory for the block, and remove it afterwards; yields its path.

    The top directory goes too, where a doctor made it and nothing else lies there: a root user's
    doctor would otherwise leave what nobody else may write in.

    Raises:
        VolumeError: it cannot be made.
    """
    path = os.path.join(volume.doctor, secrets.token_hex(8))
    fresh = not os.path.lexists(volume.top)
    try:
        with using(VOLUME):
            _make(path)
        yield path
    finally:
        fresh = _remove(path) or fresh
        with contextlib.suppress(OSError):
            for other in listing(volume.doctor) if fresh else ():
                with contextlib.suppress(OSError):
                    os.mkdir(os.path.join(volume.doctor, other, _TOP_IS_OURS))
        for above in (volume.doctor, volume.top) if fresh else (volume.doctor,):
            with contextlib.suppress(OSError):
                os.rmdir(above)


def others(volume: Volume) -> set[str]:
    """Name the private directories of all doctors: running ones, and what killed ones left.

    Raises:
        VolumeError: they cannot be listed.
    """
    with using(VOLUME):
        try:
            return set(listing(volume.doctor))
        except FileNotFoundError:
            return set()


def remove_old(volume: Volume, names: set[str], *, newer: str) -> int:
    """Remove directories that show no life since long before `newer` was made; count them.

    A doctor that waits or talks changes its directory all the time; one alone ends within minutes.

    Raises:
        VolumeError: the volume failed.
    """
    gone = 0
    with using(VOLUME):
        now = os.stat(newer).st_mtime
        for path in (os.path.join(volume.doctor, name) for name in sorted(names)):
            with contextlib.suppress(FileNotFoundError):
                if now - os.lstat(path).st_mtime > _OLD:
                    shutil.rmtree(path, ignore_errors=True)
                    gone += not os.path.lexists(path)
    return gone


def reopen(directory: str) -> None:
    """Make NFS fetch a directory anew; until then it answers from memory.

    Raises:
        OSError: it is not there, or not to be read.
    """
    os.close(os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))


def listing(directory: str) -> list[str]:
    """List a directory, fetched anew.

    Raises:
        OSError: as `reopen`.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return os.listdir(descriptor)
    finally:
        os.close(descriptor)


def write(path: str, data: bytes, *, mode: int = 0o666) -> None:
    """Make a file, and flush it to the volume.

    Raises:
        OSError: it could not be written.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    with open(descriptor, "wb") as f:
        f.write(data)
        f.flush()
        os.fsync(descriptor)


def _make(path: str) -> None:
    """Make the directory; a doctor that ends now may take the one above away, once or twice."""
    for _ in range(8):
        with contextlib.suppress(FileNotFoundError):
            os.makedirs(path)
            return
    os.makedirs(path)


def _remove(path: str) -> bool:
    """Remove a directory; return whether it was left the top one.

    That is looked for before every try to remove it, which fails where it came meanwhile: so it is
    never missed. NFS keeps open files under names of its own until they are closed.
    """
    ours = False
    deadline = time.monotonic() + _PATIENCE
    while os.path.lexists(path):
        with contextlib.suppress(OSError):
            for name in listing(path):
                ours = ours or name == _TOP_IS_OURS
                shutil.rmtree(os.path.join(path, name), ignore_errors=True)
                with contextlib.suppress(OSError):
                    os.unlink(os.path.join(path, name))
            os.rmdir(path)
            break
        if time.monotonic() > deadline:
            break
        time.sleep(0.01)
    return ours
