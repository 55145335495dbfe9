"""The kernel's lock on a file of the volume: an open-file-description lock, polled.

Guarantees, on a local filesystem and on NFSv4, CephFS or Lustre mounted with ``flock``: one
holder per key; it ends with the process, however that dies; it does not end when the process is
merely stopped.

Does *not* guarantee: anything on mounts whose locks stay in one kernel (NFSv3 ``nolock``, SMB
``nobrl``, FUSE without lock operations); that a node which lost its lease and came back cannot
write to *other* files. `still_mine` finds that out by writing through the locked descriptor,
which fails with EIO on NFSv4 once the lock is lost, and publishing never replaces anything.

OFD locks (``fcntl(2)``, F_OFD_SETLK) belong to the descriptor: another open and close of the
same file by this process does not drop them, as it would with POSIX locks. Blocking waits are
not used: on NFSv4.0 they can sleep 20 s past the release.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import struct
from typing import TYPE_CHECKING, Final

from warmer.errors import VolumeError, using
from warmer.fill.locks import Owner

if TYPE_CHECKING:
    from warmer.layout import Volume
    from warmer.model import Key

# struct flock with 64-bit offsets: type, whence, start, length, pid (0 for OFD locks).
_FLOCK: Final = "hhqqi4x"
_WHOLE_FILE: Final = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
_NOTHING: Final = struct.pack(_FLOCK, fcntl.F_UNLCK, os.SEEK_SET, 0, 0, 0)
_RECORD: Final = 512
"""Bytes of an owner's record, padded."""
_EPOCH: Final = re.compile(rb'\{"epoch": (\d{1,18}),')
_BUSY: Final = (errno.EAGAIN, errno.EACCES)
_NO_LOCKS: Final = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


class FileLock:
    """Locks on files of the volume.

    Args:
        volume: the volume whose keys are locked.
        me: how this process is named to waiters.
    """

    def __init__(self, volume: Volume, *, me: str) -> None:
        self._volume = volume
        self._me = me

    def try_acquire(self, key: Key) -> FileGrant | None:
        """Take the key's lock without blocking; None while another owner has it.

        Raises:
            VolumeError: the volume is read-only, or its filesystem has no locks.
        """
        return acquire(self._volume.lock(key.kind, key.digest), me=self._me, place="the volume")

    def owner(self, key: Key) -> Owner | None:
        """Who holds it now; None when nobody does."""
        path = self._volume.lock(key.kind, key.digest)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            answer = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, _WHOLE_FILE)
            if struct.unpack(_FLOCK, answer)[0] == fcntl.F_UNLCK:
                return None
            return _read(descriptor)
        except OSError:
            return None
        finally:
            os.close(descriptor)


def acquire(path: str, *, me: str, place: str) -> FileGrant | None:
    """Take the lock of one file without blocking; None while another descriptor has it.

    Args:
        path: the lock file; made, with its directory, where it is missing, and never deleted.
        me: how this process is named to waiters.
        place: names the filesystem in errors.

    Raises:
        VolumeError: the file cannot be made, or its filesystem has no locks.
    """
    with using(place):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _WHOLE_FILE)
        except OSError as exc:
            os.close(descriptor)
            if exc.errno in _BUSY:
                return None
            if exc.errno in _NO_LOCKS:
                raise VolumeError(
                    f"{place} takes no file locks ({exc.strerror}) at {path}",
                    reason="no-locks",
                    hint="mount it with locks: NFSv4, or Lustre with -o flock",
                ) from exc
            raise
        try:
            grant = FileGrant(descriptor, epoch=_read(descriptor).epoch + 1, me=me)
            grant.record()
        except BaseException:
            os.close(descriptor)
            raise
        return grant


class FileGrant:
    """A held kernel lock.

    Args:
        descriptor: the locked descriptor; owned from now on.
        epoch: this grant's number.
        me: how this process is named to waiters.
    """

    def __init__(self, descriptor: int, *, epoch: int, me: str) -> None:
        self.epoch = epoch
        self._me = me
        self._descriptor: int | None = descriptor

    def record(self) -> None:
        """Write who holds the lock, through the locked descriptor and down to the server.

        Raises:
            OSError: on NFSv4, EIO when the lock was lost.
        """
        self._write({"epoch": self.epoch, "owner": self._me})

    def still_mine(self) -> bool:
        """Whether the lock still holds: a write and fsync through the locked descriptor."""
        if self._descriptor is None:
            return False
        try:
            self.record()
            return os.fstat(self._descriptor).st_nlink > 0  # deleted, it excludes nobody
        except OSError:
            return False

    def release(self) -> None:
        """Give the lock back; the record keeps the epoch growing."""
        if self._descriptor is None:
            return
        with contextlib.suppress(OSError):
            self._write({"epoch": self.epoch, "owner": ""})
        with contextlib.suppress(OSError):
            # A process forked meanwhile may share the descriptor; closing ours would not do.
            fcntl.fcntl(self._descriptor, fcntl.F_OFD_SETLK, _NOTHING)
        descriptor, self._descriptor = self._descriptor, None
        with contextlib.suppress(OSError):  # close(2) frees the descriptor even when it fails
            os.close(descriptor)

    def _write(self, record: dict[str, object]) -> None:
        if self._descriptor is None:
            return
        os.pwrite(self._descriptor, _encode(record), 0)
        os.ftruncate(self._descriptor, _RECORD)
        os.fsync(self._descriptor)


def _encode(record: dict[str, object]) -> bytes:
    """Render a record in one size, so that a shorter one never leaves the end of a longer one."""
    owner = str(record["owner"])
    while len(data := json.dumps(record | {"owner": owner}).encode()) > _RECORD:
        owner = owner[: len(owner) // 2]
    return data.ljust(_RECORD)


def _read(descriptor: int) -> Owner:
    """Read the owner's record; of a torn or foreign one, the epoch at least if it is there."""
    data = os.pread(descriptor, 2 * _RECORD, 0)
    try:
        record = json.loads(data or b"{}")
        return Owner(str(record.get("owner", "")), int(record.get("epoch", 0)))
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        found = _EPOCH.match(data)
        return Owner("", int(found[1]) if found else 0)
