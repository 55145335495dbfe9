"""Bytes that are already on a disk: share them where the filesystem can, copy them where not.

A reflink (``ioctl_ficlone(2)``: XFS, Btrfs, NFS 4.2 over them) shares blocks until one side is
written to, so that it is as safe as a copy and as cheap as a link.
"""

from __future__ import annotations

import errno
import fcntl
import os
from typing import Final

_FICLONE: Final = 0x40049409
"""``_IOW(0x94, 9, int)``, linux/fs.h."""
_CHUNK: Final = 1 << 20
_CANNOT: Final = (
    errno.EOPNOTSUPP,
    errno.ENOTTY,
    errno.EXDEV,
    errno.EINVAL,
    errno.ENOSYS,
    errno.EBADF,
    errno.ETXTBSY,
)
"""What a filesystem answers that cannot share or copy by itself."""


def reflink(source: int, target: int) -> bool:
    """Make a file share another one's blocks; False where the filesystem cannot.

    Args:
        source: descriptor open for reading.
        target: descriptor open for writing; its content is replaced.

    Raises:
        OSError: anything but an inability: no space, quota, I/O error.
    """
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError as exc:
        if exc.errno in _CANNOT:
            return False
        raise
    return True


def copy(source: int, target: int, start: int, end: int) -> None:
    """Copy a run of bytes to the same place in another file, inside the kernel where it can.

    Raises:
        OSError: reading or writing failed, or the source is shorter.
    """
    at = start
    inside = True
    while at < end:
        count = 0
        if inside:
            try:
                count = os.copy_file_range(source, target, min(end - at, 1 << 30), at, at)
            except OSError as exc:
                if exc.errno not in _CANNOT:
                    raise
            inside = count > 0
        if not inside:
            data = os.pread(source, min(end - at, _CHUNK), at)
            if not data:
                raise OSError(errno.EIO, "the file is shorter than it was")
            count = os.pwrite(target, data, at)
        at += count
