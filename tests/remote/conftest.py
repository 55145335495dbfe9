"""One fleet whose first node has built and pushed; tests get its bucket's copy and a new node."""

import os
import sys

import pytest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import fleets


@pytest.fixture(scope="package")
def pioneer(tmp_path_factory):
    """A fleet whose first node built kernels of every kind and pushed them."""
    if os.path.exists("/dev/nvidiactl"):
        pytest.skip("NVML knows the GPU that is here")
    with fleets.fleet(tmp_path_factory.mktemp("fleet")) as fleet:
        node = fleet.node()
        done = node.warmed(env=fleet.env(FAKE_ENGINE="op=one"))
        assert set(done.json["pushed_bytes"]) == set(fleets.KERNELS)
        fleet.first = node
        yield fleet


@pytest.fixture
def fleet(pioneer):
    """A bucket with what the first node pushed, and nobody's faults."""
    with fleets.beside(pioneer, copied=True) as fleet:
        yield fleet


@pytest.fixture
def empty(pioneer):
    """The same image beside an empty bucket."""
    with fleets.beside(pioneer, copied=False) as fleet:
        yield fleet
