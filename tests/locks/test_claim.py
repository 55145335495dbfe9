"""`Claims`: lock, then look again; a wait is told, is bounded, and can be interrupted."""

import os
import signal
import sys
import threading
import time

import pytest
from structlog.testing import capture_logs

sys.path.insert(0, os.path.dirname(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import runs
from owner import KEY

from warmer.errors import BusyError, LockError, TerminatedError, VolumeError
from warmer.fill import claim
from warmer.fill.claim import Claims
from warmer.fill.locks import UnansweredError
from warmer.fill.locks.pace import Pace
from warmer.fill.locks.record import Owner

LONG = 120.0
THEM = Owner(epoch=4, name="pod-7/42", nonce="n")


class Grant:
    epoch = 5
    took_over = False

    def __init__(self):
        self.released = 0

    def release(self):
        self.released += 1


class Script:
    """A lock that answers as it is told: grants, owners, errors or functions; the last for ever."""

    def __init__(self, *answers, least=0.01):
        self.pace = Pace(least)
        self.asked = 0
        self.left = 0
        self._answers = list(answers)

    def try_acquire(self, key):
        assert key == KEY
        self.asked += 1
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer() if callable(answer) else answer

    def leave(self, key):
        assert key == KEY
        self.left += 1


class Looks:
    """`filled`: answers as it is told, the last for ever; counts."""

    def __init__(self, *answers):
        self.taken = 0
        self._answers = list(answers)

    def __call__(self):
        self.taken += 1
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(claim, "_LOOK", 0.05)


def hung(event):
    """Be a call that returns only when the event comes; give back what is behind it."""
    assert event.wait(LONG)
    return event.answer


@pytest.fixture
def hanging():
    """A lock whose call hangs until `event` is set, and the grant it answers with then."""
    event = threading.Event()
    event.answer = Grant()
    yield Script(lambda: hung(event)), event
    event.set()


def test_what_is_there_already_needs_no_lock():
    opened = []
    with Claims(lambda: opened.append(1)).claim(KEY, wait=LONG, filled=Looks(True)) as grant:
        assert grant is None
    assert opened == []


def test_a_free_key_is_granted_and_released_after_the_block():
    grant = Grant()
    looks = Looks(False)
    with Claims(lambda: Script(grant)).claim(KEY, wait=LONG, filled=looks) as found:
        assert (found, grant.released) == (grant, 0)
    assert grant.released == 1
    assert looks.taken == 2, "before the lock, and under it"


def test_a_block_that_fails_releases_too():
    grant = Grant()
    with pytest.raises(ValueError, match="in the block"):
        with Claims(lambda: Script(grant)).claim(KEY, wait=LONG, filled=Looks(False)):
            raise ValueError("in the block")
    assert grant.released == 1


def test_what_was_filled_while_the_lock_was_asked_for_is_found_under_it():
    grant = Grant()
    claims = Claims(lambda: Script(grant))
    with claims.claim(KEY, wait=LONG, filled=Looks(False, True)) as found:
        assert (found, grant.released) == (None, 1)
    assert grant.released == 1


def test_a_look_under_the_lock_that_fails_gives_the_lock_back():
    grant = Grant()
    looks = Looks(False, VolumeError("gone", reason="io"))
    with pytest.raises(VolumeError):
        with Claims(lambda: Script(grant)).claim(KEY, wait=LONG, filled=looks):
            pass
    assert grant.released == 1


def test_a_waiter_looks_often_and_asks_the_lock_only_now_and_then():
    lock = Script(THEM, least=LONG)
    looks = Looks(*[False] * 6, True)
    with Claims(lambda: lock).claim(KEY, wait=LONG, filled=looks) as grant:
        assert grant is None
    assert (looks.taken, lock.asked) == (7, 1)


def test_a_waiter_asks_again_and_gets_what_was_given_back():
    grant = Grant()
    lock = Script(THEM, THEM, THEM, grant)
    with Claims(lambda: lock).claim(KEY, wait=LONG, filled=Looks(False)) as found:
        assert (found, lock.asked) == (grant, 4)


def test_one_lock_serves_all_claims_of_a_run_so_that_what_was_seen_of_an_owner_lasts():
    opened = []

    def open_lock():
        opened.append(Script(Grant()))
        return opened[-1]

    claims = Claims(open_lock)
    for _ in range(3):
        with claims.claim(KEY, wait=LONG, filled=Looks(False)):
            pass
    assert [lock.asked for lock in opened] == [3]


def test_a_wait_that_is_over_says_for_whom_it_was():
    with pytest.raises(BusyError) as busy:
        with Claims(lambda: Script(THEM)).claim(KEY, wait=0.3, filled=Looks(False)):
            pass
    error = busy.value
    assert (error.exit_code, error.reason) == (3, "busy")
    assert "pod-7/42" in error.message
    assert KEY.short in error.message
    assert "--wait" in error.hint


@pytest.mark.parametrize("failure", [LockError, VolumeError])
def test_a_lock_that_fails_ends_the_wait_as_it_failed(failure):
    lock = Script(THEM, failure("why", reason="a reason", hint="a hint"))
    with pytest.raises(failure) as failed:
        with Claims(lambda: lock).claim(KEY, wait=LONG, filled=Looks(False)):
            pass
    assert (failed.value.reason, failed.value.hint) == ("a reason", "a hint")


def test_a_lock_that_does_not_answer_is_borne_with_for_a_while(monkeypatch):
    monkeypatch.setattr(claim, "_SILENT", 1.0)
    silent, grant = UnansweredError("no answer", reason="lock-unreachable"), Grant()
    lock = Script(silent, silent, THEM, silent, grant)
    with capture_logs() as logs:
        with Claims(lambda: lock).claim(KEY, wait=LONG, filled=Looks(False)) as found:
            assert (found, lock.asked) == (grant, 5)
    told = [line for line in logs if line["event"] == "the lock does not answer, asking again"]
    assert len(told) == 2, "once for each time it falls silent"
    lock = Script(silent)
    with pytest.raises(UnansweredError):
        with Claims(lambda: lock).claim(KEY, wait=LONG, filled=Looks(False)):
            pass
    assert lock.asked > 2


def test_a_lock_that_gives_no_answer_when_it_is_opened_is_opened_again(monkeypatch):
    monkeypatch.setattr(claim, "_SILENT", 1.0)
    silent, grant, opened = UnansweredError("no answer", reason="lock-unreachable"), Grant(), []

    def open_lock():
        opened.append(1)
        if len(opened) < 3:
            raise silent
        return Script(grant)

    with Claims(open_lock).claim(KEY, wait=LONG, filled=Looks(False)) as found:
        assert (found, len(opened)) == (grant, 3)


def test_a_lock_call_that_hangs_is_bounded_by_the_wait_and_its_late_grant_is_given_back(
    hanging, monkeypatch
):
    monkeypatch.setattr(claim, "_ANSWER", 0.1)
    lock, event = hanging
    with pytest.raises(BusyError) as busy:
        with Claims(lambda: lock).claim(KEY, wait=0.7, filled=Looks(False)):
            pass
    assert "the lock to answer" in busy.value.message
    assert event.answer.released == 0
    event.set()
    runs.eventually(lambda: event.answer.released == 1, 30)


def test_who_waits_for_nobody_lets_a_free_lock_answer_that_takes_its_time(hanging):
    """As one whose client has yet to be imported, on a node that is busy."""
    lock, event = hanging
    threading.Timer(1.2, event.set).start()
    with Claims(lambda: lock).claim(KEY, wait=0.0, filled=Looks(False)) as grant:
        assert grant is event.answer
    with pytest.raises(BusyError) as busy:
        with Claims(lambda: Script(THEM)).claim(KEY, wait=0.0, filled=Looks(False)):
            pass
    assert "pod-7/42" in busy.value.message


def test_who_stops_waiting_leaves_and_who_was_granted_does_not(hanging, monkeypatch):
    monkeypatch.setattr(claim, "_ANSWER", 0.1)
    lock = Script(THEM, Grant())
    with Claims(lambda: lock).claim(KEY, wait=LONG, filled=Looks(False)):
        pass
    assert lock.left == 0, "it was granted"
    lock = Script(THEM)
    with Claims(lambda: lock).claim(KEY, wait=LONG, filled=Looks(False, False, True)):
        pass
    assert lock.left == 1, "it was filled"
    lock, event = hanging
    event.answer = THEM
    with pytest.raises(BusyError):
        with Claims(lambda: lock).claim(KEY, wait=0.1, filled=Looks(False)):
            pass
    assert lock.left == 1
    event.set()
    runs.eventually(lambda: lock.left == 2, 30)  # once more after the question that came late


def test_a_name_that_another_wrote_stays_in_its_line():
    them = Owner(epoch=1, name="pod\x1b[31m\n9")
    with pytest.raises(BusyError) as busy:
        with Claims(lambda: Script(them)).claim(KEY, wait=0.0, filled=Looks(False)):
            pass
    assert "pod?[31m?9" in busy.value.message


def test_a_late_grant_within_the_wait_is_taken(hanging):
    lock, event = hanging
    threading.Timer(1.2, event.set).start()
    with Claims(lambda: lock).claim(KEY, wait=LONG, filled=Looks(False)) as grant:
        assert (grant, grant.released) == (event.answer, 0)
    assert lock.asked == 1


@pytest.mark.parametrize("hangs", [True, False], ids=["in a lock call that hangs", "between looks"])
def test_a_signal_interrupts_a_wait_and_no_grant_is_left_behind(hanging, hangs):
    lock, event = hanging

    def stopped(signum, _frame):
        raise TerminatedError(signum)

    before = signal.signal(signal.SIGALRM, stopped)
    signal.setitimer(signal.ITIMER_REAL, 1.0)
    try:
        with pytest.raises(TerminatedError):
            asked = lock if hangs else Script(THEM, least=LONG)
            with Claims(lambda: asked).claim(KEY, wait=LONG, filled=Looks(False)):
                pass
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    event.set()
    if hangs:
        runs.eventually(lambda: event.answer.released == 1, 30)


def test_a_waiter_says_whom_it_waits_for_and_how_far_that_one_is(file_bench, monkeypatch):
    monkeypatch.setattr(claim, "_SAY_EVERY", 0.2)
    child = file_bench.child("pod-7/42", lease=1.5)
    child.ask("take", KEY)
    with capture_logs() as logs:

        def filled():
            if len(logs) == 2:  # its record will tell, a beat later
                child.ask("note", KEY, phase="downloading", done=5, total=7)
            return len(logs) > 2 and "phase" in logs[-1]

        with Claims(file_bench.lock).claim(KEY, wait=LONG, filled=filled) as grant:
            assert grant is None
    waits = [line for line in logs if line["event"] == "waiting"]
    assert waits[0]["owner"] == "pod-7/42"
    assert "phase" not in waits[0]
    assert (waits[0]["kind"], waits[0]["key"]) == ("weights", KEY.short)
    assert 0 <= waits[0]["for_s"] <= waits[-1]["for_s"]
    assert waits[-1]["phase"] == "downloading"
    assert (waits[-1]["bytes"], waits[-1]["of"]) == (5, 7)


def test_a_waiter_succeeds_an_owner_that_dies_while_it_waits(bench):
    child = bench.child(lease=1.0)
    child.ask("take", KEY)
    lock = bench.lock()
    lock.pace = Pace(0.2, 1.0)
    threading.Timer(1.0, child.kill).start()
    looks = Looks(False)
    with Claims(lambda: lock).claim(KEY, wait=LONG, filled=looks) as grant:
        assert grant.epoch == 2
        assert bench.read()["name"] == "me"
    assert looks.taken > 2
    assert bench.read()["name"] == ""


def test_a_wait_starts_no_threads_that_stay():
    before = threading.active_count()
    lock = Script(*[THEM] * 5, Grant())
    with Claims(lambda: lock).claim(KEY, wait=LONG, filled=Looks(False)):
        pass
    until = time.monotonic() + 30
    while threading.active_count() > before:
        assert time.monotonic() < until
        time.sleep(0.01)
