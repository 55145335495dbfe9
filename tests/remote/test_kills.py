"""A prefill that is killed while it pulls or pushes: the bucket stays right, and the next run is."""

import os
import sys

import pytest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import fleets
import runs
import volumes

NEVER = ("--compile", "never")


def held_at(fleet, fault, start):
    """Start a prefill and kill it as soon as a fault holds its request."""
    process = start()
    runs.eventually(lambda: fault.times == 0 or process.poll() is not None, 30)
    assert process.poll() is None, process.communicate()
    # What is held after the target heard of it is there by now, or about to be.
    runs.kill(process)
    fleet.bucket.wire.faults.clear()


PULLS = {
    "the first listing": {"path": "list-type=2"},
    "a shared seal": {"path": "/seals/jit/.*json"},
    "a shared blob": {"path": "/blobs/"},
    "the compile seal": {"path": "/seals/compile/.*json"},
}


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("at", PULLS)
def test_a_killed_pull_leaves_nothing_but_staging_and_is_done_again(fleet, at, when):
    node = fleet.node()
    fault = fleet.bucket.wire.fault(**PULLS[at], method="GET", hang=when, times=1)
    held_at(fleet, fault, lambda: node.start("prefill", "--json", *NEVER, env=fleet.env()))
    volumes.assert_invariants(node.volume)
    for key in node.held():
        runs.eventually(lambda key=key: not runs.locked(key))
    done = node.warmed(*NEVER, env=fleet.env())
    assert done.json["warm"] is True
    volumes.assert_invariants(node.volume, warm=[node.warm], clean=True)
    assert node.run("check", "--deep").code == 0


def test_a_pull_that_is_killed_within_a_blob_is_done_again(fleet):
    (archive,) = (f for f in fleet.seals("compile")[1]["files"] if f["path"] == "tree.tar.zst")
    # The proxy passes half of it, and then answers the second try never.
    fleet.bucket.wire.fault(archive["sha256"], truncate=20_000, times=1)
    fault = fleet.bucket.wire.fault(archive["sha256"], hang="before", times=1)
    node = fleet.node()
    held_at(fleet, fault, lambda: node.start("prefill", "--json", *NEVER, env=fleet.env()))
    (staging,) = node.staged()
    assert 0 < os.stat(f"{staging}/tree.tar.zst").st_size < archive["size"]
    done = node.warmed(*NEVER, env=fleet.env())
    assert done.json["warm"] is True
    assert "compile" in done.json["pulled_bytes"]
    volumes.assert_invariants(node.volume, clean=True)


def test_a_pull_that_is_terminated_ends_at_once_and_leaves_nothing(fleet):
    node = fleet.node()
    fault = fleet.bucket.wire.fault("/blobs/", hang="before")
    process = node.start("prefill", "--json", *NEVER, env=fleet.env())
    runs.eventually(lambda: any("/blobs/" in path for _, path in fleet.bucket.wire.requests), 30)
    process.terminate()
    assert runs.finish(process, timeout=12).code == 143, "before its reads time out"
    assert fault.times is None
    volumes.assert_invariants(node.volume, clean=True)


PUSHES = {
    "the first blob": {"path": "/blobs/", "method": "PUT"},
    "a shared seal": {"path": "/seals/jit/", "method": "PUT"},
    "the compile seal": {"path": "/seals/compile/", "method": "PUT"},
}


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("at", PUSHES)
def test_a_killed_push_leaves_no_seal_without_its_blobs_and_the_pod_is_warm(empty, at, when):
    node = empty.node()
    fault = empty.bucket.wire.fault(**PUSHES[at], hang=when, times=1)
    held_at(empty, fault, lambda: node.start("prefill", "--json", env=empty.env()))
    empty.check()
    assert node.run("check", "--deep").code == 0, "handed off before anything is pushed"
    assert node.warmed(env=empty.env()).json["warm"] is True
    other = empty.node()
    assert other.warmed(env=empty.env()).json["warm"] is True
    empty.check()
    last = empty.node()
    starts = len(last.engine.starts)
    assert last.warmed(*NEVER, env=empty.env()).json["warm"] is True
    assert len(last.engine.starts) == starts


def test_a_push_that_is_terminated_ends_at_once_and_is_told_by_the_status(empty):
    node = empty.node()
    fault = empty.bucket.wire.fault("/blobs/", method="PUT", hang="before", times=1)
    process = node.start("prefill", "--json", env=empty.env())
    runs.eventually(lambda: fault.times == 0, 30)
    process.terminate()
    assert runs.finish(process).code == 143
    assert node.run("check").code == 0
    empty.check()


def test_the_answer_to_a_seal_that_is_lost_does_not_make_two_of_it(empty):
    empty.bucket.wire.fault("/seals/", method="PUT", drop="after", times=2)
    empty.bucket.wire.fault("/blobs/", method="PUT", drop="after", times=2)
    done = empty.node().warmed(env=empty.env())
    assert done.json["warm"] is True
    assert [list(empty.seals(kind)) for kind in fleets.KERNELS] == [[1]] * len(fleets.KERNELS)
    empty.check()
