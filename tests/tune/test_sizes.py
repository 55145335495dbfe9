"""The choice of sizes: as few as needed, and no better choice of as many."""

import itertools
import random

import pytest

from warmer.tune.observed import Band, Observed, from_samples
from warmer.tune.sizes import Engine, default, fit, propose, target


def brute(observed, choices, largest, padding):
    """Try every list of sizes, the shortest first."""
    rest = [size for size in choices if size < largest]
    for count in range(len(rest) + 1):
        fits = [
            fit(observed, sorted([*some, largest])) for some in itertools.combinations(rest, count)
        ]
        best = min(fits, key=lambda one: one.padding)
        if best.padding <= padding + 1e-9:
            return best
    return None


@pytest.mark.parametrize("seed", range(12))
def test_no_other_list_is_shorter_or_pads_less(seed):
    rng = random.Random(seed)  # noqa: S311 - seeded cases, no secrets
    observed = from_samples(
        [rng.choice([rng.randint(1, 14), rng.randint(1, 4)]) for _ in range(rng.randint(1, 60))]
    )
    largest = observed.quantile(1.0)
    for padding in (0.0, 0.05, 0.15, 0.4):
        found = propose(observed, largest, query=1, padding=padding)
        best = brute(observed, range(1, largest + 1), largest, padding)
        assert len(found) == len(best.sizes)
        assert fit(observed, found).padding == pytest.approx(best.padding, abs=1e-9)


def test_every_step_up_to_the_largest_size_is_covered_and_none_beyond():
    observed = from_samples([1, 5, 9, 30, 200])
    sizes = propose(observed, 30, query=1, padding=0.1)
    found = fit(observed, sizes)
    assert sizes[-1] == 30
    assert found.covered == pytest.approx(0.8)
    assert found.padding <= 0.1


def test_padding_is_the_share_of_the_computed_tokens():
    assert fit(from_samples([6, 8]), [8]).padding == pytest.approx(2 / 16)
    assert fit(from_samples([9]), [8]).padding == 0.0


def test_where_no_list_keeps_to_the_limit_the_one_that_pads_least_is_returned():
    observed = Observed((Band(17, 24, 100.0),))
    assert propose(observed, 24, query=1, padding=0.0) == (24,)


def test_sizes_of_a_speculating_engine_are_whole_requests():
    observed = from_samples([2, 7, 13]).scaled(3, 1000)
    engine = Engine(64, query=3)
    largest = target(observed, 0.99, engine)
    sizes = propose(observed, largest, query=3, padding=0.0)
    assert sizes == (6, 21, 39)


def test_the_target_is_rounded_to_whole_requests_and_stays_within_the_batch():
    observed = Observed((Band(1, 20, 1.0),))
    assert target(observed, 1.0, Engine(64, query=3)) == 21
    assert target(observed, 1.0, Engine(64, query=3, tokens=20)) == 20
    assert target(observed, 1.0, Engine(8)) == 8


def test_a_wide_range_is_chosen_from_in_vllms_own_strides():
    rng = random.Random(1)  # noqa: S311 - seeded cases, no secrets
    observed = from_samples([min(2000, int(rng.lognormvariate(5, 1)) + 1) for _ in range(5000)])
    largest = target(observed, 0.99, Engine(2000))
    found = fit(observed, propose(observed, largest, query=1, padding=0.05))
    assert found.padding <= 0.05
    assert all(size % 8 == 0 for size in found.sizes[:-1] if size > 16)
    usual = fit(observed, default(Engine(2000), ceiling=2000))
    assert len(found.sizes) < len(usual.sizes)


def test_what_vllm_captures_by_itself_is_51_sizes_on_common_gpus():
    assert len(default(Engine(256))) == 51
    assert default(Engine(8)) == (1, 2, 4, 8, 16)
    assert default(Engine(5)) == (1, 2, 4, 5, 8)
    assert default(Engine(256, tokens=20)) == (1, 2, 4, 8, 16, 20)
