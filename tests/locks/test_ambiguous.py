"""Answers that are lost: what was written may be there or not, and the lock finds out which."""

import os
import sys
import threading
import time
from types import MappingProxyType

import pytest

sys.path.insert(0, os.path.dirname(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import runs
from owner import KEY

from warmer.errors import LockError, SourceError
from warmer.fill import weights
from warmer.fill.locks import LostGrantError
from warmer.fill.locks.record import Owner
from warmer.fill.progress import Lines
from warmer.fill.sources import SourceFile
from warmer.layout import Volume
from warmer.model import Held, ModelRef
from warmer.settings import Writing

SHORT = 1.5


def lose(far, *, times, kept, reads=0):
    """Lose the next writes: before the service hears of them, or the answers once they are kept.

    Of the questions, so many are lost too.
    """
    how = {"times": times, "drop": "after" if kept else "before"}
    lost = [far.proxy.fault(method=method, **how) for method in ("PUT", "POST")]
    if reads:
        lost.append(far.proxy.fault(method="GET", times=reads, drop="before"))
    return lost


def writes(far):
    methods = far.proxy.methods
    return methods["PUT"] + methods["POST"]


@pytest.fixture(params=["new", "released"])
def record(request, far):
    """Take a key that was never taken, or one that was; returns its epoch."""
    if request.param == "new":
        return 0
    far.bench.take(far.bench.lock("before")).release()
    return 1


def test_a_grant_whose_answer_was_lost_is_held(far, record):
    lock = far.lock()
    before = writes(far)
    lose(far, times=1, kept=True)
    grant = far.bench.take(lock)
    assert writes(far) == before + 1, "it was not written again"
    assert grant.epoch == record + 1
    assert (far.bench.read()["name"], far.bench.read()["epoch"]) == ("far", grant.epoch)
    assert far.bench.lock().try_acquire(KEY).name == "far"
    assert lock.try_acquire(KEY).name == "far"
    assert grant.still_mine()
    grant.release()
    far.bench.take(far.bench.lock())


def test_a_grant_whose_request_was_lost_is_not_held_and_may_be_asked_for_again(far, record):
    lock = far.lock()
    before = far.bench.kept()
    lose(far, times=1, kept=False)
    found = lock.try_acquire(KEY)
    assert isinstance(found, Owner)
    assert not found.name, "nobody has it"
    assert far.bench.kept() == before
    assert far.bench.take(lock).epoch == record + 1


def test_a_grant_that_another_gets_while_the_answer_is_lost_is_the_others(far):
    lock = far.lock()
    fault = far.proxy.fault(method="GET", times=1, drop="before")
    lose(far, times=1, kept=False)
    with pytest.raises(LockError):  # the look before the write
        lock.try_acquire(KEY)
    assert fault.times == 0
    theirs = far.bench.take(far.bench.lock())
    assert lock.try_acquire(KEY).name == "me"
    assert theirs.still_mine()


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "not kept"])
def test_who_cannot_learn_the_fate_of_its_request_has_an_error_and_harms_for_a_lease(
    far, record, kept
):
    waiter = far.bench.waiter(lease=10.0)
    lock = far.lock(lease=20.0)
    lock.try_acquire(KEY).release()
    far.proxy.fault(method="GET", times=1)  # nothing happens to the look before the write
    lose(far, times=1, kept=kept, reads=1)
    with pytest.raises(LockError) as failed:
        lock.try_acquire(KEY)
    assert failed.value.reason == "lock-unreachable"
    assert failed.value.hint
    grant, took = waiter.take()
    assert took == (20.0 if kept else 0.0)
    assert grant.still_mine()


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("kept", [True, False], ids=["kept", "not kept"])
def test_a_renewal_of_unknown_fate_is_asked_after_and_the_grant_held_on(far, times, kept):
    grant = far.bench.take(far.lock())
    lost = lose(far, times=times, kept=kept)
    grant.note("working", 1, 2)
    assert grant.still_mine()
    assert lost[0].times == 0
    assert (far.bench.read()["name"], far.bench.read()["phase"]) == ("far", "working")
    assert isinstance(far.bench.lock().try_acquire(KEY), Owner)
    assert grant.still_mine()
    grant.release()
    assert far.bench.read()["name"] == ""


def test_a_release_whose_answer_was_lost_is_one(far):
    grant = far.bench.take(far.lock())
    lose(far, times=1, kept=True)
    grant.release()
    assert (far.bench.read()["name"], far.bench.read()["epoch"]) == ("", 1)
    assert far.bench.take(far.bench.lock()).epoch == 2


def test_a_release_that_was_lost_fails_nobody_and_frees_the_key_after_a_lease(far):
    grant = far.bench.take(far.lock(lease=20.0))
    far.proxy.refuse()
    grant.release()
    far.proxy.accept()
    assert not grant.still_mine()
    successor, took = far.bench.waiter().take()
    assert (successor.epoch, took) == (2, 20.0)


def test_a_release_after_a_renewal_of_unknown_fate_frees_the_key(far):
    grant = far.bench.take(far.lock(lease=SHORT))
    lost = lose(far, times=1, kept=True, reads=1)
    runs.eventually(lambda: lost[0].times == 0 and lost[2].times == 0, 30)
    grant.release()
    assert far.bench.read()["name"] == ""


def test_a_service_that_is_away_for_longer_than_a_lease_aborts_nothing(far):
    grant = far.bench.take(far.lock(lease=1.0))
    far.proxy.refuse()
    until = time.monotonic() + 2.0
    while time.monotonic() < until:
        grant.note("downloading", 1, 2)
        time.sleep(0.05)
    far.proxy.accept()
    assert grant.still_mine()
    assert far.bench.read()["phase"] == "downloading"
    seen = far.bench.read()["beat"]
    runs.eventually(lambda: far.bench.read()["beat"] > seen, 30)
    grant.note("downloading", 2, 2)


def test_a_service_that_comes_back_while_it_is_asked_for_the_last_time_is_waited_for(far):
    grant = far.bench.take(far.lock())
    far.proxy.refuse()
    back = threading.Timer(0.5, far.proxy.accept)
    back.start()
    assert grant.still_mine()
    back.join()


def test_a_service_that_stays_away_proves_nothing_so_nothing_is_published(far):
    grant = far.bench.take(far.lock(lease=1.0))
    far.proxy.refuse()
    assert not grant.still_mine()
    grant.release()


def test_a_service_that_answers_with_errors_is_one_that_is_away(far):
    grant = far.bench.take(far.lock(lease=1.0))
    far.proxy.fault(
        status=503, body=b"upstream connect error", headers={"Content-Type": "text/html"}
    )
    assert not grant.still_mine()
    with pytest.raises(LockError) as failed:
        far.lock().try_acquire(KEY)
    assert failed.value.hint
    far.proxy.faults.clear()
    assert grant.still_mine()


class Endless:
    """A source whose one file has no end but `stop`; `begun` once bytes come."""

    def __init__(self):
        self.begun, self.stop = threading.Event(), threading.Event()

    def files(self, _model):
        return (SourceFile("model.safetensors", 1 << 20, {"sha256": "0" * 64}),)

    def describe(self, _model, file):
        return file

    def open(self, _model, _file, _start, _end):
        return self

    digests = MappingProxyType({})

    def readinto(self, buffer):
        if self.stop.wait(0.01):
            raise SourceError("stopped by the test", reason="unreachable")
        self.begun.set()
        return len(buffer[:1])

    def close(self):
        pass


@pytest.fixture
def endless():
    source = Endless()
    yield source
    source.stop.set()


def test_a_download_ends_once_another_has_taken_over_from_an_owner_that_was_cut_off(far, endless):
    volume = Volume(far.bench.at["volume"])
    grant = far.bench.take(far.lock(lease=SHORT))
    raised = []

    def download():
        try:
            weights.fill(
                volume,
                KEY,
                model=ModelRef("hf", "org/model", "0" * 40),
                source=endless,
                held=Held("absent", ""),
                after=0,
                grant=grant,
                wanted=endless.files(None),
                meter=Lines("weights"),
                places=(),
                writing=Writing(),
            )
        except (LostGrantError, SourceError) as exc:
            raised.append(exc.reason)

    thread = threading.Thread(target=download)
    thread.start()
    assert endless.begun.wait(30)
    far.proxy.refuse()
    theirs, took = far.bench.waiter().take(step=0.5)
    assert (theirs.epoch, took) == (2, SHORT)
    assert thread.is_alive(), "no answer is no proof of a loss"
    before = far.bench.kept()
    far.proxy.accept()
    thread.join(30)
    assert raised == ["lost-lock"]
    assert not grant.still_mine()
    grant.release()
    assert far.bench.kept() == before
    assert theirs.still_mine()
    assert (runs.published(volume.root), runs.listing(volume.staging)) == ({}, [])
