"""The file lock where the kernel refuses what it asks, and where an owner dies while it writes."""

import errno
import fcntl
import json
import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, os.path.dirname(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import volumes
from owner import KEY
from refusing import FCNTL, FSYNC, PWRITE, SECOND, refuse

from warmer.errors import VolumeError
from warmer.fill.locks import LostGrantError
from warmer.fill.locks.file import FileLock, acquire
from warmer.fill.locks.record import Owner
from warmer.layout import Volume


@pytest.fixture
def volume(tmp_path):
    return Volume(str(tmp_path))


@pytest.mark.parametrize("torn", [False, True], ids=["before", "torn"])
def test_the_epoch_grows_even_when_the_owner_is_killed_while_it_writes_its_record(volume, torn):
    last = 0

    def take_and_release(_state):
        FileLock(volume, me="x").try_acquire(KEY).release()

    def take():
        nonlocal last
        grant = FileLock(volume, me="a name that is longer than the others").try_acquire(KEY)
        assert grant.epoch > last
        last = grant.epoch
        grant.release()

    take()
    for _ in volumes.kill_points(take_and_release, lambda: None, torn=torn):
        take()


def test_the_lock_file_stays_after_the_release(volume):
    acquire(volume.lock(KEY.kind, KEY.digest), me=Owner(name="me"), place="the volume").release()
    record = json.loads(Path(volume.lock(KEY.kind, KEY.digest)).read_bytes())
    assert (record["epoch"], record["name"], record["nonce"]) == (1, "", "")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (errno.ENOLCK, "no-locks"),  # NFSv3 without statd
        (errno.ENOSYS, "no-locks"),  # Lustre without flock, some FUSE
        (errno.EOPNOTSUPP, "no-locks"),
        (errno.EINVAL, "no-locks"),
        (errno.EDQUOT, "quota"),  # EFS at its limit of locks
        (errno.EIO, "io"),
        (errno.ESTALE, "stale-handle"),
    ],
)
def test_a_filesystem_that_refuses_locks_is_an_error_and_never_taken_for_a_lock(
    volume, error, reason
):
    def asks():
        refuse(FCNTL, error, argument=SECOND, value=fcntl.F_OFD_SETLK)
        before = os.listdir("/proc/self/fd")
        with pytest.raises(VolumeError) as failed:
            FileLock(volume, me="me").try_acquire(KEY)
        assert failed.value.reason == reason
        assert os.listdir("/proc/self/fd") == before, "a descriptor leaked"

    assert not volumes.run_child(asks)


@pytest.mark.parametrize("error", [errno.EAGAIN, errno.EACCES])
def test_both_ways_to_say_that_another_has_the_lock_are_understood(volume, error):
    def asks():
        refuse(FCNTL, error, argument=SECOND, value=fcntl.F_OFD_SETLK)
        assert isinstance(FileLock(volume, me="me").try_acquire(KEY), Owner)

    assert not volumes.run_child(asks)


@pytest.mark.parametrize("call", [PWRITE, FSYNC], ids=["write", "fsync"])
def test_a_writer_whose_locked_descriptor_answers_eio_has_lost_and_publishes_nothing(volume, call):
    """What Linux's NFSv4 client answers once the server gave the lock to somebody else."""

    def writer():
        grant = FileLock(volume, me="me").try_acquire(KEY)
        staging, sealed = volumes.stage(volume, KEY)
        refuse(call, errno.EIO, value=locked_descriptor(volume))
        with pytest.raises(LostGrantError):
            volumes.commit(volume, staging, sealed, grant=grant)
        assert not grant.still_mine()
        grant.release()

    assert not volumes.run_child(writer)
    assert volumes.assert_invariants(volume.root) == []
    assert volumes.fill(volume, KEY) == 1


@pytest.mark.parametrize("call", [PWRITE, FSYNC], ids=["write", "fsync"])
def test_a_record_that_cannot_be_written_for_want_of_space_ends_no_work_and_publishes_nothing(
    volume, call
):
    """No proof of a loss: the next beat may succeed. But neither is it proof of a hold."""

    def writer():
        grant = FileLock(volume, me="me", lease=0.3).try_acquire(KEY)
        refuse(call, errno.ENOSPC, value=locked_descriptor(volume))
        assert not grant.still_mine()
        for _ in range(100):
            grant.note("working")
        with pytest.raises(LostGrantError):
            volumes.commit(volume, *volumes.stage(volume, KEY), grant=grant)
        grant.note("working")
        grant.release()

    assert not volumes.run_child(writer)
    assert volumes.assert_invariants(volume.root) == []


def test_a_volume_that_cannot_flush_publishes_nothing(volume):
    def writer():
        staging, sealed = volumes.stage(volume, KEY)
        refuse(FSYNC, errno.EIO)
        with pytest.raises(VolumeError) as failed:
            volumes.commit(volume, staging, sealed)
        assert failed.value.reason == "io"

    assert not volumes.run_child(writer)
    assert volumes.assert_invariants(volume.root) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts are root's")
def test_a_volume_that_is_read_only_is_an_error(tmp_path):
    with volumes.tmpfs(tmp_path / "full") as top:
        volume = Volume(top)
        FileLock(volume, me="me").try_acquire(KEY).release()
        volumes.make_read_only(top)
        with pytest.raises(VolumeError) as failed:
            FileLock(volume, me="me").try_acquire(KEY)
        assert failed.value.reason == "read-only"


def locked_descriptor(volume):
    """Find the descriptor that this process has the lock by."""
    place = volume.lock(KEY.kind, KEY.digest)
    (found,) = [fd for fd in os.listdir("/proc/self/fd") if _leads_to(fd, place)]
    return int(found)


def _leads_to(descriptor, path):
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}") == path
    except FileNotFoundError:  # the listing's own
        return False
