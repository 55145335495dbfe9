"""Writers killed with -9 before every durable operation in turn, and disks whose power is cut.

After each kill an independent checker must find every published generation whole, warmer must
see what the checker sees, and a fresh run must succeed.
"""

import hashlib
import io
import itertools
import os
import sys
from pathlib import Path
from types import MappingProxyType

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "support"))

import volumes

from warmer.fill import publish, weights
from warmer.fill.locks.file import FileLock
from warmer.fill.locks.record import Owner
from warmer.fill.progress import Lines
from warmer.fill.sources import SourceFile
from warmer.layout import Volume, WarmDir
from warmer.model import Key, ModelRef
from warmer.observe import inventory, numbers
from warmer.settings import Writing
from warmer.trust import ANYBODY

KEY = Key("weights", {"name": "org/model"})
MODEL = ModelRef("hf", "org/model", "0" * 40)
OTHERS = {"files/a": b"others" * 2000}
TORN = pytest.mark.parametrize("torn", [False, True], ids=["before", "torn"])


@pytest.fixture
def fresh(tmp_path):
    """Make one empty volume after the other."""
    counter = itertools.count()
    return lambda: Volume(str(tmp_path / f"volume-{next(counter)}"))


def look(volume):
    seen = inventory.observe(volume, WarmDir("/nowhere"), {"weights": KEY}, trust=ANYBODY)
    return seen.held["weights"]


def fill(volume):
    """A run of a filler, from looking to publishing."""
    if look(volume).verdict != "sealed":
        taken = numbers.highest_taken(volume, "weights", KEY.digest)
        volumes.fill(volume, KEY, after=taken)


def fill_second(volume):
    volumes.fill(volume, KEY, after=1)


def check(volume, *, least=0):
    """Whole is what is published, seen by warmer as sealed; nothing else is seen at all."""
    published = volumes.assert_invariants(volume.root)
    held = look(volume)
    assert held.generation == len(published) >= least
    assert held.verdict == ("sealed" if published else "absent"), held.reason
    grant = FileLock(volume, me="next").try_acquire(KEY)
    assert not isinstance(grant, Owner), "the dead still hold the lock"
    grant.release()
    return len(published)


@TORN
def test_a_killed_writer_leaves_only_staging_and_the_next_run_succeeds(fresh, torn):
    seen = {}
    for n, volume in volumes.kill_points(fill, fresh, torn=torn):
        seen[n] = check(volume)
        fill(volume)
        assert check(volume) == 1
    assert len(seen) > (5 if torn else 30), "too few operations were counted"
    order = [seen[n] for n in sorted(seen)]
    assert order == sorted(order), "what was published went away again"
    assert 0 in order


@TORN
def test_a_killed_writer_of_a_second_generation_leaves_the_first_as_it_was(fresh, torn):
    def prepared():
        volume = fresh()
        volumes.fill(volume, KEY, OTHERS)
        return volume

    for _, volume in volumes.kill_points(fill_second, prepared, torn=torn):
        before = check(volume, least=1)
        first = volume.generation("weights", KEY.digest, 1)
        assert (Path(first) / "files/a").read_bytes() == OTHERS["files/a"]
        if before == 1:
            fill_second(volume)
        assert check(volume) == 2


class Here:
    """A source at hand that says what its files hash to, and counts what is fetched."""

    def __init__(self):
        self.fetched = []

    def files(self, _model):
        return tuple(
            SourceFile(
                path.removeprefix("files/"),
                len(data),
                {"sha256": hashlib.sha256(data).hexdigest()},
            )
            for path, data in sorted(volumes.FILES.items())
        )

    def describe(self, _model, file):
        return file

    def open(self, _model, file, start, end):
        self.fetched.append(file.path)
        return Bytes(volumes.FILES[f"files/{file.path}"][start:end])


class Bytes(io.BytesIO):
    """A reader of bytes at hand."""

    digests = MappingProxyType({})


def fill_weights(volume):
    """The real filler of weights; returns the paths it fetched."""
    after = numbers.highest_taken(volume, KEY.kind, KEY.digest)
    held = look(volume)
    if held.verdict == "sealed":
        return []
    source = Here()
    grant = FileLock(volume, me="a test").try_acquire(KEY)
    how = {"model": MODEL, "source": source, "grant": grant, "wanted": source.files(MODEL)}
    how |= {"meter": Lines("weights"), "places": (), "writing": Writing()}
    weights.fill(volume, KEY, held=held, after=after, **how)
    grant.release()
    return source.fetched


@TORN
def test_a_killed_fill_of_weights_is_resumed_and_leaves_no_staging(fresh, torn):
    resumed = 0
    for _, volume in volumes.kill_points(fill_weights, fresh, torn=torn):
        before = check(volume)
        finished = {path.name for path in Path(volume.staging).glob("*/files/**/*.*")}
        fetched = {os.path.basename(path) for path in fill_weights(volume)}
        assert check(volume) == 1
        if not before:
            assert not finished & fetched, "finished files were fetched again"
            resumed += bool(finished)
        volumes.assert_invariants(volume.root, clean=True)
    assert resumed > 0, "no kill left a finished file"


def test_a_killed_quarantine_leaves_the_generation_in_one_of_two_places(fresh):
    def prepared():
        volume = fresh()
        volumes.fill(volume, KEY, OTHERS)
        return volume

    places = set()
    for _, volume in volumes.kill_points(lambda v: publish.quarantine(v, KEY, 1), prepared):
        still = bool(check(volume))
        moved = [p for p in Path(volume.top).glob("quarantine/*") if (p / "seal.json").exists()]
        assert still == (not moved)
        places.add(still)
    assert places == {True, False}


@pytest.mark.parametrize("second", [False, True], ids=["first", "second"])
def test_a_power_cut_at_any_operation_leaves_only_whole_generations(tmp_path, second):
    """As above, but what was not flushed is gone as well."""
    seen = []
    with volumes.Disk(tmp_path / "disk") as disk:
        counter = itertools.count()

        def prepared():
            volume = Volume(os.path.join(disk.path, str(next(counter))))
            os.mkdir(volume.root)
            top = os.open(disk.path, os.O_RDONLY)
            os.fsync(top)
            os.close(top)
            if second:
                volumes.fill(volume, KEY, OTHERS)
            return volume

        action = fill_second if second else fill
        for _, volume in volumes.kill_points(action, prepared):
            with disk.after_power_cut() as root:
                left = Volume(root + volume.root.removeprefix(disk.path))
                seen.append(check(left, least=int(second)))
                if seen[-1] == int(second):
                    action(left)
                assert check(left) == 1 + int(second)
    assert set(seen) <= {int(second), 1 + int(second)}
    assert len(seen) > 20
