"""Records of use: written before the look, as old as their file, and never lost unseen."""

import fcntl
import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "support"))

import aging
import runs
import structlog
import volumes

from warmer import usage
from warmer.fill import uses
from warmer.layout import Volume, WarmDir
from warmer.observe import inventory
from warmer.usage import ANY, Piece

DIGEST = "a" * 64
KEY, ONE, TWO = (Piece("weights", DIGEST, number) for number in (ANY, 1, 2))
JIT = Piece("jit", "b" * 64, 7)


@pytest.fixture
def volume(tmp_path):
    os.mkdir(tmp_path / "volume")
    return Volume(str(tmp_path / "volume"))


@pytest.fixture
def warm(tmp_path):
    os.mkdir(tmp_path / "warm")
    return WarmDir(str(tmp_path / "warm"))


def record(volume, warm, *pieces):
    """Record a use, and return what the log said."""
    with structlog.testing.capture_logs() as said:
        uses.record(volume, warm, pieces, owner="a pod")
    return said


def only(volume):
    (use,) = uses.read_all(volume)
    return use


@contextmanager
def held(volume, name):
    """A server that runs, as another process."""
    with open(volume.live(name), "rb") as f:
        fcntl.flock(f, fcntl.LOCK_SH)
        yield


def test_what_is_recorded_is_read_again(volume, warm):
    assert uses.read_all(volume) == []
    assert record(volume, warm, ONE, JIT) == []
    use = only(volume)
    assert (use.pieces, use.owner, use.live, use.why) == ({ONE, JIT}, "a pod", False, "")
    assert use.name == uses.name_of(warm)
    volumes.assert_invariants(volume.root)
    assert os.path.getsize(volume.since) == 0


def test_each_warm_dir_has_one_record(volume, warm, tmp_path):
    for name in "xy":
        os.mkdir(tmp_path / name)
        for number in (ANY, 1, 2):
            record(volume, WarmDir(str(tmp_path / name)), KEY._replace(number=number))
    assert len(uses.read_all(volume)) == 2
    assert {use.pieces for use in uses.read_all(volume)} == {frozenset({TWO})}


@pytest.mark.parametrize(
    ("before", "after", "left"),
    [
        ([ONE], [ONE], [ONE]),
        ([ONE], [KEY], [ONE]),
        ([KEY], [ONE], [ONE]),
        ([ONE], [TWO], [TWO]),
        ([ONE, JIT], [KEY], [ONE, JIT]),
        ([ONE], [KEY, JIT], [KEY, JIT]),
        ([ONE, JIT], [ONE], [ONE]),
    ],
    ids=str,
)
def test_a_record_is_made_young_again_and_rewritten_only_for_what_it_lacks(
    volume, warm, before, after, left
):
    record(volume, warm, *before)
    path = aging.records(volume.root)[0]
    inode = path.stat().st_ino
    aging.age(path, 20)
    aged = only(volume).at
    record(volume, warm, *after)
    assert only(volume).pieces == set(left)
    assert only(volume).at > aged + 19 * aging.DAY
    same = set(before) == set(left)
    assert (path.stat().st_ino == inode) == same


def test_what_a_running_server_was_handed_stays_recorded(volume, warm):
    record(volume, warm, ONE)
    with held(volume, only(volume).name):
        record(volume, warm, TWO, JIT)
        assert only(volume).pieces == {ONE, TWO, JIT}
    record(volume, warm, TWO)
    assert only(volume).pieces == {TWO}


def test_the_copy_of_a_warm_dir_on_another_node_is_another_user(volume, warm, monkeypatch):
    record(volume, warm, ONE)
    monkeypatch.setattr(inventory, "boot", lambda: "another")
    record(volume, warm, TWO)
    assert {use.pieces for use in uses.read_all(volume)} == {frozenset({ONE}), frozenset({TWO})}


def test_a_record_that_was_removed_is_written_anew(volume, warm):
    record(volume, warm, ONE)
    os.unlink(aging.records(volume.root)[0])
    record(volume, warm, ONE)
    assert only(volume).pieces == {ONE}


TORN = {
    "empty": b"",
    "zeroes": b"\0" * 100,
    "cut": b'{"schema_version": 1, "pieces": [{"kind": "wei',
    "list": b"[]",
    "newer": json.dumps({"schema_version": 2, "owner": "", "pieces": []}).encode(),
    "no pieces": b'{"schema_version": 1, "owner": ""}',
    "deep": b"[" * 100_000,
    "a kind of a later release": json.dumps(
        {
            "schema_version": 1,
            "owner": "",
            "pieces": [{"kind": "adapters", "key": DIGEST, "generation": 1}],
        }
    ).encode(),
    "a path": usage.encode([ONE._replace(digest="../../x")], warm="", owner=""),
    "a negative": usage.encode([ONE._replace(number=-1)], warm="", owner=""),
    "a truth": usage.encode([ONE._replace(number=True)], warm="", owner=""),
}


@pytest.mark.parametrize("data", TORN.values(), ids=TORN)
def test_a_record_that_cannot_be_read_is_not_taken_for_none_and_the_next_prefill_mends_it(
    volume, warm, data
):
    record(volume, warm, ONE)
    aging.records(volume.root)[0].write_bytes(data)
    use = only(volume)
    assert use.pieces is None
    assert use.why
    assert record(volume, warm, ONE) == []
    assert only(volume).pieces == {ONE}


def test_a_record_that_is_no_file_is_not_taken_for_none(volume, warm):
    record(volume, warm, ONE)
    path = aging.records(volume.root)[0]
    path.unlink()
    path.mkdir()
    assert (only(volume).pieces, only(volume).why) == (None, "Is a directory")


def test_a_running_server_is_seen_until_it_ends(volume, warm):
    record(volume, warm, ONE)
    name = only(volume).name
    with held(volume, name):
        assert only(volume).live
        assert not uses.forget(volume, only(volume))
    assert not only(volume).live


def test_a_lock_without_its_record_may_stand_for_anything_while_it_is_held(volume, warm):
    record(volume, warm, ONE)
    name = only(volume).name
    os.unlink(volume.use(name))
    with held(volume, name):
        assert (only(volume).pieces, only(volume).live) == (None, True)
        assert not uses.forget(volume, only(volume))
    assert (only(volume).pieces, only(volume).live) == (frozenset(), False)
    assert uses.forget(volume, only(volume))
    assert uses.read_all(volume) == []


def test_a_record_is_forgotten_with_its_lock(volume, warm):
    record(volume, warm, ONE)
    assert uses.forget(volume, only(volume))
    assert aging.names(volume.root, "uses") == ["since"]
    assert record(volume, warm, ONE) == []


def test_a_record_that_became_young_meanwhile_is_not_forgotten(volume, warm):
    record(volume, warm, ONE)
    aging.age(aging.records(volume.root)[0], 20)
    seen = only(volume)
    record(volume, warm, ONE)
    assert not uses.forget(volume, seen)
    assert only(volume).pieces == {ONE}
    assert len(aging.names(volume.root, "uses")) == 3


def test_a_record_that_was_rewritten_while_it_is_being_forgotten_stays(volume, warm, monkeypatch):
    record(volume, warm, ONE)
    seen = only(volume)
    real = os.rename

    def rename(source, target):
        real(source, target)
        record(volume, warm, TWO)

    monkeypatch.setattr(os, "rename", rename)
    uses.forget(volume, seen)
    assert only(volume).pieces == {TWO}


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts filesystems, as root alone may")
def test_on_a_read_only_volume_a_new_use_is_told_to_go_unrecorded(volume, warm):
    with runs.read_only(volume.root):
        (said,) = record(volume, warm, ONE)
    assert said["log_level"] == "warning"
    assert "Read-only" in said["failure"]
    record(volume, warm, ONE)
    with runs.read_only(volume.root):
        assert record(volume, warm, ONE) == [], "it is recorded already, and ages"
        assert only(volume).pieces == {ONE}


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts filesystems, as root alone may")
def test_on_a_full_volume_nothing_torn_is_left(tmp_path, warm):
    with volumes.tmpfs(tmp_path / "small", "size=64k") as root:
        volume = Volume(root)
        record(volume, warm, ONE)
        Path(root, "ballast").touch()
        subprocess.run(["dd", "if=/dev/zero", f"of={root}/ballast"], capture_output=True)
        (said,) = record(volume, warm, TWO)
        assert "No space left" in said["failure"]
        assert only(volume).pieces == {ONE}
        assert record(volume, warm, ONE) == [], "to make it young needs no room"
        assert len(aging.names(root, "uses")) == 3


@pytest.mark.parametrize("torn", [False, True], ids=["before", "torn"])
def test_a_prefill_killed_while_it_records_leaves_the_old_record_or_the_new(tmp_path, torn):
    def prepared():
        top = tmp_path / os.urandom(4).hex()
        volume, warm = Volume(f"{top}/v"), WarmDir(f"{top}/w")
        for place in (volume.root, warm.root):
            os.makedirs(place)
        record(volume, warm, ONE)
        return volume, warm

    seen = set()
    for _, place in volumes.kill_points(lambda p: record(*p, TWO), prepared, torn=torn):
        volume, warm = place
        volumes.assert_invariants(volume.root)
        seen |= only(volume).pieces
        record(volume, warm, TWO)
        assert only(volume).pieces == {TWO}
    assert seen == ({ONE} if torn else {ONE, TWO})
