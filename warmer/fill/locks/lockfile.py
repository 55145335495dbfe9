"""A lock's file, by its name: opened so that NFS asks the server, and so that nothing else is opened.

Whoever can write on the volume can put a link or a pipe in the place of a lock file. What is
written to it would go astray, so that it is refused.
"""

from __future__ import annotations

import errno
import os
import stat

from warmer import regular
from warmer.errors import VolumeError
from warmer.fill.locks.record import SIZE, Owner, parse


def opened(path: str) -> int:
    """Open a lock file, and make it where it is missing.

    Raises:
        VolumeError: somebody put something else there; a record written to it would go astray.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError as exc:
        if exc.errno not in (errno.ELOOP, errno.ENXIO):
            raise
        raise _odd(path) from exc
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _odd(path)
    return descriptor


def _odd(path: str) -> VolumeError:
    return VolumeError(
        f"got {path}, which is no regular file, expected a lock file",
        reason="odd-lock",
        hint="something else writes on the volume: find out what, and remove the file",
    )


def read(path: str) -> Owner:
    """Read the record by its name: nobody's, where no lock file is there.

    Opening it anew makes NFS ask the server.
    """
    reopen(os.path.dirname(path))
    try:
        descriptor = regular.opened(path)
    except (FileNotFoundError, regular.OddFileError):
        return Owner()
    try:
        return parse(os.pread(descriptor, SIZE, 0))
    finally:
        os.close(descriptor)


def leads_to(path: str, descriptor: int) -> bool:
    """Whether the name still leads to the locked file; replaced or deleted, it excludes nobody."""
    reopen(os.path.dirname(path))
    try:
        named = os.stat(path)
    except FileNotFoundError:
        return False
    mine = os.fstat(descriptor)
    return (named.st_dev, named.st_ino) == (mine.st_dev, mine.st_ino)


def reopen(directory: str) -> None:
    """Make NFS fetch the directory anew; until then it answers from memory."""
    os.close(os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
