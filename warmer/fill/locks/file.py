"""The kernel's lock on a file of the volume: an open-file-description lock, polled.

Guarantees, on a local filesystem and on NFSv4, CephFS or Lustre mounted with ``flock``: one
holder per key; it ends with the process, however that dies. A holder that is merely stopped, or
that hangs, keeps the kernel's lock: when its record has been seen unchanged for a lease, a
waiter puts a new lock file in the old one's place, and the old lock excludes nobody any more.

Does *not* guarantee: anything on mounts whose locks stay in one kernel (NFSv3 ``nolock``, SMB
``nobrl``, FUSE without lock operations), which `warmer.observe.mount` tells; that a node which
lost its lease and came back cannot write to *other* files. `still_mine` finds such losses out:
it writes through the locked descriptor, which fails with EIO on NFSv4 once the lock is lost, and
looks whether the name still leads to the locked file. Publishing never replaces anything.

OFD locks (``fcntl(2)``, F_OFD_SETLK) belong to the descriptor: another open and close of the
same file by this process does not drop them, as it would with POSIX locks. Blocking waits are
not used: on NFSv4.0 they can sleep 20 s past the release.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import threading
import time
from typing import TYPE_CHECKING, Final

import structlog

from warmer.errors import using
from warmer.fill.locks import BEATS, LEASE, lockfile, lost, ofd
from warmer.fill.locks.heartbeat import Heartbeat
from warmer.fill.locks.pace import Pace
from warmer.fill.locks.record import SIZE, Owner, encode, parse
from warmer.fill.locks.sight import Sight

if TYPE_CHECKING:
    from warmer.layout import Volume
    from warmer.model import Key

_log = structlog.get_logger(__name__)
_PLACE: Final = "the volume"
_LEAST: Final = 0.5
_TURNS: Final = 3
"""Times a lock file may be replaced between its opening and its locking."""
_RELEASE: Final = 1.0
_GONE: Final = (errno.EIO, errno.ESTALE, errno.ENOENT, errno.EBADF)
"""What a lost lock or a deleted lock file answers with; anything else proves nothing."""


class FileLock:
    """Locks on files of the volume.

    Args:
        volume: the volume whose keys are locked.
        me: how this process is named to waiters.
        node: the boot id of this machine.
        lease: seconds this owner's record may stand still before others take over.
    """

    def __init__(self, volume: Volume, *, me: str, node: str = "", lease: float = LEASE) -> None:
        self._volume = volume
        self.pace = Pace(_LEAST, lease)
        self._me = Owner(name=me, node=node, lease=lease)
        self._sight = Sight()

    def try_acquire(self, key: Key) -> FileGrant | Owner:
        """Take the key's lock without blocking, or learn who has it.

        Raises:
            VolumeError: the volume is read-only, or its filesystem has no locks.
        """
        path = self._volume.lock(key.kind, key.digest)
        found = acquire(path, me=self._me, place=_PLACE)
        if isinstance(found, Owner):
            unchanged = self._sight.unchanged(path, found)
            if unchanged >= (found.lease or self._me.lease):
                with using(_PLACE):
                    _break(path, found, silent=unchanged)
                found = acquire(path, me=self._me, place=_PLACE)
                if isinstance(found, FileGrant):  # its record was replaced by nobody's
                    found.took_over = True
        if isinstance(found, FileGrant):
            found.live()
        return found

    def leave(self, _key: Key, /) -> None:
        """Nothing is seen of who waits."""


def acquire(path: str, *, me: Owner, place: str) -> FileGrant | Owner:
    """Take the lock of one file without blocking, or read who has it.

    Args:
        path: the lock file; made, with its directory, where it is missing.
        me: who asks.
        place: names the filesystem in errors.

    Raises:
        VolumeError: the file cannot be made, or its filesystem has no locks.
    """
    with using(place):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        for _ in range(_TURNS):
            descriptor = lockfile.opened(path)
            try:
                if not ofd.try_lock(descriptor, place=place, path=path):
                    return lockfile.read(path)
                if lockfile.leads_to(path, descriptor):
                    before = parse(os.pread(descriptor, SIZE, 0))
                    mine, descriptor = descriptor, -1  # the grant's to close from here on
                    return FileGrant(mine, path, before=before, me=me)
            finally:
                if descriptor >= 0:
                    os.close(descriptor)
        return lockfile.read(path)


class FileGrant:
    """A held kernel lock.

    Args:
        descriptor: the locked descriptor, owned from now on; `path` is its name.
        before: what the record said; `me` holds it now.

    Raises:
        OSError: the record could not be written.
    """

    exclusive = True

    def __init__(self, descriptor: int, path: str, *, before: Owner, me: Owner) -> None:
        self.epoch = before.epoch + 1
        self.took_over = bool(before.name)
        self._descriptor: int | None = descriptor
        self._path = path
        self._mutex = threading.Lock()
        self._doing = ("", 0, 0)
        self._heartbeat: Heartbeat | None = None
        self._warned = self._lost = False
        self._beat_at = 0.0
        self._owner = Owner(self.epoch, me.name, secrets.token_hex(8), me.node, 1, me.lease)
        try:
            self._write(self._owner)
        except BaseException:
            with contextlib.suppress(OSError):
                ofd.unlock(descriptor)  # as in `release`
            os.close(descriptor)
            raise

    def live(self) -> None:
        """Show signs of life from now on, as waiters of other pods expect."""
        every = self._owner.lease / BEATS
        self._heartbeat = Heartbeat(os.path.basename(self._path), self._renew, every=every)

    def note(self, phase: str, done: int = 0, total: int = 0) -> None:
        """Say what is being done; see `Grant.note`.

        Raises:
            LostGrantError: a rewriting found the lock lost.
        """
        self._doing = (phase, done, total)
        if self._heartbeat is not None and self._heartbeat.lost.is_set():
            raise lost(os.path.basename(self._path))

    def still_mine(self) -> bool:
        """Whether the lock still holds: a write and fsync through the locked descriptor."""
        try:
            return self._renew()
        except OSError:
            return False

    def release(self) -> None:
        """Give the lock back; the record keeps the epoch growing."""
        if self._heartbeat is not None:
            self._heartbeat.stop()
        if not self._mutex.acquire(timeout=_RELEASE):
            return  # a rewriting hangs in the kernel: the lock ends with the process
        try:
            if self._descriptor is None:
                return
            if not self._lost:  # else the record may be another's by now
                with contextlib.suppress(OSError):
                    self._write(self._owner.freed())
            with contextlib.suppress(OSError):
                # A process forked meanwhile may share the descriptor; closing ours would not do.
                ofd.unlock(self._descriptor)
            descriptor, self._descriptor = self._descriptor, None
            with contextlib.suppress(OSError):  # close(2) frees it even when it fails
                os.close(descriptor)
        finally:
            self._mutex.release()

    def _renew(self) -> bool:
        """Rewrite the record; False where the lock is lost for certain.

        Raises:
            OSError: it could not be written, for a reason that proves no loss.
        """
        with self._mutex:
            if self._descriptor is None or self._lost:
                return False
            try:
                found = lockfile.read(self._path)
                self._lost = found.nonce != self._owner.nonce and found.epoch >= self.epoch
                if not self._lost:
                    fresh = self._owner.next_beat(*self._doing)
                    self._write(fresh)
                    self._owner = fresh
                    self._lost = not lockfile.leads_to(self._path, self._descriptor)
            except OSError as exc:
                if exc.errno not in _GONE:
                    raise
                self._lost = True
            if self._lost or found.nonce != self._owner.nonce:
                self._suspect(self._descriptor)
            return not self._lost

    def _suspect(self, descriptor: int) -> None:
        """Say so where another has the lock though this owner gave nobody a reason to take it.

        A lock passes on when its owner lets go, dies, shows no life for a lease, or is cut off
        from the server for as long as that one allows.
        """
        with contextlib.suppress(OSError):
            other = lockfile.read(self._path)
            another = bool(other.name) and other.nonce != self._owner.nonce
            lively = time.monotonic() - self._beat_at < self._owner.lease
            if (
                another
                and lively
                and lockfile.leads_to(self._path, descriptor)
                and not self._warned
            ):
                self._warned = True
                _log.warning(
                    "a living owner's lock was given to another: do locks exclude on this mount?",
                    lock=os.path.basename(self._path),
                    other=other.name,
                    same_node=other.node == self._owner.node,
                    hint="NFS nodes of one hostname are one client to the server: name them apart, "
                    "or set nfs.nfs4_unique_id; or use --lock k8s:// or s3://",
                )

    def _write(self, owner: Owner) -> None:
        if (mine := self._descriptor) is None:
            return
        if os.pwrite(mine, encode(owner), 0) < SIZE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if os.fstat(mine).st_size > SIZE:  # what somebody else left there
            os.ftruncate(mine, SIZE)
        os.fsync(mine)
        self._beat_at = time.monotonic()


def _break(path: str, seen: Owner, *, silent: float) -> None:
    """Put a free lock file in the place of one whose owner shows no life.

    One breaker at a time; it looks again under a lock of its own, so that no successor's lock
    file is taken for the dead one's.
    """
    guard = acquire(f"{path}.break", me=Owner(name="a breaker"), place=_PLACE)
    if isinstance(guard, Owner):
        return
    try:
        if lockfile.read(path) != seen:
            return
        which = {"lock": os.path.basename(path), "owner": seen.name, "epoch": seen.epoch}
        _log.warning("taking over", **which, silent_s=round(silent))
        fresh = f"{path}.{secrets.token_hex(4)}"
        with open(fresh, "xb") as f:
            f.write(encode(Owner(epoch=seen.epoch)))
            f.flush()
            os.fsync(f.fileno())
        os.replace(fresh, path)
    finally:
        guard.release()
