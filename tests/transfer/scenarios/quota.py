"""A filesystem with room, on which one user may write 20 MiB: what that user is told of room."""

import ctypes
import os

import guest

from warmer.errors import VolumeError
from warmer.fill import capacity

MIB = 1 << 20
USER, LIMIT = 65534, 20 * MIB
SET_LIMITS = 0x800008 << 8
"""Q_SETQUOTA for a user, of quotactl(2)."""


class Limits(ctypes.Structure):
    """``struct if_dqblk``: limits of blocks are in KiB; `valid` says that only those count."""

    _fields_ = (
        *((name, ctypes.c_uint64) for name in ("blocks_hard", "blocks_soft", "space")),
        *((name, ctypes.c_uint64) for name in ("files_hard", "files_soft", "files")),
        *((name, ctypes.c_uint64) for name in ("blocks_grace", "files_grace")),
        ("valid", ctypes.c_uint32),
    )


def limit():
    libc = ctypes.CDLL(None, use_errno=True)
    limits = Limits(blocks_hard=LIMIT >> 10, valid=1)
    if libc.quotactl(SET_LIMITS, b"/dev/ubda", USER, ctypes.byref(limits)):
        raise OSError(ctypes.get_errno(), "quotactl")


def main():
    guest.call("modprobe", "-d", "/run/modules", "quota_v2")
    guest.call("mkfs.ext4", "-qF", "-O", "quota", "/dev/ubda")
    os.makedirs(guest.DISK, exist_ok=True)
    guest.call("mount", "-t", "ext4", "-o", "usrquota", "/dev/ubda", guest.DISK)
    os.chmod(guest.DISK, 0o777)
    limit()
    capacity.require(guest.DISK, MIB)  # imports what the user may not read
    os.setuid(USER)
    capacity.require(guest.DISK, LIMIT // 2)
    try:
        capacity.require(guest.DISK, LIMIT + LIMIT // 2)
    except VolumeError as exc:
        found = {"reason": exc.reason, "message": exc.message, "code": exc.exit_code}
        guest.result(refused=found, free=capacity.free(guest.DISK), left=os.listdir(guest.DISK))


main()
