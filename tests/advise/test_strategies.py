"""The arithmetic: what each way costs and takes, and where one begins to pay."""

import dataclasses
import math
import random

import pytest

from warmer.advise.advice import advise, cost
from warmer.advise.case import DEFAULTS, GIVEN, Case, Figure, Needs
from warmer.advise.strategies import cheaper, strategies, worth


def case(*, weights=16e9, starts=40.0, **given):
    figures = DEFAULTS | {name: Figure(value, GIVEN) for name, value in given.items()}
    return Case(weights=Figure(weights, GIVEN), starts=Figure(starts, GIVEN), **figures)


def ways(case, needs=None):
    return {way.name: way for way in strategies(case, needs or Needs())}


def test_the_published_example_costs_24_dollars_a_month():
    """16 GB, 40 starts a month, $0.30 a GB-month, $0.03 a GB."""
    example = case(kernels=0.0, price_storage=0.30, price_transfer=0.03)
    volume = ways(example)["volume"]
    assert volume.storage.value == pytest.approx(4.80)
    assert 40 * volume.transfer.value == pytest.approx(19.20)
    assert volume.bill(40) == pytest.approx(24.00)
    with_kernels = ways(case(price_storage=0.30, price_transfer=0.03))["volume"]
    assert round(with_kernels.bill(40)) == 24


def test_seconds_are_bytes_by_what_they_come_through():
    found = ways(
        case(
            kernels=1e9,
            build=100.0,
            network=1e8,
            volume_bandwidth=4e8,
            disk_bandwidth=2e9,
            image_bandwidth=2e8,
            node_hits=0.25,
        )
    )
    assert found["volume"].seconds == pytest.approx(17e9 / 4e8)
    assert found["download"].seconds == pytest.approx(160 + 100)
    assert found["remote"].seconds == pytest.approx(160 + 10)
    assert found["node"].seconds == pytest.approx(0.25 * 17e9 / 2e9 + 0.75 * 170)
    assert found["image"].weights.value == pytest.approx(0.25 * 8 + 0.75 * 80)


def test_a_node_that_has_the_model_moves_nothing():
    everywhere = ways(case(node_hits=1.0, price_download=0.09, price_pull=0.05))
    assert everywhere["node"].transfer.value == 0
    never = ways(case(node_hits=0.0, price_download=0.09, price_pull=0.05))
    assert never["node"].transfer.value == pytest.approx(never["remote"].transfer.value)
    assert never["image"].transfer.value > 16 * 0.05


@pytest.mark.parametrize("seed", range(20))
def test_at_the_break_even_both_cost_the_same_and_on_one_side_the_volume_less(seed):
    rng = random.Random(seed)  # noqa: S311 - seeded cases, no secrets
    some = {
        name: figure.value * rng.uniform(0.2, 5)
        for name, figure in DEFAULTS.items()
        if name != "node_hits"
    }
    some |= {"price_download": rng.uniform(0, 0.2), "node_hits": rng.random()}
    here = case(**some)
    found = ways(here)
    for other in (way for name, way in found.items() if name != "volume"):
        span = cheaper(found["volume"], other, here.price_gpu.value)
        low, high = span or (0.0, 0.0)
        edges = [at for at in (low, high) if 0 < at < math.inf]
        for starts in (1.0, 1e6, *edges, *(at / 2 for at in edges), *(at * 2 for at in edges)):
            there = dataclasses.replace(here, starts=Figure(starts, GIVEN))
            more = cost(found["volume"], there) - cost(other, there)
            if starts in edges:
                assert more == pytest.approx(0, abs=1e-6 * cost(other, there))
            else:
                assert (more < 0) == (low < starts < high)


def test_all_three_answers_to_when_the_volume_costs_less_occur():
    dear = ways(case(price_download=0.1))
    assert cheaper(dear["volume"], dear["remote"], 2.0)[1] == math.inf
    free = ways(case(price_transfer=0.1))
    assert cheaper(free["volume"], free["remote"], 2.0) is None
    images = ways(case(price_registry=1.0))
    low, high = cheaper(images["volume"], images["image"], 2.0)
    assert low == 0
    assert 0 < high < math.inf


def test_the_price_of_an_hour_at_which_the_time_saved_pays_for_the_bill():
    here = case(starts=40.0, price_gpu=0.0)
    found = ways(here)
    hour = worth(found["volume"], found["download"], 40.0)
    there = dataclasses.replace(here, price_gpu=Figure(hour, GIVEN))
    assert cost(found["volume"], there) == pytest.approx(cost(found["download"], there))
    assert worth(found["download"], found["volume"], 40.0) is None, "it saves no time"
    paid = ways(case(price_download=1.0))
    assert worth(paid["volume"], paid["remote"], 40.0) == 0.0, "it costs no more"


def test_a_volume_that_lives_in_one_zone_is_stored_once_for_each():
    one, three = (ways(case(), Needs(copies=n))["volume"] for n in (1, 3))
    assert three.storage.value == pytest.approx(3 * one.storage.value)
    assert three.transfer == one.transfer
    assert "3 zones" in three.storage.formula


def test_models_of_more_than_50_gb_are_not_baked_into_images():
    assert "image" in ways(case(weights=50e9))
    assert "image" not in ways(case(weights=51e9))
    assert any("in the image" in why for why in advise(case(weights=51e9), Needs()).reasons)


def test_the_cheapest_that_does_what_is_needed_is_recommended():
    assert advise(case(price_gpu=200.0), Needs()).recommended.name == "volume"
    assert advise(case(price_gpu=2.0, node_hits=0.9), Needs()).recommended.name == "node"
    without = advise(case(), Needs(without_source=True))
    assert {way.name for way in without.ways if way.against} == {"download", "remote", "node"}
    assert without.recommended.name in ("volume", "image")
    fast = advise(case(), Needs(seconds=20.0))
    assert fast.recommended.name == "volume"
    assert any("more than the 20.0 s allowed" in why for why in fast.reasons)
    assert advise(case(), Needs(seconds=1.0)).recommended is None


@pytest.mark.parametrize("seed", range(10))
def test_the_recommended_way_costs_no_more_than_any_other_that_is_fit(seed):
    rng = random.Random(seed)  # noqa: S311 - seeded cases, no secrets
    some = {name: figure.value * rng.uniform(0.2, 5) for name, figure in DEFAULTS.items()}
    here = case(**some | {"node_hits": rng.random()})
    found = advise(here, Needs())
    assert cost(found.recommended, here) == min(cost(way, here) for way in found.ways)


def test_an_assumption_on_which_the_recommendation_hangs_is_named():
    close = case(price_gpu=2.0, price_storage=0.0, price_transfer=0.0)
    found = advise(close, Needs())
    assert found.recommended.name == "volume"
    assert found.swayed, "half the volume's bandwidth makes another way the cheapest"
    for name, (value, title) in found.swayed.items():
        there = dataclasses.replace(close, **{name: Figure(value, GIVEN)})
        assert advise(there, Needs()).recommended.title == title != found.recommended.title
    given = case(**{name: figure.value for name, figure in DEFAULTS.items()})
    assert advise(given, Needs()).swayed == {}, "what is given is not doubted"
