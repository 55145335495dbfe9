"""Each target takes its seeds and what is near them; the fuzzer finds mistakes that were planted.

`make fuzz` runs for as long as one likes; here every parser is tried a little.
"""

import json
import os
import platform
import random
import subprocess
import sys

import pytest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(HERE, "..", "support")]

from targets import TARGETS

TRIES = 60
PLACE = random.Random(7)  # noqa: S311 - the same places each time


def near(target):
    """Seeds, and seeds with something cut, put in or changed."""
    yield from target.seeds
    yield b""
    for _ in range(TRIES):
        data = bytearray(PLACE.choice(target.seeds))
        for _ in range(PLACE.randint(1, 3)):
            at = PLACE.randrange(len(data) + 1)
            how = PLACE.randrange(3)
            if how == 0:
                data[at : at + PLACE.randint(1, 6)] = b""
            elif how == 1 and target.words:
                data[at:at] = PLACE.choice(target.words).encode()
            else:
                data[at : at + 1] = bytes([PLACE.randrange(256)])
        yield bytes(data)


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_takes_its_seeds_and_what_is_near_them(name):
    for data in near(TARGETS[name]):
        TARGETS[name].run(data)


@pytest.mark.parametrize("name", TARGETS)
def test_what_once_crashed_a_target_does_so_no_more(name):
    found = os.path.join(HERE, "found", name)
    for entry in os.scandir(found) if os.path.isdir(found) else ():
        with open(entry.path, "rb") as f:
            TARGETS[name].run(f.read())


def campaign(out, *names, **how):
    if sys.version_info >= (3, 14) or platform.machine() != "x86_64":  # as pyproject.toml has it
        pytest.skip("there is no wheel of atheris for this Python, or this processor")
    env = os.environ | {"TARGETS": " ".join(names), "OUT": str(out)} | how
    argv = [sys.executable, os.path.join(HERE, "campaign.py")]
    done = subprocess.run(argv, capture_output=True, text=True, env=env)
    return done.returncode, json.loads(done.stdout.splitlines()[-1])


def test_a_campaign_counts_its_runs_and_keeps_what_it_found_interesting(tmp_path):
    code, record = campaign(tmp_path, "outcome", RUNS="3000", SECONDS="60")
    assert (code, record["crashed"]) == (0, [])
    assert all(one["runs"] >= 3000 and one["covered"] > 0 for one in record["targets"].values())
    assert record["runs"] == sum(one["runs"] for one in record["targets"].values())
    assert len(os.listdir(tmp_path / "corpus" / "outcome")) > len(TARGETS["outcome"].seeds)
    assert json.loads((tmp_path / "fuzz.json").read_text()) == record


def test_a_crash_is_found_by_following_branches_and_so_is_what_hangs_or_swells(tmp_path):
    names = ("planted-crash", "planted-hang", "planted-swell")
    code, record = campaign(tmp_path, *names, RUNS="2000000", SECONDS="60", LIMIT="1")
    assert (code, record["crashed"]) == (1, list(names))
    kept = {name: (tmp_path / "crashes").glob(f"{name}-*") for name in names}
    begins = {name: {path.read_bytes()[:1] for path in of} for name, of in kept.items()}
    assert begins == {"planted-crash": {b"W"}, "planted-hang": {b"h"}, "planted-swell": {b"m"}}
