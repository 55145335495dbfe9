"""`warmer doctor --join` as two processes on one machine, which find each other by files alone."""

import itertools
import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import doctors
import leases
import runs

from warmer.doctor import judging, pair
from warmer.errors import BusyError
from warmer.layout import Volume
from warmer.urls import LockUrl, parse_lock

PATIENT = ("--join", "--timeout", "60")
ALL = {*doctors.ALONE, *doctors.TOGETHER}


@pytest.fixture
def volume(tmp_path):
    (tmp_path / "volume").mkdir()
    return tmp_path / "volume"


@pytest.fixture
def cluster(tmp_path):
    with leases.LeaseServer() as server:
        yield server, {"KUBECONFIG": server.kubeconfig(tmp_path / "kubeconfig")}


def joined(volume, *words, env=None):
    """Run two doctors, each with more words."""
    both = [doctors.start(volume, *PATIENT, *more, env=env) for more in words or ((), ())]
    return [doctors.finish(process) for process in both]


def claimed(volume):
    """The private directories of doctors that have a partner."""
    top = f"{volume}/v1/doctor"
    return [f"{top}/{n}" for n in runs.listing(top) if os.path.exists(f"{top}/{n}/partner")]


def test_two_on_one_node_agree_and_are_warned_that_it_proves_little(volume):
    results = joined(volume)
    for result in results:
        assert (result.code, doctors.not_ok(result)) == (0, {"two nodes": "warn"}), result
        assert set(doctors.found(result)) == ALL
        assert "one node" in doctors.found(result)["two nodes"]["found"]
    roles = [doctors.found(result)["other pod"]["found"][:9] for result in results]
    assert sorted(roles) == ["this is A", "this is B"]
    a, b = ([doctors.found(result)[name] for name in doctors.TOGETHER[1:]] for result in results)
    assert a == b
    assert os.listdir(volume) == []


def test_a_partner_that_never_comes_is_3(volume):
    began = time.monotonic()
    result = doctors.examine(volume, "--join", "--timeout", "1")
    assert time.monotonic() - began >= 1
    assert (result.code, doctors.not_ok(result)) == (3, {"joining": "fail"}), result
    assert "within 1 s" in doctors.found(result)["joining"]["found"]
    assert os.listdir(volume) == []


def test_a_doctor_that_does_not_want_to_join_is_no_partner(volume):
    waiting = doctors.start(volume, *PATIENT)
    runs.eventually(lambda: doctors.waits(volume), timeout=60)
    alone = doctors.examine(volume)
    assert (alone.code, set(doctors.found(alone)) - {"leftovers"}) == (0, set(doctors.ALONE))
    assert waiting.poll() is None
    waiting.send_signal(signal.SIGTERM)
    assert doctors.finish(waiting).code == 143


def test_what_a_killed_doctor_left_is_no_partner(volume):
    dead = doctors.start(volume, *PATIENT)
    (left,) = runs.eventually(lambda: doctors.waits(volume), timeout=60)
    doctors.kill(dead, volume)
    result = doctors.examine(volume, "--join", "--timeout", "2")
    expected = {"joining": "fail", "leftovers": "warn"}
    assert (result.code, doctors.not_ok(result)) == (3, expected), result
    for result in joined(volume):
        assert result.code == 0, result
        assert os.path.basename(left) in doctors.found(result)["leftovers"]["found"]


def test_of_three_two_find_each_other(volume):
    three = [doctors.start(volume, "--join", "--timeout", "15") for _ in range(3)]
    results = [doctors.finish(process) for process in three]
    assert sorted(result.code for result in results) == [0, 0, 3], results
    assert os.listdir(volume) == []


def test_one_that_is_stopped_in_the_middle_leaves_nothing_and_the_other_is_told(volume):
    first = doctors.start(volume, *PATIENT)
    runs.eventually(lambda: doctors.waits(volume), timeout=60)
    second = doctors.start(volume, *PATIENT)
    # Who claims takes its own place first: until both are taken, the other knows of nobody.
    runs.eventually(lambda: len(claimed(volume)) == 2, timeout=60)
    second.send_signal(signal.SIGTERM)
    stopped, left = doctors.finish(second), doctors.finish(first)
    assert stopped.code == 143, stopped
    assert left.code == 3, left
    finding = doctors.found(left)["joining"]
    assert (finding["verdict"], "left in the middle" in finding["found"]) == ("fail", True)
    assert os.listdir(volume) == []


def test_one_that_left_as_soon_as_it_had_claimed_the_other_is_told_of(volume):
    mine = volume / "v1" / "doctor" / "b"
    mine.mkdir(parents=True)
    began = time.monotonic()
    (mine / "partner").write_text(json.dumps({"nonce": "a"}))
    with pytest.raises(BusyError) as caught:
        pair.meet(Volume(str(volume)), str(mine), me={}, timeout=30, alive=lambda: None)
    assert caught.value.reason == "partner-left"
    assert time.monotonic() - began < 20, "it waited for somebody else"


def test_a_machine_that_was_stopped_for_a_while_does_not_blame_the_other(tmp_path, monkeypatch):
    mine, theirs = tmp_path / "a", tmp_path / "b"
    for directory in (mine, theirs):
        directory.mkdir()
    looks = itertools.count()

    def alive():
        if next(looks) == 2:
            (theirs / "say-0").write_text(json.dumps({"word": 1}))

    both = pair.Pair(str(mine), str(theirs), "a", cards=({}, {}), alive=alive)
    began, jumps = time.monotonic(), itertools.count()
    monkeypatch.setattr(pair.time, "monotonic", lambda: began + 1000.0 * min(1, next(jumps)))
    assert both.learn() == {"word": 1}


# --- a lock at a service -------------------------------------------------------------------------


def test_both_take_turns_at_the_lock_they_are_given(volume, cluster):
    server, env = cluster
    words = ("--lock", "k8s://warm/models")
    for result in joined(volume, words, words, env=env):
        findings = doctors.found(result)
        assert (result.code, findings["--lock k8s across"]["verdict"]) == (0, "ok"), result
        assert set(findings) == {*ALL, "--lock k8s", "--lock k8s across"}
    assert len(server.leases) == 1


def test_two_locks_exclude_nobody(volume, cluster):
    _, env = cluster
    words = [("--lock", f"k8s://warm/{name}") for name in ("models", "other")]
    for result in joined(volume, *words, env=env):
        finding = doctors.found(result)["--lock k8s across"]
        assert (result.code, finding["verdict"]) == (0, "warn"), result
        assert "k8s://warm/models" in finding["found"]
        assert "k8s://warm/other" in finding["found"]


# --- what facts mean, where they are not to be had on one machine --------------------------------

FACTS = {
    **{f"file_{pod}_holds": "got" for pod in "ab"},
    **{f"file_{pod}_tries": "refused" for pod in "ab"},
    **{f"file_{pod}_seconds": 0.1 for pod in "ab"},
    **{f"service_{pod}_holds": "got" for pod in "ab"},
    **{f"service_{pod}_tries": "refused" for pod in "ab"},
    "names_reopened": 0.1,
    "names_plain": 25.0,
    "renamed_directories": {"directories": 10, "partial": 0},
    "renamed_file": {"looks": 100, "absent": 0, "torn": 0},
    "replaced_read": "old",
    "publishing_tried": "ENOTEMPTY",
    "publishing_left": ["a"],
}
POD = {"hostname": "x", "boot": "1", "mount": "nfs4", "unique_id": "", "warmer": "0"}
POD |= {"lock": "k8s://n/p"}
TWIN = POD | {"boot": "2"}
OTHER = TWIN | {"hostname": "y"}
CEPH, CEPH_OTHER = POD | {"mount": "ceph"}, OTHER | {"mount": "ceph"}


def judged(url="k8s://n/p", a=POD, b=OTHER, **facts):
    """Map the names of findings that are not ok to their verdicts, and all to their hints."""
    findings = judging.judge(FACTS | {"a": a, "b": b} | facts, role="a", url=parse_lock(url))
    wrong = {f.name: f.verdict for f in findings if f.verdict not in ("ok", "skip")}
    return wrong, {f.name: f.hint for f in findings}


def test_two_nodes_where_all_is_well_have_no_warning():
    assert judged()[0] == {}


def test_one_hostname_on_two_nodes_of_nfs_is_warned_about():
    wrong, hints = judged(b=TWIN)
    assert wrong == {"hostnames": "warn"}
    assert "nfs4_unique_id" in hints["hostnames"]
    assert judged(a=POD | {"unique_id": "u"}, b=TWIN | {"unique_id": "v"})[0] == {}
    assert judged(b=TWIN | {"unique_id": "u"}, a=POD | {"unique_id": "u"})[0] == wrong
    assert judged(a=POD | {"mount": "ceph"}, b=TWIN | {"mount": "ceph"})[0] == {}


def test_two_pods_with_names_of_their_own_are_told_that_their_nodes_may_share_one():
    wrong, hints = judged("file", file_b_tries="got", file_b_seconds=None)
    assert wrong == {"hostnames": "warn", "locks across pods": "warn"}
    for name in wrong:
        assert "nfs4_unique_id" in hints[name]
    assert "k8s://" in hints["locks across pods"]


@pytest.mark.parametrize(
    ("facts", "wrong"),
    [
        ({"file_b_tries": "got"}, {"hostnames": "warn", "locks across pods": "warn"}),
        ({"file_a_tries": "got"}, {"hostnames": "warn", "locks across pods": "warn"}),
        ({"file_a_tries": "got", "a": CEPH, "b": CEPH_OTHER}, {"locks across pods": "warn"}),
        ({"file_a_holds": "the volume takes no file locks"}, {"locks across pods": "warn"}),
        ({"file_a_seconds": None}, {"locks across pods": "warn"}),
        ({"names_reopened": 2.5}, {"names across pods": "fail"}),
        ({"names_reopened": None, "names_plain": None}, {"names across pods": "fail"}),
        ({"names_plain": None}, {}),
        ({"replaced_read": "ESTALE"}, {}),
        ({"replaced_read": "torn"}, {"replaced while open": "warn"}),
        ({"publishing_tried": "replaced"}, {"no replacing across": "fail"}),
        ({"publishing_left": ["a", "b"]}, {"no replacing across": "fail"}),
        ({"publishing_tried": "EIO"}, {"no replacing across": "warn"}),
        ({"publishing_tried": "EEXIST"}, {}),
        ({"service_b_tries": "got"}, {"--lock k8s across": "fail"}),
        ({"service_a_holds": "the API answered 500"}, {"--lock k8s across": "fail"}),
        ({"renamed_directories": {"directories": 9, "partial": 1}}, {"publishing across": "fail"}),
        ({"renamed_directories": {"directories": 0, "partial": 0}}, {"publishing across": "warn"}),
        ({"renamed_file": {"looks": 99, "absent": 0, "torn": 1}}, {"file rename across": "fail"}),
        ({"renamed_file": {"looks": 99, "absent": 1, "torn": 0}}, {"file rename across": "warn"}),
        ({"renamed_file": {"looks": 3, "absent": 0, "torn": 0}}, {"file rename across": "warn"}),
    ],
)
def test_each_fact_that_is_not_as_it_should_be_shows(facts, wrong):
    assert judged(**facts)[0] == wrong


def test_what_was_not_come_to_is_skipped():
    known = {"a": POD, "b": OTHER, **{n: v for n, v in FACTS.items() if n.startswith("file_")}}
    findings = judging.judge(known, role="b", url=LockUrl())
    assert {f.name: f.verdict for f in findings if f.name in doctors.TOGETHER[:4]} == dict.fromkeys(
        doctors.TOGETHER[:4], "ok"
    )
    assert {f.verdict for f in findings if f.name in doctors.TOGETHER[4:]} == {"skip"}
