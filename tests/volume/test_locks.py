"""`FileLock`, with real processes that are killed, stopped and woken.

Children are forked while this process holds no lock: a fork shares open file descriptions.
"""

import json
import os
import select
import signal
import subprocess
import time
import traceback
from pathlib import Path

import pytest

from warmer.errors import UsageError
from warmer.fill.locks.file import FileLock
from warmer.fill.locks.registry import open_lock
from warmer.layout import Volume
from warmer.model import Key

KEY = Key("weights", {"name": "org/model"})
OTHER = Key("weights", {"name": "org/other"})
DEADLINE = 20.0
PROCESSES, ROUNDS = 8, 50


class Child:
    """A forked process that runs `action(say)`; what it says is heard line by line."""

    def __init__(self, action):
        self._pipe, out = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._pipe)
            try:
                action(lambda word: os.write(out, f"{word}\n".encode()))
            except BaseException:  # noqa: BLE001 - a child must not return
                traceback.print_exc()
            finally:
                os._exit(0)
        os.close(out)
        self._heard = b""

    def hear(self):
        """The next line; fails after a deadline, or where the child ended without a word."""
        until = time.monotonic() + DEADLINE
        while b"\n" not in self._heard:
            ready, _, _ = select.select([self._pipe], [], [], max(0, until - time.monotonic()))
            assert ready, "the child says nothing"
            more = os.read(self._pipe, 4096)
            assert more, "the child ended without a word"
            self._heard += more
        line, _, self._heard = self._heard.partition(b"\n")
        return line.decode()

    def end(self):
        """Kill -9 and reap; safe to call twice."""
        if self._pipe >= 0:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            os.close(self._pipe)
            self._pipe = -1


@pytest.fixture
def volume(tmp_path):
    return Volume(str(tmp_path))


@pytest.fixture
def child():
    """Start children that do not outlive the test."""
    children = []

    def start(action):
        children.append(Child(action))
        return children[-1]

    yield start
    for one in children:
        one.end()


@pytest.fixture
def holder(volume, child):
    """Start a process that takes the lock and keeps it."""

    def hold(say, name="holder"):
        grant = FileLock(volume, me=name).try_acquire(KEY)
        say(grant.epoch if grant else "refused")
        signal.pause()

    def start(name="holder"):
        started = child(lambda say: hold(say, name))
        started.epoch = int(started.hear())
        return started

    return start


def test_two_owners_never_both_hold_a_key_and_other_keys_are_free(volume, holder):
    holder()
    lock = FileLock(volume, me="me")
    assert lock.try_acquire(KEY) is None
    grant = lock.try_acquire(OTHER)
    assert grant is not None
    assert lock.try_acquire(OTHER) is None, "the same process, by another descriptor"
    grant.release()
    assert lock.try_acquire(OTHER) is not None


def test_kill_9_of_the_holder_frees_the_lock_at_once(volume, holder):
    lock = FileLock(volume, me="me")
    for _ in range(5):
        one = holder()
        assert lock.try_acquire(KEY) is None
        one.end()
        grant = lock.try_acquire(KEY)
        assert grant is not None
        grant.release()


def test_a_program_that_the_holder_started_does_not_keep_the_lock(volume, child):
    def hold(say):
        grant = FileLock(volume, me="holder").try_acquire(KEY)
        engine = subprocess.Popen(["sleep", "60"], close_fds=False)
        say(f"{grant.epoch} {engine.pid}")
        signal.pause()

    one = child(hold)
    engine = int(one.hear().split()[1])
    try:
        one.end()
        os.kill(engine, 0)  # it still runs
        assert FileLock(volume, me="me").try_acquire(KEY) is not None
    finally:
        os.kill(engine, signal.SIGKILL)


def test_a_stopped_holder_keeps_the_lock(volume, holder):
    one = holder()
    os.kill(one.pid, signal.SIGSTOP)
    until = time.monotonic() + DEADLINE
    while Path(f"/proc/{one.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        assert time.monotonic() < until, "it did not stop"
    lock = FileLock(volume, me="me")
    assert lock.try_acquire(KEY) is None
    assert lock.owner(KEY).name == "holder"
    os.kill(one.pid, signal.SIGCONT)
    assert lock.try_acquire(KEY) is None


def test_another_open_and_close_of_the_file_by_the_holder_does_not_drop_the_lock(volume, child):
    def hold(say):
        lock = FileLock(volume, me="holder")
        grant = lock.try_acquire(KEY)
        with open(volume.lock(KEY.kind, KEY.digest), "r+b") as f:
            f.read()
        assert lock.owner(KEY) is not None
        assert lock.try_acquire(KEY) is None
        assert grant.still_mine()
        say("held")
        signal.pause()

    assert child(hold).hear() == "held"
    assert FileLock(volume, me="me").try_acquire(KEY) is None


def test_a_released_grant_is_not_mine_and_may_be_released_again(volume):
    lock = FileLock(volume, me="me")
    grant = lock.try_acquire(KEY)
    assert grant.still_mine()
    grant.release()
    grant.release()
    assert not grant.still_mine()
    second = lock.try_acquire(KEY)
    grant.release()
    assert second.still_mine()
    assert lock.owner(KEY).name == "me", "a release after the loss wrote over the new owner"


def test_a_release_frees_the_lock_even_when_a_forked_process_shares_the_descriptor(volume, child):
    lock = FileLock(volume, me="me")
    grant = lock.try_acquire(KEY)
    child(lambda _say: signal.pause())
    grant.release()
    assert lock.try_acquire(KEY) is not None


def test_the_owner_is_named_while_it_holds_and_is_nobody_when_free(volume, holder):
    lock = FileLock(volume, me="me")
    assert lock.owner(KEY) is None
    one = holder("pod-7 on node-3")
    assert (lock.owner(KEY).name, lock.owner(KEY).epoch) == ("pod-7 on node-3", one.epoch)
    one.end()
    assert lock.owner(KEY) is None, "the dead are nobody"
    grant = lock.try_acquire(KEY)
    assert lock.owner(KEY).name == "me"
    grant.release()
    assert lock.owner(KEY) is None


def test_the_epoch_grows_with_every_grant_however_the_one_before_ended(volume, holder):
    lock = FileLock(volume, me="a name that is longer than the others")
    epochs = []
    for _ in range(4):
        one = holder("x")
        epochs.append(one.epoch)
        one.end()
        grant = lock.try_acquire(KEY)
        epochs.append(grant.epoch)
        grant.release()
    assert epochs == sorted(set(epochs))


def test_no_update_of_a_counter_is_lost_under_the_lock(volume, tmp_path, child):
    counter = tmp_path / "counter"
    counter.write_text("0")

    def count(say):
        lock = FileLock(volume, me=str(os.getpid()))
        epochs = []
        while len(epochs) < ROUNDS:
            grant = lock.try_acquire(KEY)
            if grant is None:
                time.sleep(0.0005)
                continue
            epochs.append(grant.epoch)
            value = int(counter.read_text())
            counter.write_text(str(value + 1))
            assert grant.still_mine()
            grant.release()
        say(json.dumps(epochs))

    children = [child(count) for _ in range(PROCESSES)]
    epochs = [epoch for one in children for epoch in json.loads(one.hear())]
    assert int(counter.read_text()) == PROCESSES * ROUNDS
    assert sorted(epochs) == list(range(1, PROCESSES * ROUNDS + 1))


def test_a_lock_is_opened_by_its_url(volume):
    grant = open_lock("file", volume=volume, me="me").try_acquire(KEY)
    assert FileLock(volume, me="x").try_acquire(KEY) is None
    grant.release()
    with pytest.raises(UsageError):
        open_lock("redis://nowhere", volume=volume, me="me")
