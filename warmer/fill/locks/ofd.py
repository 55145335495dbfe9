"""Open-file-description locks, ``fcntl(2)``: the two calls that Python has no names for."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from typing import Final

from warmer.errors import VolumeError

# struct flock with 64-bit offsets: type, whence, start, length, pid (0 for OFD locks).
_FLOCK: Final = "hhqqi4x"
_WHOLE_FILE: Final = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
_NOTHING: Final = struct.pack(_FLOCK, fcntl.F_UNLCK, os.SEEK_SET, 0, 0, 0)
_BUSY: Final = (errno.EAGAIN, errno.EACCES)
_NO_LOCKS: Final = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


def try_lock(descriptor: int, *, place: str, path: str) -> bool:
    """Lock the whole file for writing, without blocking; False where another has it.

    Args:
        descriptor: open for writing.
        place: names the filesystem in errors.
        path: as `place`.

    Raises:
        VolumeError: the filesystem has no locks.
        OSError: anything else.
    """
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _WHOLE_FILE)
    except OSError as exc:
        if exc.errno in _BUSY:
            return False
        if exc.errno in _NO_LOCKS:
            raise VolumeError(
                f"{place} takes no file locks ({exc.strerror}) at {path}",
                reason="no-locks",
                hint="mount it with locks (NFSv4; Lustre with -o flock), or use --lock k8s:// or s3://",
            ) from exc
        raise
    return True


def unlock(descriptor: int) -> None:
    """Unlock the file, for every descriptor that shares this open.

    Raises:
        OSError: the kernel refused.
    """
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _NOTHING)


def locked(descriptor: int) -> bool:
    """Whether another open of the file holds a lock on it.

    Raises:
        OSError: the kernel refused.
    """
    answer = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, _WHOLE_FILE)
    return bool(struct.unpack(_FLOCK, answer)[0] != fcntl.F_UNLCK)
