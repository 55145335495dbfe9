"""Open what others may have put there: regular files alone, and no more of one than it may be long.

Whoever can write on the volume can put a pipe, a device, a link or a file without end where a
record is expected. To open a pipe waits for its writer, a device may do anything, and a link leads
out of the volume. So every record and archive of the volume is opened here: no waiting, no link in
the last place (warmer makes none on a volume), and no regular file is an `OddFileError`.

The readiness probe, which imports nothing of warmer, does the same for itself.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Final

RECORD: Final = 1 << 20
"""Bytes of a small record at most: a key, a record of use, what a branch meant."""

_CHUNK: Final = 1 << 20
_NOT_REGULAR: Final = (errno.ELOOP, errno.ENXIO, errno.ENODEV, errno.EOPNOTSUPP)
"""What links, sockets, and devices that are not there answer to being opened."""


class OddFileError(ValueError):
    """What is there is no regular file, or is longer than it may be. Says which, as a clause."""


def opened(path: str) -> int:
    """Open a regular file for reading.

    Returns:
        Its descriptor, the caller's to close.

    Raises:
        OddFileError: it is something else.
        OSError: it cannot be opened; a directory is `IsADirectoryError`.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as exc:
        if exc.errno not in _NOT_REGULAR:
            raise
        raise OddFileError("is no regular file") from exc
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return descriptor
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    raise OddFileError("is no regular file")


def read(path: str, *, most: int = RECORD) -> bytes:
    """Read a record.

    Args:
        path: where.
        most: bytes that it may have.

    Raises:
        OddFileError: it is no regular file, or has more.
        OSError: it cannot be read.
    """
    return read_at(path, most=most)[0]


def read_at(path: str, *, most: int = RECORD) -> tuple[bytes, float]:
    """Read a record as `read` does, and when it was written, in seconds of the server's clock."""
    descriptor = opened(path)
    try:
        at = os.fstat(descriptor).st_mtime
        chunks: list[bytes] = []
        left = most + 1
        while left and (chunk := os.read(descriptor, min(left, _CHUNK))):
            chunks.append(chunk)
            left -= len(chunk)
    finally:
        os.close(descriptor)
    if not left:
        raise OddFileError(f"has more than {most} bytes")
    return b"".join(chunks), at
