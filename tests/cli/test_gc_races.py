"""gc beside prefills: whoever comes second sees the other, at every point where they can meet."""

import itertools
import os
import random
import shutil
import sys
import threading
from pathlib import Path

import pytest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import aging
import runs
import volumes

from warmer import gc
from warmer.errors import TerminatedError
from warmer.fill import uses
from warmer.fill.locks.file import FileLock
from warmer.fill.locks.record import Owner
from warmer.layout import Volume, WarmDir
from warmer.model import Key
from warmer.observe import inventory, numbers
from warmer.trust import ANYBODY
from warmer.urls import LockUrl
from warmer.usage import ANY, Piece

KEY = Key("weights", {"name": "org/model"})
NAMED = (
    "rename",
    "replace",
    "utime",
    "mkdir",
    "rmdir",
    "unlink",
    "fsync",
    "pwrite",
    "stat",
    "open",
)
"""The calls by which gc looks and acts: between any two of them another pod may do so."""


@pytest.fixture
def original(tmp_path):
    """A volume with a superseded generation and the newest, neither used for 20 days."""
    volume = Volume(str(tmp_path / "original"))
    os.makedirs(tmp_path / "old")
    volumes.fill(volume, KEY)
    volumes.fill(volume, KEY, {"files/a": b"second"}, after=1)
    uses.record(volume, WarmDir(str(tmp_path / "old")), [piece(2)], owner="long gone")
    aging.age_all(volume.root, 20)
    return volume


def piece(number):
    return Piece(KEY.kind, KEY.digest, number)


class Pod:
    """A prefill's part in the race: it records its use, looks, and takes what it found."""

    def __init__(self, volume, top):
        self.volume, self.warm, self.found = volume, WarmDir(f"{top}/warm"), None
        os.makedirs(self.warm.root)

    def record(self, number=ANY):
        uses.record(self.volume, self.warm, [piece(number)], owner="a pod")

    def look(self):
        held = inventory.observe(self.volume, self.warm, {"weights": KEY}, trust=ANYBODY).held[
            "weights"
        ]
        self.found = held.generation if held.verdict == "sealed" else 0
        if self.found:
            self.record(self.found)

    def prefill(self):
        self.record()
        self.look()

    def lives(self):
        """What it found is there; else it can fill anew, under a number nobody had."""
        volumes.assert_invariants(self.volume.root)
        there = numbers.generations(self.volume, KEY.kind, KEY.digest)
        if self.found:
            assert self.found in there, "what a pod was handed is gone"
            return True
        grant = FileLock(self.volume, me="a pod").try_acquire(KEY)
        assert not isinstance(grant, Owner), "gc keeps the lock"
        grant.release()
        assert numbers.highest_taken(self.volume, KEY.kind, KEY.digest) == 2
        return False


def meeting(monkeypatch, acts):
    """Let each act happen before the call of its number; counts the calls gc makes."""
    count, inside = itertools.count(1), []
    with monkeypatch.context() as patched:

        def wrap(real):
            def call(*args, **more):
                if not inside:
                    inside.append(1)
                    acts.pop(next(count), lambda: None)()
                    inside.clear()
                return real(*args, **more)

            return call

        for name in NAMED:
            patched.setattr(os, name, wrap(getattr(os, name)))
        yield
    yield next(count) - 1


def race(monkeypatch, volume, acts, *, grace=3600.0):
    running = meeting(monkeypatch, acts)
    next(running)
    gc.collect(volume, LockUrl(), grace=grace, trust=ANYBODY)
    return next(running)


@pytest.fixture
def copies(original, tmp_path):
    def copy():
        top = tmp_path / "copy"
        shutil.rmtree(top, ignore_errors=True)
        shutil.copytree(original.root, top / "volume")
        volume = Volume(str(top / "volume"))
        return volume, Pod(volume, top)

    return copy


def test_a_prefill_between_any_two_steps_of_gc_keeps_what_it_found(copies, monkeypatch):
    """The whole of it between two steps."""
    kept = []
    for n in itertools.count(1):
        volume, pod = copies()
        calls = race(monkeypatch, volume, {n: pod.prefill})
        if n > calls:
            break
        kept.append(pod.lives())
    assert len(kept) > 40
    assert kept[0] is True, "it came first"
    assert {True, False} == set(kept)
    first = kept.index(False)
    # Before the hiding it is seen; while it is hidden it sees that; when it is put back, neither.
    assert all(kept[:first])


def test_a_prefill_whose_record_and_look_fall_into_different_steps_keeps_what_it_found(
    copies, monkeypatch
):
    """Its record before one step and its look before a later one, drawn at random."""
    draw = random.Random(7)  # noqa: S311 - not a secret
    volume, pod = copies()
    calls = race(monkeypatch, volume, {})
    assert calls > 40
    kept = []
    for _ in range(60):
        volume, pod = copies()
        first, second = sorted(draw.sample(range(1, calls + 1), 2))
        race(monkeypatch, volume, {first: pod.record, second: pod.look})
        if pod.found is None:
            pod.look()
        kept.append(pod.lives())
    assert True in kept


def test_what_a_pod_that_gc_did_not_see_had_found_comes_back(copies, monkeypatch):
    """As where NFS shows a record late: the next gc finds it named, within the grace."""
    volume, pod = copies()
    pod.found = 2
    race(monkeypatch, volume, {})
    assert numbers.generations(volume, KEY.kind, KEY.digest) == []
    pod.record(2)
    gc.collect(volume, LockUrl(), grace=0.0, trust=ANYBODY)
    assert pod.lives()


def test_a_prefill_and_a_gc_that_removes_at_once_leave_one_whole_state(copies, monkeypatch):
    """What is hidden already is removed while a pod looks for it."""
    volume, _ = copies()
    race(monkeypatch, volume, {})
    hidden = shutil.copytree(volume.root, Path(volume.root).parent / "hidden")
    done = 0
    for n in itertools.count(1):
        shutil.rmtree(volume.root)
        shutil.copytree(hidden, volume.root)
        shutil.rmtree(Path(volume.root).parent / "warm")
        pod = Pod(volume, Path(volume.root).parent)
        calls = race(monkeypatch, volume, {n: pod.prefill}, grace=0.0)
        if n > calls:
            break
        pod.lives()
        assert numbers.highest_taken(volume, KEY.kind, KEY.digest) == 2
        done += 1
    assert done > 20


@pytest.fixture(scope="module")
def seeded(tmp_path_factory):
    with runs.place(tmp_path_factory.mktemp("place")) as place:
        place.warmed()
        yield place


@pytest.mark.parametrize("seed", range(4))
def test_whole_prefills_beside_whole_gcs_end_warm(seeded, tmp_path, seed):
    """Real processes, started together: whatever is hidden meanwhile, the pod ends ready."""
    place = seeded.fresh(tmp_path).but(model=seeded.pinned(runs.REPO))
    place.warmed()
    aging.age_all(place.volume, 20)
    argv = [*runs.WARMER, "gc", "--volume", place.volume, "--grace", "0", "--json"]
    gcs = [runs.spawn(argv, place.env()) for _ in range(1 + seed % 2)]
    filling = place.start("prefill", "--json", "--on-miss", "fail")
    again = [runs.spawn(argv, place.env())]
    for one in (*gcs, *again):
        result = runs.finish(one)
        assert result.code in (0, 3), result
    done = runs.finish(filling)
    assert done.code == 0, done
    assert done.json["warm"] is True
    volumes.assert_invariants(place.volume)
    assert place.run("check", "--deep").code == 0
    for _ in range(2):
        assert runs.finish(runs.spawn(argv, place.env())).code == 0
    assert place.run("check", "--deep").code == 0
    kept = {kind for kind, _, _ in volumes.assert_invariants(place.volume)}
    assert kept == {"weights", "compile"}


def test_a_gc_killed_between_hiding_and_looking_again_is_mended_by_the_next(copies, monkeypatch):
    volume, pod = copies()

    real = uses.read_all

    def read(volume, **how):
        if aging.names(volume.root, "trash"):
            pod.record(2)
            os._exit(9)
        return real(volume, **how)

    pid = os.fork()
    if pid == 0:
        uses.read_all = read
        gc.collect(volume, LockUrl(), trust=ANYBODY)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    assert len(aging.names(volume.root, "trash")) == 2, "a batch is hidden, and then looked after"
    for _ in range(2):
        gc.collect(volume, LockUrl(), grace=0.0, trust=ANYBODY)
    pod.found = 2
    assert pod.lives()


def test_a_gc_that_is_told_to_stop_anywhere_leaves_nothing_half_done(copies, monkeypatch):
    """As at SIGTERM, whose handler raises between any two steps of the main thread."""
    stopped, ended, hidden = 15, 0, set()

    def run(volume, n):
        main = threading.current_thread()

        def stop():
            if threading.current_thread() is main:
                raise TerminatedError(stopped)

        try:
            os._exit(ended if race(monkeypatch, volume, {n: stop}) >= n else 1)
        except TerminatedError:
            os._exit(stopped)

    codes = []
    for n in itertools.count(1):
        volume, pod = copies()
        pid = os.fork()
        if pid == 0:
            run(volume, n)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        if codes[-1] == 1:
            break
        hidden.add(len(aging.names(volume.root, "trash")))
        pod.look()
        pod.lives()
        for _ in range(2):
            gc.collect(volume, LockUrl(), grace=0.0, trust=ANYBODY)
        pod.lives()
    assert codes.count(stopped) > 40
    assert set(codes) <= {stopped, ended, 1}
    assert hidden == {0, 2}, "a batch that was not looked after is put back"
