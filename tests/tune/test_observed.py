"""Numbers of metrics → steps by size: what is believed, and what is refused."""

import math
import random

import pytest

from warmer.tune.observed import (
    LARGEST,
    BadMetricsError,
    Band,
    Observed,
    added,
    difference,
    from_buckets,
    from_samples,
)

INF = math.inf


def test_a_bucket_is_a_band_that_begins_after_the_one_before():
    found = from_buckets({1.0: 5, 8.0: 7, 16.0: 7, INF: 10})
    assert found.bands == (Band(1, 1, 5), Band(2, 8, 2), Band(17, 32, 3))


def test_a_histogram_that_counted_nothing_is_none():
    assert from_buckets({1.0: 0, 8.0: 0, INF: 0}) is None


@pytest.mark.parametrize(
    ("buckets", "why"),
    [
        ({}, "Inf"),
        ({1.0: 1, 8.0: 2}, "Inf"),
        ({INF: 2}, "bounds"),
        ({-1.0: 1, INF: 2}, "bounds"),
        ({math.nan: 1, 8.0: 1, INF: 2}, "Inf"),
        ({LARGEST * 2.0: 1, INF: 2}, "bounds"),
        ({1.0: 5, 8.0: 4, INF: 6}, "fall, from 5 to 4"),
        ({1.0: math.nan, INF: 6}, "nan"),
        ({1.0: 1, INF: INF}, "inf"),
        ({1.0: -1, INF: 6}, "-1"),
    ],
)
def test_what_is_no_histogram_is_refused_with_the_reason(buckets, why):
    with pytest.raises(BadMetricsError, match=why):
        from_buckets(buckets)


def test_rates_that_prometheus_extrapolates_may_fall_by_a_rounding():
    found = from_buckets({1.0: 1000.0, 8.0: 1000.0 - 1e-9, INF: 1000.0})
    assert found.weight == pytest.approx(1000.0)


def test_samples_are_exact_and_idle_engines_are_left_out():
    found = from_samples([0, 0, 3, 3, 7])
    assert found.bands == (Band(3, 3, 2), Band(7, 7, 1))
    assert from_samples([0, 0]) is None


def test_an_average_over_engines_counts_as_the_larger_number():
    assert from_samples([2.5]).bands == (Band(3, 3, 1),)


@pytest.mark.parametrize("value", [math.nan, INF, -1, LARGEST + 1])
def test_a_value_that_is_no_number_of_requests_is_refused(value):
    with pytest.raises(BadMetricsError, match="a value of"):
        from_samples([1, value])


def test_the_difference_of_two_scrapes_is_what_happened_between_them():
    assert difference({1.0: 2, INF: 3}, {1.0: 5, INF: 9}) == {1.0: 3, INF: 6}


def test_counts_that_fell_are_a_server_that_was_restarted():
    with pytest.raises(BadMetricsError, match="restarted"):
        difference({1.0: 5, INF: 9}, {1.0: 2, INF: 3})


@pytest.mark.parametrize("join", [difference, lambda a, b: added([a, b])])
def test_other_buckets_are_refused(join):
    with pytest.raises(BadMetricsError, match="different buckets"):
        join({1.0: 1, INF: 2}, {2.0: 1, INF: 2})


def test_a_quantile_is_the_upper_end_of_its_bucket():
    found = from_buckets({8.0: 99, 64.0: 100, INF: 100})
    assert found.quantile(0.99) == 8
    assert found.quantile(0.991) == 64
    assert found.quantile(1.0) == 64


def test_a_quantile_covers_at_least_its_share_and_the_next_lower_size_less():
    rng = random.Random(7)  # noqa: S311 - seeded cases, no secrets
    for _ in range(50):
        found = from_samples([rng.randint(1, 40) for _ in range(rng.randint(1, 200))])
        for share in (0.5, 0.9, 0.99, 1.0):
            size = found.quantile(share)
            assert found.covered(size) >= share - 1e-9
            assert size == 1 or found.covered(size - 1) < share


def test_a_band_that_reaches_over_the_ceiling_is_cut_where_its_steps_are_spread_evenly():
    cut = Observed((Band(65, 128, 64),)).within(80)
    assert cut.bands == (Band(65, 80, 16),)
    assert Observed((Band(65, 128, 64),)).within(64) is None


def test_spreading_keeps_the_weight():
    found = from_buckets({1.0: 5, 8.0: 7, INF: 10})
    assert math.fsum(found.spread().values()) == pytest.approx(found.weight)
    assert found.spread()[2] == pytest.approx(2 / 7)
