"""Lock services whose answers trickle: no thread is held, and nobody takes an old answer for a lock."""

import os
import sys
import threading
import time

import pytest

sys.path.insert(0, os.path.dirname(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import owner
import s3
from owner import KEY
from runs import eventually
from trickle import Trickle

from warmer.errors import LockError
from warmer.fill import deadline, locks
from warmer.fill.locks import LostGrantError, UnansweredError
from warmer.fill.locks.lease import LeaseLock
from warmer.fill.locks.record import Owner

ANSWER = 0.5
LEASE = 1.5
RATE = 40.0
"""Bytes a second: an answer takes many seconds, and no two bytes of it one."""


@pytest.fixture
def far(reached, monkeypatch):
    """A bench, an owner's lock that reaches it through a link, and the link."""
    with reached(Trickle) as (bench, link):
        lock = owner.open_lock(bench.at, me="far", lease=LEASE)
        monkeypatch.setattr(locks, "ANSWER", ANSWER)
        yield bench, lock, link
        link.down = None
        bench.close()


def test_a_question_whose_answer_trickles_is_unanswered(far):
    _, lock, link = far
    link.down = RATE
    with pytest.raises(UnansweredError) as caught:
        lock.try_acquire(KEY)
    assert (caught.value.reason, caught.value.exit_code) == ("lock-unreachable", 4)
    assert "OverdueError" in caught.value.message


def test_a_service_that_trickles_from_the_start_is_no_lock(far):
    bench, _, link = far
    link.down = RATE
    with pytest.raises(LockError):
        owner.open_lock(bench.at, me="me", lease=LEASE).try_acquire(KEY)


def test_a_bucket_whose_credentials_trickle_is_unanswered(monkeypatch, bucket):
    monkeypatch.setattr(locks, "ANSWER", ANSWER)
    environment = s3.seaweed().environment()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
        environment.pop(name, None)
    with Trickle(s3.seaweed().endpoint, down=10.0) as link:
        environment["AWS_CONTAINER_CREDENTIALS_FULL_URI"] = f"{link.url}/v1/credentials"
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        began = time.monotonic()
        with pytest.raises(UnansweredError) as caught:
            owner.open_register({"mechanism": "s3", "place": bucket, "prefix": "locks"})
        assert time.monotonic() - began < 10 * ANSWER
        assert link.sent, "it was asked"
    assert "OverdueError" in caught.value.message


def test_an_owner_whose_renewals_trickle_is_succeeded_and_publishes_nothing(far):
    bench, lock, link = far
    before = set(threading.enumerate())  # other tests leave hearts that beat
    grant = bench.take(lock)
    new = set(threading.enumerate()) - before
    heart = next(one for one in new if one.name.startswith("heartbeat"))
    link.down = RATE
    near = bench.lock("near", lease=LEASE)
    # Renewals arrive, and only their answers do not: silence begins where no more are sent.
    link.up = RATE
    eventually(lambda: not isinstance(near.try_acquire(KEY), Owner))
    began = time.monotonic()
    assert not grant.still_mine(), "it cannot prove that the lock is its own"
    assert time.monotonic() - began < 4 * LEASE, "nor was it held past that"
    assert heart.is_alive(), "no answer is no proof of a loss"
    link.down = link.up = None
    eventually(lambda: not heart.is_alive())
    with pytest.raises(LostGrantError):
        grant.note("working")
    assert bench.read()["name"] == "near"


def test_a_heartbeat_is_not_held_by_an_answer_that_trickles(far):
    bench, lock, link = far
    grant = bench.take(lock)
    link.down = RATE
    before = link.taken
    eventually(lambda: link.taken >= before + 3)  # each abandoned question costs a connection
    link.down = None
    beat = bench.read()["beat"]
    eventually(lambda: bench.read()["beat"] > beat)
    assert grant.still_mine()
    grant.release()


def test_questions_that_are_left_do_not_pile_up_and_more_are_asked_once_they_end(monkeypatch):
    # Other tests leave some, too.
    monkeypatch.setattr(deadline, "_under_way", threading.BoundedSemaphore(deadline.MOST))
    go_on, asked = threading.Event(), []

    def trickle():
        asked.append(1)
        go_on.wait()

    try:
        for _ in range(deadline.MOST + 10):
            with pytest.raises(deadline.OverdueError):
                deadline.within(0.01, trickle)
        assert len(asked) == deadline.MOST, "the others were not asked"
    finally:
        go_on.set()
    for _ in range(2 * deadline.MOST):
        assert deadline.within(5.0, lambda: True)


class Slow:
    """A register in memory whose answers to writes come after a lease, by the clock given."""

    def __init__(self, late):
        self.late, self.kept, self.version = late, None, 0

    def read(self, _name):
        return self.kept and (self.kept, str(self.version))

    def write(self, _name, owner, _version):
        self.kept, self.version = owner, self.version + 1
        time.sleep(self.late)
        return str(self.version)


def test_a_renewal_whose_answer_is_older_than_a_lease_proves_nothing():
    register = Slow(0.0)
    grant = LeaseLock(register, me="me", lease=0.3).try_acquire(KEY)
    assert grant.still_mine()
    register.late = 0.4
    assert not grant.still_mine()
    grant.release()
