"""`warmer doctor --join` on two nodes of a real NFS: what it finds is what NFS is known to do."""

import contextlib
import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import doctors
import uml

pytestmark = pytest.mark.skipif(not uml.available(), reason=uml.REASON)
SCENARIOS = Path(__file__).parent / "scenarios"
SCENARIO = SCENARIOS / "join.py"
CASES = {
    "4.1": {"vers": "4.1"},
    "3": {"vers": "3", "options": "nolock"},
    "twins": {"vers": "4.1", "hostname": "twin"},
}


@pytest.fixture(scope="module")
def guests():
    """All cases side by side: they wait more than they work."""
    with contextlib.ExitStack() as stack:
        yield {
            case: stack.enter_context(uml.start(SCENARIO, args=how, memory="512M"))
            for case, how in CASES.items()
        }


def told(guests, case):
    """The codes of the two doctors, and what each found, by name."""
    (result,) = guests[case].wait(800).results
    found = [{f["name"]: f for f in answer["findings"]} for answer in result["answers"]]
    print(case, *(f"{f['name']}: {f['found']}" for f in found[0].values()), sep="\n  ")
    return result, found


def wrong(found):
    """What is not ok; the guest's disk is small."""
    return {f["name"]: f["verdict"] for f in found.values() if f["verdict"] != "ok"} | {
        "free": "-",
        "writers": "-",
    }


def test_nfs_41_does_all_that_is_needed_and_shows_names_late_to_plain_looks(guests):
    result, both = told(guests, "4.1")
    assert (result["codes"], result["left"]) == ([0, 0], [])
    for found in both:
        assert set(found) == {*doctors.ALONE, *doctors.TOGETHER}
        assert wrong(found) == {"free": "-", "writers": "-"}
        assert "boot ids differ" in found["two nodes"]["found"]
        names = found["names across pods"]["found"]
        reopened, plain = map(float, re.findall(r"(\d+\.\d+) s", names))
        assert reopened < plain, names
        assert "old bytes" in found["replaced while open"]["found"]


def test_nfs_3_without_locks_is_told_by_its_mount_and_by_the_proof(guests):
    result, both = told(guests, "3")
    assert (result["codes"], result["left"]) == ([0, 0], [])
    for found in both:
        expected = {
            "locks by mount": "warn",
            "locks across pods": "warn",
            "free": "-",
            "writers": "-",
        }
        assert wrong(found) == expected
        assert found["locks"]["verdict"] == "ok", "on one node they do exclude"
        assert "both pods hold one lock" in found["locks across pods"]["found"]
        assert re.search("ESTALE|old bytes", found["replaced while open"]["found"])


def test_two_nodes_of_one_hostname_are_told_so(guests):
    """They disturb each other so much that all but who they are may fail, meeting included."""
    _, both = told(guests, "twins")
    assert all(found["locks by mount"]["verdict"] == "ok" for found in both), "it cannot tell"
    hostnames = [found["hostnames"] for found in both if "hostnames" in found]
    assert hostnames, "neither met the other"
    for row in hostnames:
        assert row["verdict"] == "warn"
        assert "nfs4_unique_id" in row["hint"]


def test_two_doctors_on_nfs_3_always_meet():
    """What one does to the other's directory within a tick of its own change is still seen."""
    how = {"vers": "3", "options": "nolock", "rounds": 60}
    (result,) = uml.boot(SCENARIOS / "meetings.py", args=how, memory="512M", timeout=300).results
    assert result["said"] == [["all"], ["all"]]
