"""How long a pod waits for another's fill: as long as doing it itself would take, and why not."""

import pytest

from warmer.model import Key, Step
from warmer.plan import UNPREDICTED, patience


def step(seconds):
    return Step("weights", "download", Key("weights", {}), "absent", "", seconds=seconds)


@pytest.mark.parametrize("policy", ["fail", "cold"])
@pytest.mark.parametrize("seconds", [None, 5.0, 5000.0])
@pytest.mark.parametrize("chosen", [0.0, 1.0, 90_000.0])
def test_what_the_user_chose_settles_it(policy, seconds, chosen):
    assert patience(step(seconds), policy, chosen=chosen, lease=30.0, longest=1800.0) == chosen


@pytest.mark.parametrize("policy", ["fail", "cold"])
def test_where_nothing_is_predicted_it_is_ten_minutes(policy):
    assert (
        patience(step(None), policy, chosen=None, lease=30.0, longest=1800.0)
        == UNPREDICTED
        == 600.0
    )


@pytest.mark.parametrize(
    ("seconds", "lease", "wait"),
    [
        (180.0, 30.0, 180.0),  # no longer than a cold start
        (5000.0, 30.0, 1800.0),  # nor than a build may take here, whatever a seal says
        (1e18, 30.0, 1800.0),
        (5.0, 30.0, 60.0),  # a dead owner has time to be found dead
        (0.0, 3.0, 6.0),
        (180.0, 600.0, 1200.0),
    ],
)
def test_who_can_start_without_waits_no_longer_than_it_would_take_itself(seconds, lease, wait):
    assert patience(step(seconds), "cold", chosen=None, lease=lease, longest=1800.0) == wait


@pytest.mark.parametrize(("seconds", "wait"), [(0.0, 600.0), (200.0, 600.0), (5000.0, 10_000.0)])
def test_who_cannot_start_without_waits_twice_as_long_and_never_little(seconds, wait):
    assert patience(step(seconds), "fail", chosen=None, lease=30.0, longest=1800.0) == wait
