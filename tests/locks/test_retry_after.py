"""Lock services that say when to ask again: they are obeyed, as far as a lease and a wait allow."""

import os
import sys
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

sys.path.insert(0, os.path.dirname(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import owner
import s3
from owner import KEY, OTHER
from proxy import Proxy
from runs import eventually

from warmer.errors import BusyError
from warmer.fill import claim, retryafter
from warmer.fill.claim import Claims
from warmer.fill.locks import BEATS, LEASE, UnansweredError, lease
from warmer.fill.locks.pace import obeyed
from warmer.fill.locks.record import Owner

SHORT = 3.0
"""A lease; what is obeyed of a service's word is a third of it."""
HOSTILE = "9" * 400


class Timed(Proxy):
    """Keeps when each request came, and whether it was refused."""

    def __init__(self, target):
        super().__init__(target)
        self.came = []

    def take(self, head):
        fault = super().take(head)
        self.came.append((time.monotonic(), fault.status))
        return fault

    def refuse_with(self, after, *, status=429, times=1, method=None):
        """Answer so, in S3's form; the API server's client takes what is not JSON for a proxy's."""
        self.came.clear()
        body = s3.refusal("SlowDown", "as the service says it")
        headers = {"Retry-After": after}
        return self.fault(method=method, status=status, times=times, body=body, headers=headers)

    @property
    def gap(self):
        """Seconds from the first refusal to the next request."""
        at = next(n for n, (_, status) in enumerate(self.came) if status)
        return self.came[at + 1][0] - self.came[at][0]


@pytest.fixture
def far(reached):
    """A bench, a way to open its lock anew through a proxy, and the proxy."""
    with reached(Timed) as (bench, proxy):
        yield bench, proxy
        proxy.faults.clear()
        bench.close()


@pytest.fixture
def quick(monkeypatch):
    """Have waiters ask often where they are told nothing: a few tenths of a second."""
    monkeypatch.setattr(claim, "_SILENT", 3.0)


def opened(bench, seconds=LEASE):
    return owner.open_lock(bench.at, me="far", lease=seconds)


def test_a_waiter_asks_again_after_the_seconds_that_it_is_told_and_not_before(far, quick):
    bench, proxy = far
    lock = opened(bench)
    proxy.refuse_with("1")
    with Claims(lambda: lock).claim(KEY, wait=60.0, filled=lambda: False) as grant:
        assert grant is not None
    assert proxy.gap >= 1.0


def test_a_waiter_asks_again_at_the_date_that_it_is_told_and_not_before(far, quick):
    bench, proxy = far
    lock = opened(bench)
    date = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=2)
    due = time.monotonic() + (date - datetime.now(UTC)).total_seconds()
    proxy.refuse_with(format_datetime(date, usegmt=True), status=503)
    with Claims(lambda: lock).claim(KEY, wait=60.0, filled=lambda: False) as grant:
        assert grant is not None
    assert proxy.came[1][0] >= due - 0.1, "two clocks, and neither was set meanwhile"


def test_a_lock_that_is_opened_is_opened_again_when_it_is_told(bucket, quick, monkeypatch):
    at = {"mechanism": "s3", "place": bucket, "prefix": "told"}
    with Timed(s3.seaweed().endpoint) as proxy:
        for name, value in s3.seaweed().environment(endpoint=proxy.url).items():
            monkeypatch.setenv(name, value)
        proxy.refuse_with("1")
        claims = Claims(lambda: owner.open_lock(at, me="me", lease=LEASE))
        with claims.claim(KEY, wait=60.0, filled=lambda: False) as grant:
            assert grant is not None
    assert proxy.gap >= 1.0


@pytest.mark.parametrize("after", ["3600", HOSTILE])
def test_no_service_is_obeyed_for_longer_than_from_one_renewal_to_the_next(far, quick, after):
    bench, proxy = far
    lock = opened(bench, SHORT)
    claims = Claims(lambda: lock)
    with claims.claim(OTHER, wait=60.0, filled=lambda: False):
        pass
    proxy.refuse_with(after)
    with claims.claim(KEY, wait=60.0, filled=lambda: False) as grant:
        assert grant is not None
    own = claim._SILENT / 10 * 1.5
    assert own < proxy.gap < SHORT, "later than unasked, and within a lease"


def test_a_wait_ends_when_it_should_whatever_it_is_told(far):
    bench, proxy = far
    lock = opened(bench)
    proxy.refuse_with("3600", times=None)
    wait, began = 2.0, time.monotonic()
    with pytest.raises((BusyError, UnansweredError)):
        with Claims(lambda: lock).claim(KEY, wait=wait, filled=lambda: False):
            pass
    assert wait - 1.0 <= time.monotonic() - began < 4 * wait
    assert len(proxy.came) > 1, "in its last second it asks once more"


def test_a_piece_that_is_filled_meanwhile_is_found_while_the_lock_is_left_alone(far):
    bench, proxy = far
    lock = opened(bench)
    proxy.refuse_with("3600", times=None)
    began = time.monotonic()
    with Claims(lambda: lock).claim(
        KEY, wait=60.0, filled=lambda: time.monotonic() > began + 1.0
    ) as grant:
        assert grant is None
    assert len(proxy.came) == 1


def test_an_owner_that_is_told_to_wait_for_ever_renews_within_its_lease(far):
    bench, proxy = far
    lock = opened(bench, SHORT)
    waiter = bench.lock("near", lease=SHORT)
    grant = bench.take(lock)
    refused = proxy.refuse_with(HOSTILE, method="PUT")
    eventually(lambda: refused.times == 0)
    beat = bench.read()["beat"]
    until = time.monotonic() + 1.5 * SHORT
    while time.monotonic() < until:
        assert isinstance(waiter.try_acquire(KEY), Owner), "nobody succeeds it"
        time.sleep(0.2)
    assert bench.read()["beat"] > beat
    assert proxy.gap < SHORT
    assert grant.still_mine()
    grant.release()


def test_the_question_before_a_publish_is_asked_again_when_it_is_told(far):
    bench, proxy = far
    lock = opened(bench)
    grant = bench.take(lock)
    refused = proxy.refuse_with("2", method="PUT")
    assert grant.still_mine()
    assert refused.times == 0
    assert 2.0 <= proxy.gap < LEASE / BEATS, "nor was anything read meanwhile"
    grant.release()


def test_the_question_before_a_publish_is_no_longer_put_off_than_the_lease_allows(far):
    bench, proxy = far
    grant = bench.take(opened(bench, SHORT))
    proxy.refuse_with("3600", times=None)
    began = time.monotonic()
    assert not grant.still_mine(), "it cannot prove that the lock is its own"
    assert SHORT <= time.monotonic() - began < 3 * SHORT


def test_a_grant_that_was_written_though_the_answer_says_wait_is_had_at_the_next_question(
    lease_bench, lease_server, quick
):
    lock = opened(lease_bench)
    fault = lease_server.fault(method="POST", status=503, applied=True, retry_after=1, times=1)
    try:
        with Claims(lambda: lock).claim(KEY, wait=60.0, filled=lambda: False) as grant:
            assert (fault.times, grant.epoch) == (0, 1)
            assert grant.still_mine()
    finally:
        lease_server.faults.clear()
    assert lease_bench.read()["name"] == ""


def test_who_no_longer_waits_does_not_take_what_it_asked_for_then(lease_bench, lease_server):
    lock = opened(lease_bench)
    lease_server.fault(method="POST", status=503, applied=True, retry_after=1, times=1)
    try:
        with pytest.raises(UnansweredError):
            lock.try_acquire(KEY)
    finally:
        lease_server.faults.clear()
    lock.leave(KEY)
    assert isinstance(lock.try_acquire(KEY), Owner)


def test_a_release_waits_for_a_moment_where_it_is_told_to(far):
    bench, proxy = far
    grant = bench.take(opened(bench))
    proxy.refuse_with("1")
    grant.release()
    assert proxy.gap >= 1.0
    assert bench.read()["name"] == ""


def test_a_release_that_is_told_to_wait_for_long_leaves_it_to_the_lease(far):
    bench, proxy = far
    grant = bench.take(opened(bench))
    proxy.refuse_with("3600")
    began = time.monotonic()
    grant.release()
    assert time.monotonic() - began < lease._WORTH
    assert bench.read()["name"] == "far"


@pytest.mark.parametrize(
    ("text", "least", "most"),
    [
        ("7", 7.0, 7.0),
        (" 7 ", 7.0, 7.0),
        (HOSTILE, float("inf"), float("inf")),
        ("Wed, 21 Oct 2999 07:28:00 GMT", 1e9, 1e12),
    ],
)
def test_seconds_and_dates_are_read(text, least, most):
    assert least <= retryafter.seconds(text) <= most


@pytest.mark.parametrize(
    "text",
    [
        *("", "soon", "-5", "1e9", "nan", "inf", "\0"),
        "Wed, 21 Oct 2015 07:28:00 GMT",
        "Wed, 21 Oct 2999 07:28:00",
        f"Wed, 21 Oct {HOSTILE} 07:28:00 GMT",
        "Wed, 99 Oct 2999 07:28:00 GMT",
    ],
)
def test_what_says_no_time_to_come_says_nothing(text):
    assert retryafter.seconds(text) is None


@pytest.mark.parametrize("chance", [0.0, 0.5, 1.0])
def test_what_is_obeyed_is_what_was_told_up_to_a_third_of_a_lease(chance):
    assert obeyed(None, chance=chance) == 0.0
    assert 4.0 <= obeyed(4.0, lease=30.0, chance=chance) < 5.0
    for told in (10.0, 3600.0, float("inf")):
        assert 8.0 < obeyed(told, lease=30.0, chance=chance) <= 30.0 / BEATS + 1e-9
