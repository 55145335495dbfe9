"""Filesystems that lie, each in one way: the doctor finds out.

Two mounts over one directory are as two nodes: neither's kernel knows what the other's does.
"""

import os
import signal
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import doctors
import runs

pytestmark = pytest.mark.skipif(
    not doctors.can_lie(), reason="needs root, /dev/fuse, libfuse and the package mfusepy"
)

# A reader of this honest filesystem may miss a file while it is replaced: libfuse looks by path.
HONEST = {"locks by mount": "warn", "file rename": "warn"}

ALONE = {
    "renames-copy": {"publishing": "warn"},
    "renames-delete-first": {"file rename": "warn"},
    "renames-replace": {"no replacing": "fail"},
    "renames-mix": {"no replacing": "fail"},
    "renames-unknown": {"publishing": "fail", "no replacing": "warn", "file rename": "fail"},
    "no-locks": {"locks": "warn"},
    "locks-exclude-nobody": {"locks": "warn"},
    "mtime-in-seconds": {"mtime": "warn"},
    "mtime-now": {"mtime": "warn"},
    "no-links": {"symlinks": "warn", "hard links": "warn"},
    "links-copy": {"hard links": "warn"},
    "no-fsync": {"fsync": "fail"},
}
SEEN = {
    "mtime-in-seconds": "cut to 1 s",
    "renames-unknown": "ENOSYS",
    "no-fsync": "of a directory: EINVAL",
    "no-locks": "Function not implemented",
}


@pytest.fixture
def under(tmp_path):
    (tmp_path / "under").mkdir()
    return tmp_path / "under"


def test_of_an_honest_filesystem_nothing_bad_is_said(under, tmp_path):
    with doctors.lying(under, tmp_path / "point") as volume:
        result = doctors.examine(volume)
    assert result.code == 0
    assert doctors.not_ok(result).items() <= HONEST.items(), result
    assert os.listdir(under) == []


@pytest.mark.parametrize("lie", ALONE)
def test_a_lie_is_found_and_what_was_seen_is_said(under, tmp_path, lie):
    with doctors.lying(under, tmp_path / "point", lie) as volume:
        result = doctors.examine(volume)
    wrong, told = doctors.not_ok(result), ALONE[lie]
    seen = " ".join(finding["found"] for finding in doctors.found(result).values())
    assert SEEN.get(lie, "") in seen
    assert told.items() <= wrong.items(), (told, result)
    others = {name: verdict for name, verdict in wrong.items() if name not in told}
    assert others.items() <= HONEST.items(), result
    assert result.code == (6 if "fail" in told.values() else 0)
    assert os.listdir(under) == []


def test_locks_that_exclude_nobody_cost_nothing_where_the_lock_is_elsewhere(under, tmp_path):
    env = {"KUBECONFIG": str(tmp_path / "none")}
    with doctors.lying(under, tmp_path / "point", "no-locks") as volume:
        by_file = doctors.found(doctors.examine(volume))["locks"]["hint"]
        by_lease = doctors.found(doctors.examine(volume, "--lock", "k8s://n/p", env=env))
    assert "work twice" in by_file
    assert "k8s://" in by_file
    assert "work twice" not in by_lease["locks"]["hint"]


def test_an_error_without_a_hint_of_its_own_has_one_all_the_same(under, tmp_path):
    with doctors.lying(under, tmp_path / "point", "no-directories") as volume:
        result = doctors.examine(volume)
    finding = doctors.found(result)["writable"]
    assert (result.code, finding["verdict"]) == (6, "fail"), result
    assert "kernel log" in finding["hint"]


# --- a volume that hangs -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lie", "last"),
    [("hangs-when-full-is-asked", "locks by mount"), ("hangs-when-renamed", "fsync")],
)
def test_a_volume_that_hangs_is_6_and_holds_nobody_up(under, tmp_path, lie, last):
    with doctors.lying(under, tmp_path / "point", lie) as volume:
        result = doctors.examine(volume, warmer=doctors.IMPATIENT)
        found = doctors.found(result)
        assert result.code == 6, result
        assert list(found)[-2:] == [last, "answers"]
        assert (found["answers"]["verdict"], "10 s" in found["answers"]["found"]) == ("fail", True)
        left = runs.processes(volume)
    # What hung in the kernel ends with the mount.
    runs.eventually(lambda: not set(left) & set(runs.processes(str(tmp_path))), timeout=30)
    after = doctors.found(doctors.examine(under))
    assert ("leftovers" in after) == (lie == "hangs-when-renamed")


def test_a_volume_that_never_answers_at_all_has_but_one_row(under, tmp_path):
    with doctors.lying(under, tmp_path / "point", "hangs-when-asked") as volume:
        result = doctors.examine(volume, warmer=doctors.IMPATIENT)
    assert (result.code, doctors.not_ok(result)) == (6, {"answers": "fail"}), result


def test_a_doctor_on_a_volume_that_hangs_can_be_stopped(under, tmp_path):
    with doctors.lying(under, tmp_path / "point", "hangs-when-tidied") as volume:
        process = doctors.start(volume)
        runs.eventually(lambda: list(under.glob("v1/doctor/*/alone/staged/*")), timeout=60)
        process.send_signal(signal.SIGTERM)
        assert doctors.finish(process).code == 143


# --- two nodes -----------------------------------------------------------------------------------


def joined(under, tmp_path, *lies):
    """Two doctors on two mounts of one directory; returns their results, equal but for the role."""
    points = [tmp_path / "one", tmp_path / "two"]
    with doctors.lying(under, points[0], *lies), doctors.lying(under, points[1], *lies):
        both = [doctors.start(point, "--join", "--timeout", "60") for point in points]
        results = [doctors.finish(process) for process in both]
    one, two = ([doctors.found(result)[name] for name in doctors.TOGETHER] for result in results)
    assert one[1:] == two[1:]
    return results


def test_two_nodes_of_an_honest_filesystem_find_that_its_locks_do_not_exclude(under, tmp_path):
    for result in joined(under, tmp_path):
        wrong = doctors.not_ok(result)
        assert wrong.pop("two nodes") == wrong.pop("locks across pods") == "warn"
        assert wrong.items() <= HONEST.items(), result
        assert result.code == 0
        finding = doctors.found(result)["locks across pods"]
        assert "both pods hold one lock at once" in finding["found"]
        assert "s3://" in finding["hint"]
    assert os.listdir(under) == []


@pytest.mark.parametrize(
    ("lie", "failing"),
    [
        ("renames-copy", {"publishing across", "file rename across"}),
        ("renames-replace", {"no replacing", "no replacing across"}),
        ("renames-mix", {"no replacing", "no replacing across"}),
        ("names-late", {"names across pods"}),
    ],
)
def test_a_lie_that_only_another_node_sees_is_found(under, tmp_path, lie, failing):
    for result in joined(under, tmp_path, lie):
        wrong = doctors.not_ok(result)
        assert {name for name, verdict in wrong.items() if verdict == "fail"} == failing, result
        assert result.code == 6
    assert os.listdir(under) == []
