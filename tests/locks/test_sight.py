"""`Sight`: only what a waiter has itself seen counts, and of a gap no more than five seconds."""

import pytest

from warmer.fill.locks.sight import GAP, Sight


class Clock:
    def __init__(self):
        self.now = 5000.0

    def __call__(self):
        return self.now


@pytest.fixture
def look():
    """Look at a record after so many seconds: the seconds it has been seen as it is."""
    clock = Clock()
    sight = Sight(clock)

    def look(after, version="one", name="a"):
        clock.now += after
        return sight.unchanged(name, version)

    return look


def test_a_first_look_has_seen_nothing(look):
    assert look(3600.0) == 0.0


def test_time_between_looks_adds_up(look):
    assert [look(after) for after in (0, 1.0, 0.5, 2.0, 0, 4.0)] == [0, 1.0, 1.5, 3.5, 3.5, 7.5]


def test_a_change_starts_anew_and_so_does_one_back_to_what_it_was(look):
    look(0)
    assert look(4.0) == 4.0
    assert look(4.0, "two") == 0.0
    assert look(1.0, "two") == 1.0
    assert look(1.0, "one") == 0.0, "it has changed meanwhile, twice"
    assert look(1.0, "one") == 1.0


@pytest.mark.parametrize("gap", [GAP + 0.1, 60.0, 86_400.0])
def test_a_gap_counts_as_five_seconds_at_most(look, gap):
    look(0)
    assert look(gap) == GAP == 5.0
    assert look(1.0) == 6.0
    assert look(gap) == 11.0


def test_a_clock_that_runs_backwards_takes_nothing_away_and_adds_nothing(look):
    look(0)
    assert look(2.0) == 2.0
    assert look(-600.0) == 2.0
    assert look(1.0) == 3.0


def test_each_record_is_seen_by_itself(look):
    look(0, name="a")
    look(0, name="b")
    assert look(2.0, name="a") == 2.0
    assert look(2.0, name="b") == 4.0
    assert look(0, "two", name="a") == 0.0
    assert look(1.0, name="b") == 5.0
