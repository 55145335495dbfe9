"""A claim's private directory on the volume: what is in the making, and seen by nobody.

It is named after the key and a nonce, so that a zombie of another claim cannot write into it, and
so that who gets the key next finds what the dead left.
"""

from __future__ import annotations

import os
import secrets
import shutil
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from warmer.errors import IntegrityError, SourceError, VolumeError, using
from warmer.fill import locks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from warmer.fill.locks import Grant
    from warmer.layout import Volume
    from warmer.model import Key

_PLACE: Final = "the volume"
VANISHED: Final = ("missing", "stale-handle")
"""Reasons of a `VolumeError` met where another owner removed or moved what was used."""
_CLEARED: Final = (*VANISHED, "not-a-directory")
"""The same inside a staging: `makedirs` says so of a directory that is removed while it looks twice."""


@dataclass(frozen=True, slots=True)
class Staging:
    """One claim's private directory.

    Attributes:
        path: absolute; on the volume's filesystem, so that it can be renamed into place.
        key: what it will be a generation of.
        nonce: this claim's name.
    """

    path: str
    key: Key
    nonce: str


def name(volume: Volume, key: Key) -> Staging:
    """Name a staging directory for one claim; `make` it inside `staged`, which discards it."""
    nonce = secrets.token_hex(8)
    return Staging(volume.staged(key.kind, key.digest, nonce), key, nonce)


def make(staging: Staging) -> None:
    """Make the directory.

    Not before the block that discards it has begun: a signal that arrives within the call would
    leave a directory that nobody knows of.

    Raises:
        VolumeError: no space, read-only, permission.
    """
    with using(_PLACE):
        os.makedirs(staging.path)


def discard(staging: Staging) -> None:
    """Remove a staging directory; what cannot be removed now is left for the next owner.

    A thread that is still writing may make a name behind the removal's back: it is removed again.
    """
    deadline = time.monotonic() + 1.0
    while os.path.lexists(staging.path):
        shutil.rmtree(staging.path, ignore_errors=True)
        if time.monotonic() > deadline:
            return
        time.sleep(0.01)


@contextmanager
def staged(
    staging: Staging, grant: Grant, *, worth_keeping: Callable[[], bool] = lambda: False
) -> Iterator[None]:
    """Discard the staging directory if the block fails, and say so when a successor did before.

    Args:
        staging: the directory.
        grant: asked whether it is still held.
        worth_keeping: whether the next owner can go on with what a source left undone that failed, or
            whose bytes were wrong.

    Raises:
        LostGrantError: the directory is gone, and so is the grant.
    """
    try:
        yield
    except VolumeError as exc:
        taken = exc.reason in _CLEARED and not grant.still_mine()
        discard(staging)
        if taken:
            raise locks.lost(f"{staging.key.kind} {staging.key.short}") from exc
        raise
    except (IntegrityError, SourceError):
        if not worth_keeping():
            discard(staging)
        raise
    except BaseException:
        discard(staging)
        raise


def abandoned(volume: Volume, key: Key, grant: Grant) -> list[str]:
    """List staging directories of a key whose grant was got just now: their owners are gone.

    Not later: the grant may be lost, and a successor at work. None where the grant excludes
    nobody: another owner may be at work beside this one.
    """
    if not grant.exclusive:
        return []
    prefix = os.path.basename(volume.staged(key.kind, key.digest, ""))
    try:
        names = os.listdir(volume.staging)
    except OSError:
        return []
    return [os.path.join(volume.staging, name) for name in sorted(names) if name.startswith(prefix)]


def sweep(volume: Volume, key: Key, grant: Grant) -> None:
    """Remove what `abandoned` lists, as soon as the grant is got."""
    for path in abandoned(volume, key, grant):
        discard(Staging(path, key, ""))
