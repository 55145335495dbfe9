"""Who waits looks again and again: each look reads the wanted keys and nothing else."""

import builtins
import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "support"))

import volumes

from warmer.fill import publish
from warmer.layout import Volume, WarmDir
from warmer.model import Key
from warmer.observe import inventory
from warmer.trust import ANYBODY

WANTED = {kind: Key(kind, {"model": "mine"}) for kind in ("compile", "jit", "weights")}


@pytest.fixture
def volume(tmp_path):
    volume = Volume(str(tmp_path / "volume"))
    for number in range(64):
        volumes.fill(volume, Key("compile", {"model": number}), {"tree.tar.zst": b"x"})
    return volume


@pytest.fixture
def opened(monkeypatch):
    """The path of everything that is opened or listed."""
    paths = []

    def seen(real):
        def call(path, *args, **more):
            paths.append(os.fspath(path) if not isinstance(path, int) else f"fd {path}")
            return real(path, *args, **more)

        return call

    monkeypatch.setattr(os, "open", seen(os.open))
    monkeypatch.setattr(builtins, "open", seen(builtins.open))
    return paths


@pytest.mark.parametrize("held", [False, True])
def test_a_look_of_one_who_waits_reads_no_other_key(volume, tmp_path, opened, held):
    warm = WarmDir(str(tmp_path / "warm"))
    if held:
        volumes.fill(volume, WANTED["weights"])
        publish.quarantine(volume, WANTED["weights"], 1)
        volumes.fill(volume, WANTED["weights"], after=1)
    del opened[:]
    look = inventory.observe(volume, warm, WANTED, neighbours=False, trust=ANYBODY)
    assert look.held["weights"].verdict == ("sealed" if held else "absent")
    assert (look.nearest, look.rates) == ({}, {})
    mine = [volume.key(kind, key.digest) for kind, key in WANTED.items()]
    way = {str(parent) for path in mine for parent in Path(path).parents}
    seen = [path for path in opened if path.startswith(volume.root)]
    reads = [path for path in seen if path not in way]  # the way there is reopened, for NFS
    assert reads, "the measure sees what is opened"
    assert [path for path in reads if not path.startswith(tuple(mine))] == []
    assert len(reads) <= 2 * len(WANTED)
    assert len(seen) <= 6 * len(WANTED)


def test_a_look_that_explains_does_read_them(volume, tmp_path, opened):
    del opened[:]
    look = inventory.observe(volume, WarmDir(str(tmp_path / "warm")), WANTED, trust=ANYBODY)
    assert look.nearest["compile"].differences
    assert len(opened) > 64
