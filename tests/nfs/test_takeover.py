"""An owner that is stopped or cut off on one NFS node is succeeded on the other, and publishes nothing."""

import contextlib
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "support"))

import uml

pytestmark = pytest.mark.skipif(not uml.available(), reason=uml.REASON)
SCENARIO = Path(__file__).parent / "scenarios" / "takeover.py"
LEASE = 4.0


@pytest.fixture(scope="module")
def guests():
    """Both versions side by side: they wait more than they work."""
    with contextlib.ExitStack() as stack:
        yield {
            vers: stack.enter_context(
                uml.start(SCENARIO, args={"vers": vers, "lease": LEASE}, memory="512M")
            )
            for vers in ("4.1", "4.0")
        }


@pytest.mark.parametrize("vers", ["4.1", "4.0"])
@pytest.mark.parametrize(
    "case", ["stopped", "cut off, the server first", "cut off, the waiter first"]
)
def test_the_first_owner_is_succeeded_after_a_lease_and_its_publish_refused(guests, vers, case):
    results = guests[vers].wait(300).results
    (found,) = [result for result in results if result["case"] == case]
    print(f"NFS {vers}, {case}: taken over after {found['waited']:.1f} s")
    assert (found["waits_for"], found["epoch"]) == ("first", 2)
    assert (found["number"], found["owner"]) == (1, "refused")
    assert found["whole"] == 1, "only the second one's is published"
    if "server" not in case:
        assert found["waited"] >= LEASE, "it was taken over while it might have lived"


def test_nodes_of_one_hostname_both_get_the_lock_and_one_is_told_why_not_both_keep_it():
    (found,) = uml.boot(SCENARIO.with_name("twins.py"), memory="512M", timeout=300).results
    print(found)
    assert found["got"] == ["held", "held"], "the server takes them for one client"
    assert found["mine"][-1].count(True) <= 1, "both still believe"
    # Who loses it may also be told by its heartbeat.
    why = [event for event in found["logged"] if "a living owner's lock" in event]
    assert why, "neither was told that a living owner's lock was given to another"
    assert len(why) <= 2, "each says so once"
