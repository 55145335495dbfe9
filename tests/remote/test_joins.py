"""A push that joins two trees is killed or stopped at every step: nothing wrong is put, pulled or left.

The steps are all that changes the volume, and every object before and after it is put.
"""

import functools
import itertools
import os
import shutil
import signal
import sys
from typing import NamedTuple

import pytest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import aging
import fleets
import runs
import volumes

from warmer import gc
from warmer.errors import VolumeError
from warmer.fill import archive, members, stagings
from warmer.fill.claim import Claims
from warmer.fill.locks.file import FileLock
from warmer.fill.locks.record import Owner
from warmer.fill.remote import bucket as buckets
from warmer.fill.remote import push
from warmer.fill.remote.pull import Puller
from warmer.fill.remote.push import Pusher
from warmer.fill.sources.retry import Trying
from warmer.layout import Volume, WarmDir
from warmer.model import Key
from warmer.trust import ANYBODY
from warmer.urls import parse_lock, parse_remote

KEY = Key("jit", {"stack": "one"})
THEIRS = {"all.so": b"theirs" * 500, "theirs.so": b"t" * 3000}
MINE = {"all.so": b"mine" * 500, "mine.so": b"m" * 3000, "deep/mine.so": b"d" * 3000}
BOTH = MINE | THEIRS
GENERATION = ("jit", KEY.digest, 1)


class Apart(NamedTuple):
    """A volume that has grown apart from a bucket, and both as they were.

    Attributes:
        fleet: whose bucket.
        volume: the volume's root.
        saved: a copy of it.
        before: what is in the bucket.
        bucket: how this process reaches it.
    """

    fleet: fleets.Fleet
    volume: str
    saved: str
    before: dict[str, bytes]
    bucket: buckets.Bucket

    def put_back(self):
        shutil.rmtree(self.volume)
        shutil.copytree(self.saved, self.volume)
        for name in self.fleet.objects().keys() - self.before.keys():
            self.fleet.remove(name)
        assert self.fleet.objects() == self.before

    def pusher(self):
        return Pusher(self.bucket, Volume(self.volume), ANYBODY)

    def staged(self):
        return runs.listing(f"{self.volume}/v1/staging")

    def swept(self):
        """Claim the key, as another pod does, and sweep; no push may stand in its way."""
        volume = Volume(self.volume)
        grant = FileLock(volume, me="another pod").try_acquire(KEY)
        assert not isinstance(grant, Owner), "a push holds the lock: pods would wait for the bucket"
        stagings.sweep(volume, KEY, grant)
        grant.release()
        assert self.staged() == []

    def check(self, top):
        """Check all that may be seen now, by who pulls too; return the numbers in the bucket."""
        assert volumes.assert_invariants(self.volume) == [GENERATION]
        self.fleet.check()
        assert self.fleet.objects().items() >= self.before.items(), "something was replaced"
        seals = self.fleet.seals("jit")
        assert pulled(self.bucket, top) == (THEIRS if list(seals) == [1] else BOTH)
        return list(seals)


def pulled(bucket, top):
    """Pull on an empty volume; return the tree: path → bytes."""
    shutil.rmtree(top, ignore_errors=True)
    os.makedirs(top)
    volume = Volume(f"{top}/volume")
    os.mkdir(volume.root)
    claims = Claims(lambda: FileLock(volume, me="who pulls"))
    warm = WarmDir(f"{top}/warm")
    puller = Puller(bucket, volume, warm, {"jit": KEY}, claims=claims, trust=ANYBODY)
    puller.pull("jit", wait=0.0, within=60.0)
    assert volumes.assert_invariants(volume.root, clean=True) == [GENERATION]
    generation = volume.generation(*GENERATION)
    with open(f"{generation}/manifest.json", "rb") as f:
        manifest = members.parse(f.read(), where="the volume")
    archives = [f"{generation}/{name}" for name in os.listdir(generation) if archive.is_one(name)]
    archive.unpack(archives, manifest, f"{top}/tree")
    found = {}
    for path in manifest.members:
        with open(f"{top}/tree/{path}", "rb") as f:
            found[path] = f.read()
    return found


@pytest.fixture
def apart(empty, tmp_path, monkeypatch):
    """The bucket has one tree, and a volume another; the server is asked without a proxy here."""
    server = empty.bucket.server
    for name, value in (empty.env() | {"AWS_ENDPOINT_URL": server.endpoint}).items():
        monkeypatch.setenv(name, value)
    for name, tree in (("theirs", THEIRS), ("mine", MINE)):
        for path, data in tree.items():
            target = tmp_path / name / "tree" / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
        (tmp_path / name / "volume").mkdir()
        volume = Volume(str(tmp_path / name / "volume"))
        volumes.fill_tree(volume, KEY, tmp_path / name / "tree")
        made = Apart(empty, volume.root, f"{tmp_path}/saved", {}, reached(empty))
        if name == "theirs":
            made.pusher().push(KEY, 1)
    shutil.copytree(made.volume, made.saved)
    return made._replace(before=empty.objects())


@pytest.fixture
def points(tmp_path, monkeypatch):
    """Puts are points of `volumes` too: before the service hears of one, and after."""
    mark, real = tmp_path / "mark", buckets.Bucket._put
    mark.touch()

    def put(*args):
        os.utime(mark)
        done = real(*args)
        os.utime(mark)
        return done

    monkeypatch.setattr(buckets.Bucket, "_put", put)


@pytest.mark.usefixtures("points")
@pytest.mark.parametrize("torn", [False, True], ids=["killed before", "killed within a write"])
def test_a_join_that_is_killed_anywhere_puts_nothing_wrong_and_the_next_push_does_it(
    apart, tmp_path, torn
):
    states, leaving = [], 0
    killed = volumes.kill_points(lambda one: one.push(KEY, 1), lambda: prepared(apart), torn=torn)
    for _ in killed:
        numbers = apart.check(tmp_path / "between")
        states.append(len(numbers))
        left = apart.staged()
        leaving += bool(left)
        assert len(left) <= 1
        apart.pusher().push(KEY, 1)
        assert apart.staged() == left, "another's staging may be another pod's that joins"
        assert apart.check(tmp_path / "after") == [1, 2], "once"
        apart.swept()
    assert leaving, "none was killed while it had a staging"
    assert states == sorted(states)
    assert set(states) == ({1} if torn else {1, 2})


def prepared(apart):
    apart.put_back()
    # With no connection yet that a child would share.
    return apart._replace(bucket=reached(apart.fleet)).pusher()


def reached(fleet):
    return buckets.Bucket(parse_remote(fleet.url), Trying(budget=5))


def stopped(action, number):
    """Run `action` in a child that stops at its nth step; None where it ended before, and well."""

    def armed():
        volumes._arm(number, torn=False, by=signal.SIGSTOP)
        action()

    pid = volumes.forked(armed)
    _, status = os.waitpid(pid, os.WUNTRACED)
    if os.WIFSTOPPED(status):
        return pid
    assert status == 0, "the child failed; see its traceback"
    return None


@pytest.mark.usefixtures("points")
def test_a_join_whose_staging_is_swept_by_another_pod_at_any_step_joins_again(apart, tmp_path):
    lost = 0
    for number in itertools.count(1):
        child = stopped(functools.partial(prepared(apart).push, KEY, 1), number)
        if child is None:
            break
        try:
            lost += bool(apart.staged())
            apart.swept()
        finally:
            os.kill(child, signal.SIGCONT)
            _, status = os.waitpid(child, 0)
        assert status == 0, f"the push failed that was stopped at step {number}"
        assert apart.staged() == []
        assert apart.check(tmp_path / "after") == [1, 2]
    assert lost > 1


def test_what_a_killed_join_left_goes_with_the_next_gc_a_day_later(apart):
    def stages(staging):
        make(staging)
        os.kill(os.getpid(), signal.SIGKILL)

    def killed():
        stagings.make = stages
        apart.pusher().push(KEY, 1)

    make = stagings.make
    assert volumes.run_child(killed)
    (left,) = apart.staged()
    volume, lock = Volume(apart.volume), parse_lock("file")
    gc.collect(volume, lock, trust=ANYBODY)
    assert apart.staged() == [left], "its owner may be at work"
    aging.age(f"{volume.staging}/{left}", 2)
    gc.collect(volume, lock, trust=ANYBODY)
    assert apart.staged() == []
    volumes.assert_invariants(volume.root, clean=True)


def test_a_push_whose_stagings_are_all_swept_ends_and_puts_nothing(apart, monkeypatch):
    sift, calls = archive.sift, []

    def swept(*args):
        calls.append(1)
        apart.swept()
        return sift(*args)

    monkeypatch.setattr(archive, "sift", swept)
    with pytest.raises(VolumeError) as caught:
        apart.pusher().push(KEY, 1)
    assert caught.value.reason in stagings.VANISHED
    assert len(calls) == push._RACES
    assert apart.fleet.objects() == apart.before
    assert apart.staged() == []


def test_a_push_whose_own_generation_is_gone_says_so_at_once(apart, monkeypatch):
    calls = []

    def gone(*_):
        calls.append(1)
        os.rename(Volume(apart.volume).generation(*GENERATION), f"{apart.volume}/aside")
        os.stat(Volume(apart.volume).generation(*GENERATION))

    monkeypatch.setattr(archive, "sift", gone)
    with pytest.raises(VolumeError) as caught:
        apart.pusher().push(KEY, 1)
    assert caught.value.reason == "missing"
    assert calls == [1]
    assert apart.staged() == []
