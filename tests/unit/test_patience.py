"""One budget for many calls: what the remote tier's failures may cost a prefill in all."""

import time

import pytest

from warmer.fill.sources import TransientSourceError
from warmer.fill.sources.retry import Trying


class Service:
    """Answers after so many failures."""

    def __init__(self, failures):
        self.failures = failures
        self.asked = 0

    def __call__(self):
        self.asked += 1
        if self.asked <= self.failures:
            raise TransientSourceError("got no answer, expected one", reason="unreachable")
        return self.asked


def test_a_budget_that_all_share_is_spent_once():
    trying = Trying(budget=2.0, once=True)
    away = Service(10**9)
    started = time.monotonic()
    with pytest.raises(TransientSourceError):
        trying.call(away)
    assert away.asked > 1
    while time.monotonic() < started + 2.0:  # the rest of it may be too short for a try
        time.sleep(0.05)
    for _ in range(3):
        again = Service(1)
        with pytest.raises(TransientSourceError):
            trying.call(again)
        assert again.asked == 1, "nothing is left to try it again in"
    assert trying.call(Service(0)) == 1


def test_a_budget_of_each_begins_anew():
    trying = Trying(budget=2.0)
    with pytest.raises(TransientSourceError):
        trying.call(Service(10**9))
    assert trying.call(Service(1)) == 2
