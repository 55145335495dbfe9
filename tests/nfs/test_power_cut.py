"""Power cuts while generations are published on ext4: what was published is there, and whole.

Each round boots a guest that publishes, and kills its kernel at a random instant. The disk goes
through several rounds, as a node's does. WARMER_POWER_CUTS says how many, WARMER_POWER_CUT_SEED
which instants.
"""

import os
import random
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "support"))

import uml
import volumes

ROUNDS = int(os.environ.get("WARMER_POWER_CUTS") or 5)
SEED = int(os.environ.get("WARMER_POWER_CUT_SEED") or random.SystemRandom().randrange(10**9))
LIFE = 5
"""Rounds until a disk is replaced: it would fill."""
SCENARIO = Path(__file__).parent / "scenarios" / "publishing.py"

pytestmark = [
    pytest.mark.skipif(not uml.available(), reason=uml.REASON),
    pytest.mark.timeout(300 + 60 * ROUNDS),
]


def publish_until_cut(image, *, first, seed, after):
    """Cut a publishing guest's power `after` seconds; returns what it had said by then."""
    args = {"first": first, "seed": seed}
    with uml.start(SCENARIO, args=args, memory="256M", disk=image) as guest:
        guest.until(len)
        time.sleep(after)
        guest.cut()
    assert guest.status is None, guest.log  # it publishes for ever
    return [result for result in guest.results if "acked" in result]


def test_what_was_published_before_a_power_cut_is_there_and_whole(tmp_path):
    print(f"WARMER_POWER_CUT_SEED={SEED}")
    chance = random.Random(SEED)  # noqa: S311 - instants, not secrets
    image, told = tmp_path / "disk.img", 0
    for number in range(ROUNDS):
        if number % LIFE == 0:
            uml.make_disk(image, "512M")
            acked, first = set(), 0
        after = chance.uniform(0, 1.5)
        results = publish_until_cut(image, first=first, seed=chance.randrange(10**9), after=after)
        acked |= {tuple(result["acked"]) for result in results}
        first = results[-1]["number"] + 1 if results else first
        told += len(results)
        print(f"round {number}: {len(results)} published, cut after {after:.3f} s")
        with uml.mounted(image, tmp_path / "disk") as root:
            published = set(volumes.assert_invariants(os.path.join(root, "volume")))
        assert acked <= published, f"these are gone: {sorted(acked - published)}"
        assert len(published - acked) <= number % LIFE + 1, "more than what was in the making"
    assert told, "nothing was published"
