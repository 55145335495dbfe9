"""What only the file lock promises, on a kernel's lock and on the name of a file."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from structlog.testing import capture_logs

sys.path.insert(0, os.path.dirname(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import runs
from contract import NONCE, STRANGER
from owner import KEY

from warmer.fill.locks.file import FileGrant, FileLock
from warmer.fill.locks.record import Owner
from warmer.fill.locks.registry import open_lock
from warmer.layout import Volume
from warmer.urls import LockUrl


@pytest.fixture
def bench(file_bench):
    return file_bench


def test_kill_9_of_the_owner_frees_the_lock_at_once_however_often(bench):
    lock = bench.lock()
    for _ in range(3):
        child = bench.child()
        child.ask("take", KEY)
        assert isinstance(lock.try_acquire(KEY), Owner)
        child.kill()
        grant = lock.try_acquire(KEY)
        assert isinstance(grant, FileGrant)
        grant.release()


def test_a_program_that_the_owner_started_does_not_keep_the_lock(bench):
    started = """
import subprocess, sys, time
sys.path.insert(0, sys.argv[1])
import owner
grant = owner.open_lock({"mechanism": "file", "volume": sys.argv[2]}, me="x", lease=30.0)
grant = grant.try_acquire(owner.KEY)
print(subprocess.Popen(["sleep", "60"], close_fds=False).pid, flush=True)
time.sleep(60)
"""
    here = os.path.dirname(__file__)
    holder = subprocess.Popen(
        [sys.executable, "-c", started, here, bench.at["volume"]], stdout=subprocess.PIPE
    )
    engine = int(holder.stdout.readline())
    try:
        assert isinstance(bench.lock().try_acquire(KEY), Owner)
        holder.kill()
        holder.wait()
        os.kill(engine, 0)  # it still runs
        bench.take(bench.lock())
    finally:
        os.kill(engine, signal.SIGKILL)
        holder.stdout.close()


def test_another_open_and_close_of_the_file_by_the_owner_does_not_drop_the_lock(bench):
    grant = bench.take(bench.lock())
    with open(bench.path(), "r+b") as stream:
        stream.read()
    assert bench.child("other").ask("take", KEY)["owner"]["name"] == "me"
    assert grant.still_mine()


def test_a_release_frees_the_lock_even_when_a_forked_process_shares_the_descriptor(bench):
    grant = bench.take(bench.lock())
    pid = os.fork()
    if not pid:
        time.sleep(60)
        os._exit(0)
    try:
        grant.release()
        bench.take(bench.lock())
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_a_stopped_owner_keeps_the_lock_within_its_lease(bench):
    child = bench.child(lease=60.0)
    child.ask("take", KEY)
    child.stop()
    waiter = bench.waiter()
    for _ in range(20):
        assert waiter.look(after=2.5).name == "holder"
    child.wake()
    assert child.ask("mine", KEY) == {"mine": True}
    assert waiter.look(after=2.5).name == "holder", "its sign of life started the lease anew"


def test_a_takeover_puts_a_file_in_place_of_the_old_and_leaves_no_other(bench):
    child = bench.child()
    child.ask("take", KEY)
    child.stop()
    before = os.stat(bench.path()).st_ino
    grant, _ = bench.waiter().take()
    assert os.stat(bench.path()).st_ino != before
    directory = os.path.dirname(bench.path())
    names = {os.path.basename(bench.path())}
    assert set(os.listdir(directory)) - names <= {f"{next(iter(names))}.break"}
    assert grant.still_mine()


def test_of_two_that_take_over_at_once_one_does(bench):
    child = bench.child()
    child.ask("take", KEY)
    child.stop()
    waiters = [bench.waiter(f"waiter {number}") for number in range(2)]
    for waiter in waiters:
        for _ in range(12):
            assert isinstance(waiter.look(after=2.5), Owner)
    found = [waiter.look(after=2.5) for waiter in waiters]
    assert [isinstance(one, FileGrant) for one in found] == [True, False]
    assert found[0].epoch == 2
    assert found[0].still_mine()
    assert found[1].name == "waiter 0"


@pytest.mark.parametrize(
    "record",
    [b"", b"\0" * 100, b'{"epoch": 0, "na', b"\xff\xfe", b"[1, 2]", b"null", b"9" * 5_000_000],
    ids=lambda record: f"{record[:20]!r}-{len(record)}",
)
def test_what_somebody_scribbles_over_a_held_record_is_written_anew(bench, record):
    grant = bench.take(bench.lock())
    Path(bench.path()).write_bytes(record)
    assert isinstance(bench.lock().try_acquire(KEY), Owner)
    assert grant.still_mine()
    assert bench.read()["name"] == "me"
    assert bench.lock().try_acquire(KEY).name == "me"


def test_a_second_owner_where_locks_exclude_nobody_is_noticed_and_told(bench):
    """As between two NFS nodes of one hostname: the record changes under a lock that is held."""
    bench.take(bench.lock()).release()
    grant = bench.take(bench.lock())
    theirs = f'{{"epoch": %d, "name": "{STRANGER}", "nonce": "{NONCE}"}}'
    with capture_logs() as logs:
        Path(bench.path()).write_text(theirs % 1)
        assert grant.still_mine(), "the one of the older grant loses"
        assert (bench.read()["name"], bench.read()["epoch"]) == ("me", 2)
        Path(bench.path()).write_text(theirs % 3)
        before = bench.kept()
        for _ in range(2):
            assert not grant.still_mine(), "the one of the newer grant wins"
        grant.release()
    told = [line for line in logs if line["event"].startswith("a living owner's lock was given")]
    assert [line["other"] for line in told] == [STRANGER], "once"
    assert told[0]["hint"]
    assert bench.kept() == before


def test_an_owner_that_was_rightly_taken_over_does_not_blame_the_mount(bench):
    child = bench.child(lease=1.5)
    child.ask("take", KEY)
    child.stop()
    bench.waiter().take(step=0.5)
    child.wake()
    assert child.ask("mine", KEY) == {"mine": False}
    runs.eventually(lambda: "the lock was lost" in child.log.read_text(), 30)
    assert "a living owner's lock" not in child.log.read_text()


def test_the_heartbeat_rewrites_the_record_three_times_a_lease(bench):
    grant = bench.take(bench.lock(lease=1.5))
    began = bench.read()["beat"]
    until = time.monotonic()
    runs.eventually(lambda: bench.read()["beat"] >= began + 3, 60)
    assert time.monotonic() - until > 3 * 0.5 - 0.5, "and no more often"
    assert grant.still_mine()


def test_a_lock_is_opened_by_its_url(tmp_path):
    volume = Volume(str(tmp_path))
    lock = open_lock(LockUrl("file", lease=7.0), volume=volume, me="me")
    grant = lock.try_acquire(KEY)
    found = FileLock(volume, me="x").try_acquire(KEY)
    assert (found.name, found.lease) == ("me", 7.0)
    assert found.node, "the boot id of this machine"
    grant.release()
