"""What a grant leaves behind when it ends: nothing; and a heartbeat that meets what nobody foresaw."""

import os
import sys
import threading

import pytest
from structlog.testing import capture_logs

sys.path.insert(0, os.path.dirname(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import runs
from owner import KEY

from warmer.errors import VolumeError
from warmer.fill.locks.file import FileLock
from warmer.fill.locks.heartbeat import Heartbeat
from warmer.fill.locks.record import Owner
from warmer.layout import Volume

ROUNDS = 20


def beating():
    """Name the threads that warmer started: servers of tests have some in this process too."""
    names = [thread.name for thread in threading.enumerate()]
    return [name for name in names if name.startswith(("heartbeat", "claim", "leave"))]


def test_grants_that_are_over_leave_neither_threads_nor_descriptors(bench):
    lock = bench.lock()
    bench.take(lock).release()  # clients keep a connection, and a module or two
    lock.try_acquire(KEY).release()
    descriptors = len(os.listdir("/proc/self/fd"))
    for _ in range(ROUNDS):
        grant = lock.try_acquire(KEY)
        assert not isinstance(grant, Owner)
        assert isinstance(lock.try_acquire(KEY), Owner), "a refusal"
        assert grant.still_mine()
        grant.release()
        grant.release()
    runs.eventually(lambda: beating() == [], 60)
    assert len(os.listdir("/proc/self/fd")) <= descriptors + 2, "a pooled connection at most"


def test_a_grant_that_is_lost_ends_its_heartbeat_too(bench):
    grant = bench.take(bench.lock(lease=1.5))
    assert len(beating()) == 1
    bench.supplant()
    runs.eventually(lambda: beating() == [], 60)
    grant.release()


@pytest.mark.parametrize("failure", [KeyError, RuntimeError, OSError])
def test_a_beat_that_fails_as_nobody_foresaw_is_tried_again_and_its_words_are_not_told(failure):
    beats, again = [], threading.Event()

    def beat():
        beats.append(1)
        if len(beats) < 3:
            raise failure(13, "planted-secret") if failure is OSError else failure("planted-secret")
        again.set()
        return True

    with capture_logs() as logs:
        heart = Heartbeat("a lock", beat, every=0.01)
        assert again.wait(60), "it beat no more"
        heart.stop()
    assert not heart.lost.is_set()
    told = [line for line in logs if line["event"] == "the lock does not answer, working on"]
    assert len(told) == 1
    assert failure is OSError or "planted-secret" not in told[0]["why"]


def test_a_file_lock_whose_record_cannot_be_written_is_let_go_of_by_those_who_share_it(tmp_path):
    """A process forked at this moment shares the descriptor: to close ours would not do."""
    volume, lock = Volume(str(tmp_path)), FileLock(Volume(str(tmp_path)), me="me")
    lock.try_acquire(KEY).release()
    forked, kept, release = [], os.pipe(), os.pipe()
    real = os.pwrite

    def pwrite(*words):
        forked.append(os.fork())
        if not forked[-1]:
            os.write(kept[1], b".")
            os.read(release[0], 1)
            os._exit(0)
        os.read(kept[0], 1)
        raise OSError(28, "No space left on device")

    os.pwrite = pwrite
    try:
        with pytest.raises(VolumeError):
            lock.try_acquire(KEY)
    finally:
        os.pwrite = real
    try:
        grant = FileLock(volume, me="next").try_acquire(KEY)
        assert not isinstance(grant, Owner), "the forked one keeps it"
        grant.release()
    finally:
        os.write(release[1], b".")
        os.waitpid(forked[0], 0)
