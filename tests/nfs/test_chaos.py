"""Two NFS nodes of fillers, with the holder killed or partitioned past its lease: once, and whole."""

import os
import random
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "support"))

import uml

pytestmark = pytest.mark.skipif(not uml.available(), reason=uml.REASON)
KEYS = 20
ROUNDS = int(os.environ.get("WARMER_CHAOS_ROUNDS", "1"))


@pytest.mark.parametrize("_round", range(ROUNDS))
def test_every_key_is_published_once_and_whole_whoever_dies(_round):
    seed = int(os.environ.get("WARMER_SEED") or random.randrange(1 << 32))  # noqa: S311 - a seed
    print(f"WARMER_SEED={seed}")
    told = {"seed": seed, "workers": 6, "keys": KEYS, "lease": 6.0, "kills": 15}
    told |= {"partitions": 2, "silence": 16, "seconds": 300}
    scenario = Path(__file__).parent / "scenarios" / "chaos.py"
    (found,) = uml.boot(scenario, args=told, memory="1G", timeout=600).results
    print(found)
    assert found["left"] == 0, "some pod never ended"
    assert found["published"] == [1] * KEYS, "a key is missing, or was published twice"
    assert found["acked_twice"] == 0
    assert (found["kills"], found["partitions"]) == (15, 2), "the nemesis found nobody to hit"
