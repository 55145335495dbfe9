"""The nodes are what warmer's design takes NFS for: locks, their loss, renames, and late names."""

import contextlib
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "support"))

import uml

pytestmark = pytest.mark.skipif(not uml.available(), reason=uml.REASON)
SCENARIOS = Path(__file__).parent / "scenarios"


@pytest.fixture(scope="module")
def guests():
    """All scenarios side by side: they wait more than they work."""
    with contextlib.ExitStack() as stack:
        yield {
            name: stack.enter_context(uml.start(SCENARIOS / f"{name}.py", memory="512M"))
            for name in ("zombie", "visibility", "locks", "gc")
        }


def told(guest, what, **where):
    """The one thing called `what` that a scenario reported of a case."""
    results = guest.wait(300).results
    (found,) = [r[what] for r in results if what in r and where.items() <= r.items()]
    return found


@pytest.mark.parametrize("vers", ["4.1", "4.0"])
def test_a_lock_excludes_the_other_node_until_its_holder_is_killed(guests, vers):
    assert told(guests["locks"], "locks", case=vers) == ["ok", "EAGAIN"]
    freed = told(guests["locks"], "freed", case=vers)
    assert freed is not None, "it was never free"
    print(f"NFS {vers}: freed {freed:.2f} s after kill -9")


@pytest.mark.parametrize("case", ["3", "twins"])
def test_where_locks_stay_in_one_kernel_or_nodes_share_a_name_both_get_the_lock(guests, case):
    """NFSv3 with ``nolock``, and two NFSv4.1 nodes of one hostname."""
    assert told(guests["locks"], "locks", case=case) == ["ok", "ok"]


@pytest.mark.parametrize("vers", ["4.1", "4.0", "3"])
def test_a_directory_never_replaces_one_that_another_node_published(guests, vers):
    assert told(guests["locks"], "renames", case=vers) == ["ok", "ENOTEMPTY"]
    assert told(guests["locks"], "seen", case=vers) == ["0", "0"]


def test_a_name_looked_for_in_vain_is_seen_at_once_only_when_the_directory_is_reopened(guests):
    assert told(guests["visibility"], "before") == [False, False]
    assert told(guests["visibility"], "at_once") == [False, True]
    late = told(guests["visibility"], "late")
    assert late is not None, "it was never seen"
    print(f"without reopening: seen {late:.1f} s after it was published")


@pytest.mark.parametrize("vers", ["4.1", "4.0"])
def test_a_node_back_after_its_lease_cannot_write_where_it_held_the_lock(guests, vers):
    assert told(guests["zombie"], "held", vers=vers) == ["ok", "ok", "EAGAIN"]
    freed = told(guests["zombie"], "freed", vers=vers)
    assert freed is not None, "the lock was never free"
    print(f"NFS {vers}: freed {freed:.1f} s after the node was cut off")
    answers = told(guests["zombie"], "answers", vers=vers)
    # It can write elsewhere: only publishing without replacing stops that.
    assert answers == {"locked": "EIO", "other": "ok", "heir": "ok"}


@pytest.mark.parametrize("vers", ["4.1", "4.0"])
def test_gc_sees_that_a_server_of_another_node_runs_from_a_mount_that_it_cannot_write(guests, vers):
    assert told(guests["gc"], "filled", case=vers) == 0
    code, while_it_ran = told(guests["gc"], "running", case=vers)
    assert code == 0
    assert [step["action"] for step in while_it_ran["steps"]] == ["renew"]
    assert [kept["kind"] for kept in while_it_ran["kept"]] == ["weights"]
    code, after_its_end = told(guests["gc"], "ended", case=vers)
    assert code == 0
    assert [s["kind"] for s in after_its_end["steps"] if s["action"] == "hide"] == ["weights"]


def test_where_locks_stay_in_one_kernel_gc_goes_by_age_alone(guests):
    """As docs/gc.md and its warning say: no pod may run longer than --keep there."""
    _, while_it_ran = told(guests["gc"], "running", case="3")
    assert [s["kind"] for s in while_it_ran["steps"] if s["action"] == "hide"] == ["weights"]
