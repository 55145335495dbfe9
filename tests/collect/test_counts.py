"""What a gc asks of the volume grows as what it collects does, and no faster."""

import builtins
import json
import os
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "support"))

import aging
import volumes

from warmer import gc
from warmer.fill import uses
from warmer.layout import Volume, WarmDir
from warmer.model import Key
from warmer.trust import ANYBODY
from warmer.urls import LockUrl
from warmer.usage import Piece

ASKED = (
    "open",
    "stat",
    "lstat",
    "listdir",
    "scandir",
    "rename",
    "replace",
    "unlink",
    "utime",
    "mkdir",
)
FEW, MANY = 12, 48


def key(number):
    return Key("weights", {"name": f"org/model-{number}"})


def another(volume, first, where, number):
    """A generation like the first under another key or number."""
    target = volume.generation("weights", where.digest, number)
    shutil.copytree(first, target)
    path = Path(target, "seal.json")
    record = json.loads(path.read_bytes())
    path.write_text(json.dumps(record | {"key": where.digest, "generation": number}))


def lay_out(top, *, generations, keys, pods, crashes):
    """A volume of 20 days: one key of many generations, many idle keys, many pods that use another."""
    volume = Volume(f"{top}/volume")
    volumes.fill(volume, key(0), {"files/a": b"a"})
    first = volume.generation("weights", key(0).digest, 1)
    for number in range(2, generations + 1):
        another(volume, first, key(0), number)
    for number in range(1, keys + 1):
        another(volume, first, key(number), 1)
    for number in range(pods):
        warm = WarmDir(f"{top}/warm-{number}")
        os.makedirs(warm.root)
        uses.record(volume, warm, [Piece("weights", key(1).digest, 1)], owner="a pod")
    for number in range(crashes):
        Path(
            volume.crashes, f"weights-{key(0).digest}-{1 + number % generations}.{number:016x}"
        ).touch()
    for place in (volume.pieces, volume.trash, volume.since):
        aging.age(place, 20)
    return volume


@pytest.fixture
def asked(monkeypatch):
    """Counts what is asked of the filesystem."""
    count = [0]

    def counted(real):
        def call(*args, **more):
            count[0] += 1
            return real(*args, **more)

        return call

    for name in ASKED:
        monkeypatch.setattr(os, name, counted(getattr(os, name)))
    monkeypatch.setattr(builtins, "open", counted(builtins.open))
    return count


def cost(asked, top, **how):
    """Hide, and later remove; how much each asked."""
    os.mkdir(top)
    volume = lay_out(top, **how)
    found = []
    for _ in range(2):
        asked[0] = 0
        outcome = gc.collect(volume, LockUrl(), trust=ANYBODY)
        assert outcome.skipped == []
        found.append((asked[0], [step.action for step in outcome.done]))
        aging.age(volume.trash, 20)
    (hiding, hidden), (removing, removed) = found
    assert hidden.count("hide") == removed.count("remove") == how["generations"] + how["keys"] - 1
    assert aging.names(volume.root, "trash") == []
    return hiding, removing


@pytest.mark.parametrize("grown", ["generations", "keys"])
def test_four_times_the_generations_and_pods_are_four_times_the_work(asked, tmp_path, grown):
    other = {"generations": "keys", "keys": "generations"}[grown]
    few, many = (
        cost(asked, tmp_path / str(n), **{grown: n, other: 2}, pods=n, crashes=n)
        for n in (FEW, MANY)
    )
    for small, large in zip(few, many, strict=True):
        assert large < 1.25 * MANY / FEW * small, (few, many)
