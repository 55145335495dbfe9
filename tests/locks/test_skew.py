"""Owners and waiters whose clocks are ten minutes apart, or jump, or count from another start."""

import os
import sys
import time
from pathlib import Path

import libfaketime
import pytest

sys.path.insert(0, os.path.dirname(__file__))
from owner import named

LEASE, TEN_MINUTES = 3.0, 600.0
FAKE = Path(libfaketime.__file__).parent / "vendor/libfaketime/src/libfaketime.so.1"
# The monotonic clock is shifted by the kernel: Python's own waits hang on one that a library fakes.
SHIFT = 7200.0
SHIFTED = ("unshare", "--time", "--monotonic", f"{SHIFT:.0f}", "--fork", "--kill-child")
CLOCKS = {"ahead": (), "behind, shifted": SHIFTED, "jumping": (), "ahead, shifted": SHIFTED}


@pytest.fixture
def clock(tmp_path):
    """The wall clock of those whose clocks jump: call it with an offset."""
    path = tmp_path / "clock"

    def set_to(offset):
        fresh = tmp_path / "clock.fresh"
        fresh.write_text(f"{offset}\n")
        fresh.replace(path)

    set_to("+0")
    set_to.path = str(path)
    return set_to


def start(bench, name, clock):
    env = {"LD_PRELOAD": str(FAKE), "DONT_FAKE_MONOTONIC": "1", "FAKETIME_NO_CACHE": "1"}
    if name == "jumping":
        env["FAKETIME_TIMESTAMP_FILE"] = clock.path
    else:
        env["FAKETIME"] = "+10m" if name.startswith("ahead") else "-10m"
    return bench.start(name, lease=LEASE, env=env, prefix=CLOCKS[name])


def offsets(child):
    """How far its wall clock and its monotonic clock are from ours, to a minute."""
    clocks = child.ask("clocks", named("none"))
    apart = clocks["wall"] - time.time(), clocks["monotonic"] - time.monotonic()
    return tuple(round(seconds / 60) * 60.0 for seconds in apart)


def test_no_clock_makes_a_waiter_take_over_the_living_nor_spare_the_dead(benches, clock):
    rings = [(bench, [start(bench, name, clock) for name in CLOCKS]) for bench in benches]
    keys = [named(name) for name in CLOCKS]
    for bench, ring in rings:
        bench.keys += keys
        for child, key in zip(ring, keys, strict=True):
            assert child.ready().ask("take", key)["epoch"] == 1
        assert [offsets(child) for child in ring] == [
            (TEN_MINUTES, 0.0),
            (-TEN_MINUTES, SHIFT),
            (0.0, 0.0),
            (TEN_MINUTES, SHIFT),
        ]
    # Each waits for two leases for the key of the one before it, while one clock jumps.
    waits = [(child, keys[number - 1]) for _, ring in rings for number, child in enumerate(ring)]
    for child, key in waits:
        child.tell("take", key, seconds=2 * LEASE, pause=0.2)
    for offset in ("+10m", "-10m"):
        time.sleep(LEASE / 2)
        clock(offset)
    for child, key in waits:
        found = child.hear()
        assert found["owner"]["name"] == key.factors["name"], "the living was taken over"
        assert found["asked"] > 3
    for _, ring in rings:
        assert offsets(ring[2]) == (-TEN_MINUTES, 0.0), "its clock did jump"
        for child, key in zip(ring, keys, strict=True):
            assert child.ask("mine", key) == {"mine": True}
    for _, ring in rings:
        ring[0].kill()
        ring[2].kill()
    for _, ring in rings:
        for dead in (0, 2):
            ring[dead + 1].tell("take", keys[dead], seconds=20 * LEASE, pause=0.2)
    for bench, ring in rings:
        for dead in (0, 2):
            found = ring[dead + 1].hear()
            assert found.get("epoch") == 2, "the dead was not succeeded"
            # Its last beat may be a beat and a look old when it dies.
            assert bench.at_once or found["seconds"] > LEASE / 3
