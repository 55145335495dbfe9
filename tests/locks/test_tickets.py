"""Tickets, where no lock excludes: one fills at a time once settled, and double work harms nothing."""

import os
import sys
import time

import pytest

sys.path.insert(0, os.path.dirname(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import runs
import volumes
from contend import contend_all
from contract import TicketBench
from owner import KEY, OTHER

from warmer.errors import BusyError
from warmer.fill.claim import Claims
from warmer.fill.locks import tickets
from warmer.fill.locks.record import Owner
from warmer.layout import Volume

PODS, ROUNDS = 5, 6


@pytest.fixture
def bench(tmp_path, monkeypatch):
    monkeypatch.setattr(tickets, "_SETTLE", tickets._SETTLE)  # which `owner` changes
    bench = TicketBench(f"{tmp_path}/pods", settle=0.0)
    yield bench
    bench.close()


def test_of_many_pods_that_see_each_other_one_fills_at_a_time(tmp_path):
    at = {"mechanism": "tickets", "volume": str(tmp_path / "volume")}
    # Longer than a refused pod waits: else who had it has it again, on a busy machine six times.
    how = {"processes": PODS, "rounds": ROUNDS, "rest": 1.0}
    grants, overlaps, refusals = contend_all(at, tmp_path / "seen", **how)
    assert len(grants) >= ROUNDS
    assert overlaps == 0
    assert len({pid for _, pid in grants}) > 1
    assert refusals > 0


def test_a_ticket_comes_first_only_once_others_have_had_time_to_see_it(tmp_path, monkeypatch):
    monkeypatch.setattr(tickets, "_SETTLE", 0.7)
    bench = TicketBench(str(tmp_path), settle=0.7)
    lock = bench.lock()
    began = time.monotonic()
    assert lock.try_acquire(KEY) == Owner(name="tickets of other pods")
    assert len(bench.tickets()) == 1
    grant = runs.eventually(lambda: not isinstance(g := lock.try_acquire(KEY), Owner) and g, 30)
    assert time.monotonic() - began >= 0.7
    grant.release()


def test_who_waits_is_told_who_fills_and_how_far_it_is(bench):
    child = bench.child("pod-7/42", lease=1.5)
    assert child.ask("take", KEY, seconds=60)["epoch"] == 1
    child.ask("note", KEY, phase="downloading", done=5, total=7)
    lock = bench.lock()
    found = runs.eventually(lambda: (o := lock.try_acquire(KEY)).phase == "downloading" and o, 30)
    assert (found.name, found.epoch, found.done, found.total) == ("pod-7/42", 1, 5, 7)
    assert not isinstance(lock.try_acquire(OTHER), Owner), "another key has tickets of its own"


def test_a_filler_comes_before_all_who_wait_whatever_their_tickets(bench):
    grants = [bench.take(bench.lock("first"))]
    for number in range(8):  # half of these draw a ticket that would win
        assert bench.lock(f"later {number}").try_acquire(KEY).name == "first"
    assert grants[0].still_mine()


@pytest.mark.parametrize("end", ["kill", "stop"])
def test_a_filler_that_shows_no_life_is_succeeded_after_its_lease(bench, end):
    child = bench.child("dead", lease=20.0)
    child.ask("take", KEY, seconds=60)
    waiter = bench.waiter(lease=10.0)
    assert waiter.look().name == "dead"
    getattr(child, end)()
    grant, took = waiter.take()
    assert took == 20.0
    assert len(bench.tickets()) == 1, "the dead one's is gone"
    grant.release()
    assert bench.tickets() == []


def test_a_filler_that_lives_keeps_its_turn(bench):
    child = bench.child("busy", lease=4.0)
    child.ask("take", KEY, seconds=60)
    child.tell("compute", KEY, seconds=10.0)
    lock = bench.lock()
    beats = set()

    def seen():
        found = lock.try_acquire(KEY)
        assert found.name == "busy"
        beats.add(found.beat)
        return len(beats) > 6  # more than two leases of beats

    runs.eventually(seen, 60)
    assert child.hear()["steps"]


@pytest.mark.parametrize("ticket", [b"", b"\xff" * 50, b'{"epoch": 3, "name": "x', b"[" * 3000])
def test_a_ticket_that_cannot_be_read_is_waited_for_a_lease_and_removed(bench, ticket):
    bench.plant(ticket, name="0123456789abcdef")
    bench.plant(ticket, name="a-file-of-somebody")
    grant, took = bench.waiter(lease=10.0).take()
    assert took == 10.0
    assert {path.name for path in bench.tickets()} == {"a-file-of-somebody", grant.owner.nonce}


def test_two_that_cannot_see_each_other_both_fill_and_one_publishes(bench):
    volume = Volume(bench.at["volume"])
    bench.directory().parent.mkdir(parents=True)
    # Each mounts a directory of its own where the other's tickets would be.
    apart = 'mount --make-rprivate / && mount -t tmpfs apart "$1" && shift && exec "$@"'
    prefix = ("unshare", "-m", "sh", "-c", apart, "sh", str(bench.directory().parent))
    pods = [bench.start(name, prefix=prefix) for name in ("one", "other")]
    for pod in pods:
        pod.ready().tell("take", KEY, seconds=60)
    for pod in pods:
        assert pod.hear()["epoch"] == 1
    for pod in pods:
        pod.ask("stage", KEY)
    for pod in pods:
        assert pod.ask("mine", KEY) == {"mine": True}
    outcomes = [pod.ask("publish", KEY) for pod in pods]
    assert outcomes[0] == {"lost": None, "generation": 1}
    assert outcomes[1]["lost"] == "lost-race"
    assert volumes.assert_invariants(volume.root) == [("weights", KEY.digest, 1)]


def test_a_zombie_that_publishes_late_replaces_nothing(bench):
    volume = Volume(bench.at["volume"])
    child = bench.child("zombie", lease=20.0)
    child.ask("take", KEY, seconds=60)
    child.ask("stage", KEY)
    child.stop()
    grant, _ = bench.waiter().take()
    volumes.commit(volume, *volumes.stage(volume, KEY), grant=grant)
    grant.release()
    before = runs.published(volume.root)
    child.wake()
    assert child.ask("publish", KEY)["lost"] == "lost-lock", "its ticket is gone"
    child.ask("release", KEY)
    assert runs.published(volume.root) == before
    assert bench.tickets() == []


def test_a_release_removes_the_ticket_and_may_be_said_twice(bench):
    grant = bench.take(bench.lock())
    assert len(bench.tickets()) == 1
    assert grant.still_mine()
    grant.release()
    grant.release()
    assert bench.tickets() == []
    assert not grant.still_mine()
    assert bench.tickets() == []


@pytest.mark.parametrize("end", ["filled", "busy"])
def test_who_stops_waiting_takes_its_ticket_with_it(bench, end):
    grant = bench.take(bench.lock("filler"))
    looks = iter([False, False, False])
    wait = 60.0 if end == "filled" else 0.3
    filled = (lambda: next(looks, True)) if end == "filled" else (lambda: False)
    before = bench.tickets()
    try:
        with Claims(bench.lock).claim(KEY, wait=wait, filled=filled) as found:
            assert found is None
    except BusyError:
        assert end == "busy"
    assert bench.tickets() == before
    grant.release()


def test_a_grant_by_ticket_says_that_it_excludes_nobody_and_those_by_locks_that_they_do(
    tmp_path, bench, benches
):
    grants = [one.take(one.lock()) for one in benches]
    assert [grant.exclusive for grant in grants] == [True] * 3
    lock = bench.lock()
    grant = runs.eventually(lambda: not isinstance(g := lock.try_acquire(KEY), Owner) and g, 30)
    assert grant.exclusive is False
    grant.release()
