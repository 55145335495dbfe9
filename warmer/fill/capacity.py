"""Room for a whole plan, asked for before its first byte.

``statvfs(3)`` tells what a filesystem has free, not what a quota leaves: where the filesystem can
set room aside (``fallocate(2)``: ext4, XFS, Btrfs, NFS 4.2), a file of the plan's size is
made and removed again. glibc's ``posix_fallocate`` is not used: where the filesystem cannot, it
writes zeros, which on NFS takes longer than the download. Nor is a file made on tmpfs, which has no
quota, would have to clear the memory, and would count it against the container's limit.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from typing import Final

from warmer.errors import VolumeError, using, volume_error
from warmer.observe import mount

RESERVE: Final = 64 << 20
"""Bytes left free beyond the plan: seals, kernels, other pods' small writes."""
_PLACE: Final = "the volume"
_CANNOT: Final = (
    *(errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOTTY, errno.EINVAL, errno.ENODEV),
    errno.EFBIG,
)
"""What says nothing about room. EFBIG: the plan as one file is too long, its files may be not."""


def require(directory: str, need: int) -> None:
    """Insist on room for `need` more bytes under a directory.

    Raises:
        VolumeError: there is too little, by so many bytes; or the volume failed.
    """
    with using(_PLACE):
        left = free(directory)
    if need + RESERVE > left:
        raise too_small(need + RESERVE, left)
    if need and mount.find(directory).type != "tmpfs":
        _try(os.path.join(directory, "room"), need)


def free(directory: str) -> int:
    """Bytes free for whoever asks; all there are where the filesystem does not count them.

    Raises:
        OSError: the filesystem does not say.
    """
    info = os.statvfs(directory)
    return info.f_bavail * info.f_frsize if info.f_blocks else sys.maxsize


def too_small(need: int, left: int) -> VolumeError:
    """Make the error of a volume with too little room."""
    return VolumeError(
        f"got {left} bytes free on the volume, expected {need}: {need - left} too few",
        reason="no-space",
        hint="free space on it, or give it more",
    )


def _try(path: str, size: int) -> None:
    with using(_PLACE):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            code = _fallocate(descriptor, size)
        finally:
            os.close(descriptor)
            os.unlink(path)
    if code in (errno.ENOSPC, errno.EDQUOT):
        error = volume_error(OSError(code, os.strerror(code)), _PLACE)
        raise VolumeError(
            f"got no room for {size} bytes on the volume ({os.strerror(code)}), expected it",
            reason=error.reason,
            hint=error.hint,
        )
    if code and code not in _CANNOT:
        raise volume_error(OSError(code, os.strerror(code), path), _PLACE)


def _fallocate(descriptor: int, size: int) -> int:
    """Set room aside for a file; return 0 or the errno."""
    libc = ctypes.CDLL(None, use_errno=True)
    offset = ctypes.c_int64
    while libc.fallocate(descriptor, 0, offset(0), offset(size)) != 0:
        if (code := ctypes.get_errno()) != errno.EINTR:
            return code
    return 0
