"""Who waits long asks seldom; what it may not miss, it misses no longer than before."""

import itertools
import os
import random
import sys

import pytest

sys.path.insert(0, os.path.dirname(__file__))
from owner import KEY

from warmer.fill import claim
from warmer.fill.claim import Claims
from warmer.fill.locks import BEATS, pace
from warmer.fill.locks.lease import LeaseLock
from warmer.fill.locks.pace import LONGEST, SHARE, Pace
from warmer.fill.locks.record import Owner
from warmer.fill.locks.sight import GAP, Sight
from warmer.urls import LONGEST_LEASE, SHORTEST_LEASE

LEASTS = (0.5, 1.0, 2.0)
"""Of the file lock, of tickets, of leases."""
CHANCES = (0.0, 0.3, 1.0)


@pytest.mark.parametrize("least", LEASTS)
def test_a_short_wait_is_asked_about_as_ever(least):
    for waited in (0.0, least, 1.5 * least, 0.5 * least / SHARE):
        found = [Pace(least).pause(waited, chance=chance) for chance in (0.0, 0.5, 1.0)]
        assert found == [0.5 * least, least, 1.5 * least]


@pytest.mark.parametrize("chance", CHANCES)
@pytest.mark.parametrize("least", LEASTS)
def test_pauses_grow_to_a_share_of_the_wait_and_no_further_than_a_gap_that_counts(least, chance):
    waits = [0.5 * n for n in range(400)]
    found = [Pace(least).pause(waited, chance=chance) for waited in waits]
    assert found == sorted(found)
    for waited, pause in zip(waits, found, strict=True):
        assert pause <= max(1.5 * least, SHARE * waited)
    assert 0.8 * LONGEST <= found[-1] <= LONGEST < GAP


@pytest.mark.parametrize("waited", [0.0, 10.0, 30.0, 600.0])
def test_those_who_came_at_once_do_not_ask_at_once(waited):
    found = [Pace(2.0).pause(waited, chance=chance) for chance in CHANCES]
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("theirs", [0.0, SHORTEST_LEASE, 30.0, LONGEST_LEASE])
@pytest.mark.parametrize("mine", [SHORTEST_LEASE, 30.0, LONGEST_LEASE])
@pytest.mark.parametrize("least", LEASTS)
def test_within_a_lease_there_is_more_than_one_question_whosever_it_is(least, mine, theirs):
    """A ticket of who waits is shown by its questions, and counts as dead after its own lease."""
    pause = Pace(least, mine).pause(1e6, chance=1.0, lease=theirs)
    assert pause <= max(1.5 * least, min(mine, theirs or mine) / 6)
    assert pause <= mine


def test_when_an_owner_may_be_succeeded_the_question_is_due():
    long = {"chance": 1.0, "lease": 30.0}
    asked = Pace(2.0)
    assert asked.pause(600.0, silent=20.0, **long) == LONGEST
    assert asked.pause(600.0, silent=28.0, **long) == 2.0
    assert asked.pause(600.0, silent=29.9, **long) == 1.0, "no more often than at first"
    assert asked.pause(600.0, silent=31.0, **long) == 3.0, "as at first: it is about to be"


class Clock:
    """A time that passes only where somebody sleeps."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


class Record:
    """A register of one record, whose owner beats until it dies; counts what it is asked."""

    def __init__(self, clock, *, lease, dies, frees):
        self.clock, self.lease, self.dies = clock, lease, clock.now + dies
        self.frees = clock.now + frees
        self.asked = 0
        self.began = clock.now
        self.kept = None

    @property
    def beats(self):
        lived = min(self.clock.now, self.dies) - self.began
        return int(lived / (self.lease / BEATS))

    @property
    def last_sign(self):
        return self.began + self.beats * self.lease / BEATS

    def read(self, _name):
        self.asked += 1
        if self.kept is not None:
            return self.kept
        if self.clock.now >= self.frees:
            return Owner(epoch=1), "free"
        owner = Owner(epoch=1, name="them", nonce="n", beat=self.beats, lease=self.lease)
        return owner, f"beat {self.beats}"

    def write(self, _name, owner, _version):
        self.kept = owner, f"mine {owner.beat}"
        return self.kept[1]


@pytest.fixture
def wait(monkeypatch):
    """Wait with the real claim and the real lease, in a time that flies; the record, the looks."""

    def wait(*, lease, dies, filled=float("inf"), frees=1e9, seed=0, patience=1e6):
        clock = Clock()
        monkeypatch.setattr(claim, "time", clock)
        monkeypatch.setattr(claim, "random", random.Random(seed))  # noqa: S311 - no secret
        record = Record(clock, lease=lease, dies=dies, frees=frees)
        lock = LeaseLock(record, me="me", lease=lease)
        monkeypatch.setattr(lock, "_sight", Sight(clock.monotonic))
        looks = []

        def look():
            looks.append(clock.now)
            return clock.now >= record.began + filled

        with Claims(lambda: lock).claim(KEY, wait=patience, filled=look) as grant:
            record.found = clock.now
            assert (grant is None) == (filled < dies)
        return record, looks

    return wait


@pytest.mark.parametrize("dies", [0.5, 9.0, 47.0, 301.0])
@pytest.mark.parametrize("lease", [SHORTEST_LEASE, 12.0, 30.0, 90.0])
def test_a_dead_owner_is_succeeded_as_soon_as_when_all_asked_as_often_as_at_first(
    wait, lease, dies
):
    first = 1.5 * 2.0
    for seed in range(3):
        record, _ = wait(lease=lease, dies=dies, seed=seed)
        late = record.found - record.last_sign - lease
        assert 0 <= late < 2 * first, "one to see the last sign, one over the lease"


def test_a_long_wait_asks_seldom_and_looks_as_often_as_ever(wait):
    long, short = 600.0, 20.0
    record, looks = wait(lease=30.0, dies=1e9, filled=long)
    assert record.asked < long / (0.8 * LONGEST) + short
    gaps = [later - earlier for earlier, later in itertools.pairwise(looks)]
    assert max(gaps) <= 1.5 * claim._LOOK + 1e-6
    assert record.found - record.began - long <= 1.5 * claim._LOOK
    often, _ = wait(lease=30.0, dies=1e9, filled=short)
    assert often.asked / short > 1.5 * record.asked / long


@pytest.mark.parametrize("patience", [4.0, 60.0, 600.0])
def test_a_lock_that_comes_free_before_the_last_second_of_a_wait_is_had(wait, patience):
    for seed in range(10):
        record, _ = wait(lease=30.0, dies=1e8, frees=patience - 1.1, seed=seed, patience=patience)
        assert record.found - record.began <= patience


def test_the_simulation_sees_a_pace_that_is_too_slow(wait, monkeypatch):
    """Questions further apart than a gap that counts put a succession off."""
    monkeypatch.setattr(pace, "LONGEST", 4 * GAP)
    monkeypatch.setattr(pace, "_OF_A_LEASE", 1.0)
    record, _ = wait(lease=30.0, dies=301.0)
    assert record.found - record.last_sign - 30.0 > 2 * 1.5 * 2.0
