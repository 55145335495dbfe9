"""What every lock promises, whatever keeps it: one suite, three locks, state seen by a back door."""

import os
import sys
import time

import pytest

sys.path.insert(0, os.path.dirname(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import runs
import volumes
from contract import LEASE, STRANGER
from owner import KEY, OTHER

from warmer.fill.locks import LostGrantError
from warmer.fill.locks.record import Owner
from warmer.layout import Volume

SHORT, BEATING = 3.0, 1.5
"""Leases of owners that must live through a wait, and of those whose next beat a test waits for."""


def test_two_owners_never_both_hold_a_key_and_other_keys_are_free(bench):
    assert bench.child().ask("take", KEY)["epoch"] == 1
    lock = bench.lock()
    assert isinstance(lock.try_acquire(KEY), Owner)
    grant = bench.take(lock, OTHER)
    assert isinstance(lock.try_acquire(OTHER), Owner), "asked by who has it"
    assert isinstance(bench.lock("me too").try_acquire(OTHER), Owner), "in the same process"
    grant.release()
    bench.take(lock, OTHER)


def test_a_refusal_tells_who_has_it_and_what_it_is_doing(bench):
    child = bench.child("pod-7/42", lease=BEATING)
    child.ask("take", KEY)
    lock = bench.lock()
    found = lock.try_acquire(KEY)
    assert (found.name, found.epoch, found.node, found.lease) == ("pod-7/42", 1, "a node", BEATING)
    assert (found.phase, found.done, found.total) == ("", 0, 0)
    child.ask("note", KEY, phase="downloading", done=5, total=7)
    began = bench.read()["beat"]
    runs.eventually(lambda: bench.read()["beat"] >= began + 2, 30)
    found = lock.try_acquire(KEY)
    assert (found.phase, found.done, found.total) == ("downloading", 5, 7)
    record = bench.read()
    assert (record["name"], record["epoch"], record["done"]) == ("pod-7/42", 1, 5)


def test_the_epoch_grows_over_releases_kills_and_takeovers(bench):
    epochs, took_over, waiter = [], [], bench.waiter()
    for ends in ("release", "kill", "stop", "release"):
        child = bench.child(f"a name that is longer before it is {ends}ed")
        grant, _ = waiter.take()
        epochs += [grant.epoch]
        took_over += [grant.took_over]
        grant.release()
        epochs += [child.ask("take", KEY)["epoch"]]
        if ends == "release":
            child.ask("release", KEY)
        elif ends == "kill":
            child.kill()
        else:
            child.stop()
    grant, _ = waiter.take()
    assert [*epochs, grant.epoch] == list(range(1, 10))
    assert [*took_over, grant.took_over] == [False, False, True, True, False]
    assert bench.read()["epoch"] == 9


@pytest.mark.parametrize("lease", [10.0, 40.0])
def test_a_killed_owner_is_succeeded_after_its_own_lease_and_not_before(bench, lease):
    child = bench.child(lease=lease)
    child.ask("take", KEY)
    waiter = bench.waiter(lease=20.0)
    assert isinstance(waiter.look(), Owner)
    child.kill()
    grant, took = waiter.take()
    assert (grant.epoch, took) == (2, 0.0 if bench.at_once else lease)
    assert bench.read()["name"] == "me"


def test_time_in_which_a_waiter_did_not_look_is_not_seen(bench):
    child = bench.child()
    child.ask("take", KEY)
    child.stop()
    waiter = bench.waiter()
    for _ in range(5):
        assert isinstance(waiter.look(after=3600.0), Owner), "it was stopped itself for an hour"
    assert waiter.take()[0].epoch == 2


def test_a_sign_of_life_starts_the_lease_anew(bench):
    child = bench.child(lease=LEASE)
    child.ask("take", KEY)
    waiter = bench.waiter()
    for _ in range(4):
        for _ in range(11):  # from the first look on, 25 s
            assert isinstance(waiter.look(after=2.5), Owner)
        assert child.ask("mine", KEY) == {"mine": True}
    child.stop()
    assert waiter.take()[1] == LEASE


def test_a_stopped_owner_is_taken_over_after_its_lease_and_learns_so_at_its_next_question(bench):
    child = bench.child("zombie", lease=60.0)
    child.ask("take", KEY)
    child.stop()
    grant, took = bench.waiter(lease=600.0).take()
    assert (grant.epoch, took) == (2, 60.0)
    before = bench.kept()
    child.wake()
    assert child.ask("mine", KEY) == {"mine": False}
    child.ask("release", KEY)
    assert bench.kept() == before, "it wrote over its successor"
    assert grant.still_mine()


def test_an_owner_that_lets_go_without_asking_lets_go_of_nothing_that_is_anothers(bench):
    child = bench.child("zombie", lease=60.0)
    child.ask("take", KEY)
    child.stop()
    grant, _ = bench.waiter(lease=600.0).take()
    before = bench.kept()
    child.wake()
    child.ask("release", KEY)
    assert bench.kept() == before
    assert grant.still_mine()
    assert child.ask("mine", KEY) == {"mine": False}


def test_a_stopped_owner_that_was_taken_over_has_its_work_ended_by_its_heartbeat(bench):
    child = bench.child("zombie", lease=BEATING)
    child.ask("take", KEY)
    child.stop()
    grant, _ = bench.waiter(lease=600.0).take()
    before = bench.kept()
    child.wake()
    runs.eventually(lambda: child.ask("note", KEY)["lost"] == "lost-lock", 30)
    assert child.ask("mine", KEY) == {"mine": False}
    child.ask("release", KEY)
    assert child.ask("note", KEY)["lost"] == "lost-lock"
    assert bench.kept() == before
    assert grant.still_mine()


@pytest.mark.parametrize("successor", ["still fills", "has published"])
def test_a_zombie_publishes_nothing(bench, successor):
    volume = bench.at["volume"]
    child = bench.child("zombie", lease=60.0)
    child.ask("take", KEY)
    child.ask("stage", KEY)
    child.stop()
    grant, _ = bench.waiter(lease=600.0).take()
    if successor == "has published":
        volumes.commit(Volume(volume), *volumes.stage(Volume(volume), KEY), grant=grant)
    before = runs.published(volume)
    child.wake()
    assert child.ask("publish", KEY) == {"lost": "lost-lock"}
    assert runs.published(volume) == before
    assert len(volumes.assert_invariants(volume)) == (successor == "has published")


def test_an_owner_that_lives_is_never_taken_over_however_busy_it_is(benches):
    waits = []
    for bench in benches:  # all at once: nine seconds each
        child = bench.child(lease=SHORT)
        child.ask("take", KEY)
        waits.append((child, bench.lock(), set()))
    for child, _, _ in waits:
        child.tell("compute", KEY, seconds=3 * SHORT + 1)
    until = time.monotonic() + 3 * SHORT
    while time.monotonic() < until:
        for _, lock, beats in waits:
            found = lock.try_acquire(KEY)
            assert isinstance(found, Owner), "it was taken over"
            beats.add((found.name, found.beat))
        time.sleep(0.1)
    for child, _, beats in waits:
        assert len(beats) > 3, "the waiter saw it live"
        assert {name for name, _ in beats} == {"holder"}
        assert child.hear()["steps"]
        assert child.ask("mine", KEY) == {"mine": True}


def test_a_release_is_idempotent_and_leaves_the_next_owner_alone(bench):
    lock = bench.lock()
    grant = bench.take(lock)
    assert grant.still_mine()
    grant.release()
    assert (bench.read()["name"], bench.read()["epoch"]) == ("", 1), "the epoch is kept"
    grant.release()
    assert not grant.still_mine()
    child = bench.child()
    assert child.ask("take", KEY)["epoch"] == 2
    before = bench.kept()
    grant.release()
    assert not grant.still_mine()
    assert bench.kept() == before
    assert child.ask("mine", KEY) == {"mine": True}


@pytest.mark.parametrize("how", ["deleted", "replaced", "replaced by garbage"])
def test_a_grant_whose_record_somebody_removed_or_replaced_is_lost(bench, how):
    grant = bench.take(bench.lock())
    assert grant.still_mine()
    if how == "deleted":
        bench.delete()
    elif how == "replaced":
        bench.supplant()
    else:
        bench.plant(b"\xff\xfe", holder=STRANGER)
    before = bench.kept()
    assert not grant.still_mine()
    grant.release()
    assert not grant.still_mine()
    assert bench.kept() == before


def test_a_grant_whose_record_was_replaced_has_its_work_ended_by_its_heartbeat(bench):
    grant = bench.take(bench.lock(lease=BEATING))
    bench.supplant()
    before = bench.kept()

    def lost():
        try:
            grant.note("working")
        except LostGrantError as exc:
            return exc.reason
        return None

    assert runs.eventually(lost, 30) == "lost-lock"
    grant.release()
    assert bench.kept() == before
