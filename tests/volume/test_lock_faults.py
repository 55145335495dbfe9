"""`FileLock` where its record is torn or garbage, and where the kernel refuses what it asks."""

import ctypes
import errno
import fcntl
import json
import os
import platform
import struct
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "support"))

import volumes

from warmer.errors import VolumeError
from warmer.fill import publish
from warmer.fill.locks.file import FileLock, acquire
from warmer.layout import Volume
from warmer.model import Key

KEY = Key("weights", {"name": "org/model"})
_X86 = platform.machine() == "x86_64"
FCNTL, PWRITE, FSYNC = (72, 18, 74) if _X86 else (25, 68, 82)  # asm/unistd.h
FIRST, SECOND = 16, 24  # where struct seccomp_data holds an argument


def refuse(call, error, *, argument=FIRST, value=None):
    """Make the kernel answer a system call of this process with an error, by a seccomp filter.

    For ever, so in a child; only calls whose argument has that value, if one is given.
    """
    load, equal, answer = 0x20, 0x15, 0x06  # BPF_LD|BPF_W|BPF_ABS, BPF_JMP|BPF_JEQ, BPF_RET
    filters = [(load, 0, 0, 0), (equal, 0, 3 if value is not None else 1, call)]
    if value is not None:
        filters += [(load, 0, 0, argument), (equal, 0, 1, value)]
    filters += [(answer, 0, 0, 0x50000 | error), (answer, 0, 0, 0x7FFF0000)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *f) for f in filters))
    program = struct.pack("HxxxxxxP", len(filters), ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
    assert libc.prctl(22, 2, program, 0, 0) == 0, os.strerror(ctypes.get_errno())


@pytest.fixture
def volume(tmp_path):
    return Volume(str(tmp_path))


def write_record(volume, data):
    path = Path(volume.lock(KEY.kind, KEY.digest))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("torn", [False, True], ids=["before", "torn"])
def test_the_epoch_grows_even_when_the_holder_is_killed_while_it_writes_its_record(tmp_path, torn):
    volume = Volume(str(tmp_path))
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


@pytest.mark.parametrize(
    "record",
    [
        b"",
        b"\0" * 100,
        b'{"epoch": 3, "own',
        b'{"epoch": 12, "owner": "x"}r": "a longer one"}',
        b"\xff\xfe\xfd",
        b"[1, 2]",
        b"null",
        b'{"epoch": null, "owner": null}',
        b'{"epoch": "many", "owner": 5}',
        b'{"epoch": Infinity, "owner": "x"}',
        b"[" * 4000,
        b"9" * 4096,
        b"x" * 5_000_000,
        b'{"epoch": 4, "owner": "' + b"n" * 5_000_000 + b'"}',
    ],
    ids=lambda record: f"{record[:24]!r}-{len(record)}",
)
def test_whatever_is_in_the_record_the_lock_works(volume, record):
    path = write_record(volume, record)
    lock = FileLock(volume, me="me")
    assert lock.owner(KEY) is None
    grant = lock.try_acquire(KEY)
    assert grant is not None
    assert grant.epoch >= 1
    assert (lock.owner(KEY).name, lock.owner(KEY).epoch) == ("me", grant.epoch)
    path.write_bytes(record)  # somebody scribbles over it while it is held
    assert lock.owner(KEY) is not None
    assert lock.try_acquire(KEY) is None
    assert grant.still_mine()
    grant.release()


def test_a_name_of_any_length_is_recorded_and_keeps_the_epoch_growing(volume):
    for name in ("n" * 10_000, "\n\"'\\\0é" * 500):
        first = FileLock(volume, me=name).try_acquire(KEY)
        assert FileLock(volume, me="x").owner(KEY).epoch == first.epoch
        first.release()


def test_the_lock_file_stays_after_the_release(volume):
    acquire(volume.lock(KEY.kind, KEY.digest), me="me", place="the volume").release()
    record = json.loads(Path(volume.lock(KEY.kind, KEY.digest)).read_bytes())
    assert record == {"epoch": 1, "owner": ""}


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
        assert FileLock(volume, me="me").try_acquire(KEY) is None

    assert not volumes.run_child(asks)


@pytest.mark.parametrize("call", [PWRITE, FSYNC], ids=["write", "fsync"])
def test_a_writer_whose_locked_descriptor_answers_eio_has_lost_and_publishes_nothing(volume, call):
    """What Linux's NFSv4 client answers once the server gave the lock to somebody else."""

    def writer():
        grant = FileLock(volume, me="me").try_acquire(KEY)
        staging, sealed = volumes.stage(volume, KEY)
        place = volume.lock(KEY.kind, KEY.digest)
        locked = [fd for fd in os.listdir("/proc/self/fd") if _leads_to(fd, place)]
        refuse(call, errno.EIO, value=int(locked[0]))
        with pytest.raises(publish.LostGrantError):
            volumes.commit(volume, staging, sealed, grant=grant)
        grant.release()

    assert not volumes.run_child(writer)
    assert volumes.assert_invariants(volume.root) == []
    assert volumes.fill(volume, KEY) == 1


def test_a_volume_that_cannot_flush_publishes_nothing(volume):
    def writer():
        staging, sealed = volumes.stage(volume, KEY)
        refuse(FSYNC, errno.EIO)
        with pytest.raises(VolumeError) as failed:
            volumes.commit(volume, staging, sealed)
        assert failed.value.reason == "io"

    assert not volumes.run_child(writer)
    assert volumes.assert_invariants(volume.root) == []


def _leads_to(descriptor, path):
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}") == path
    except FileNotFoundError:  # the listing's own
        return False
