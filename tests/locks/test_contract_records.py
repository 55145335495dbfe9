"""What every lock makes of records that no owner wrote, or wrote to their end."""

import os
import sys

import pytest

sys.path.insert(0, os.path.dirname(__file__))
from contract import NONCE, STRANGER
from owner import KEY

from warmer.fill.locks.record import Owner

RECORDS = {
    "empty": (b"", 0),
    "zeros": (b"\0" * 100, 0),
    "torn": (b'{"epoch": 3, "name": "hol', 3),
    "longer before": (b'{"epoch": 12, "name": ""}r": "a longer one"}', 12),
    "no text": (b"\xff\xfe\xfd", 0),
    "a list": (b"[1, 2]", 0),
    "null": (b"null", 0),
    "nulls": (b'{"epoch": null, "name": null}', 0),
    "words for numbers": (b'{"epoch": "many", "name": 5}', 0),
    "endless": (b'{"epoch": Infinity, "name": "x"}', 0),
    "deep": (b"[" * 4000, 0),
    "long": (b"9" * 9000, 0),
    "long and torn": (b'{"epoch": 4, "name": "' + b"n" * 200_000, 4),
    "an epoch no Lease can count": (b'{"epoch": 2147483647, "name": ""}', 0),
    "an endless epoch": (b'{"epoch": %s, "name": ""}' % (b"9" * 4000), 0),
    "a negative epoch": (b'{"epoch": -5, "name": ""}', 0),
    "of the future": (b'{"epoch": 5, "name": "", "format": {"two": [1, 2]}}', 5),
}


@pytest.mark.parametrize("record", RECORDS)
def test_whatever_is_in_a_record_the_lock_works(bench, record):
    data, epoch = RECORDS[record]
    bench.plant(data)
    grant = bench.take(bench.lock())
    assert grant.epoch == epoch + 1, "what can be read of an epoch counts"
    found = bench.lock().try_acquire(KEY)
    assert (found.name, found.epoch) == ("me", grant.epoch)
    assert bench.read()["nonce"] == found.nonce
    assert grant.still_mine()
    grant.release()
    assert bench.read()["name"] == ""


@pytest.mark.parametrize("record", RECORDS)
def test_a_silent_stranger_with_whatever_record_is_succeeded_after_the_waiters_lease(bench, record):
    data, epoch = RECORDS[record]
    bench.plant(data, holder=STRANGER)
    grant, took = bench.waiter(lease=20.0).take(step=5.0)
    assert took == (20.0 if bench.beside else 0.0)
    assert grant.epoch == epoch + 1
    assert grant.still_mine()


@pytest.mark.parametrize(
    "lease", ["NaN", "Infinity", "-1", "0", "1e300"], ids=lambda lease: f"lease={lease}"
)
def test_a_record_that_asks_for_a_senseless_lease_gets_the_waiters(bench, lease):
    text = f'{{"epoch": 6, "name": "{STRANGER}", "nonce": "{NONCE}", "lease": {lease}}}'
    bench.plant(text.encode(), holder=STRANGER)
    grant, took = bench.waiter(lease=20.0).take(most=100.0)
    assert (grant.epoch, took) == (7, 20.0)


def test_a_name_and_a_phase_of_any_length_are_kept_as_far_as_there_is_room(bench):
    for number, name in enumerate(("n" * 10_000, "\n\"'\\\0é" * 500), start=1):
        grant = bench.take(bench.lock(name))
        grant.note("p" * 5_000)
        assert grant.still_mine()
        found = bench.lock().try_acquire(KEY)
        assert isinstance(found, Owner)
        assert name.startswith(found.name[:20])
        assert (found.epoch, bench.read()["epoch"]) == (number, number)
        grant.release()
