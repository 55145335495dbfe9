"""Policies that contradict each other are said, not resolved in silence."""

import os
import sys

import pytest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import runs


@pytest.fixture
def place(tmp_path):
    with runs.place(tmp_path) as place:
        yield place


@pytest.mark.parametrize("policy", ["kernels=fail", "compile=fail", "fail"])
def test_kernels_that_must_be_there_and_may_not_be_built_are_1(place, policy):
    options = ("--on-miss", policy, "--compile", "never")
    place.fails(1, "not-warm", "compile", options=options)
    assert (place.fetched(), place.engine.starts) == ([], []), "nothing is fetched for no start"


def test_kernels_that_are_there_satisfy_a_policy_that_builds_none(place):
    place.warmed()
    done = place.warmed("--on-miss", "kernels=fail", "--compile", "never")
    assert done.json["warm"] is True
    assert len(place.engine.starts) == 1
