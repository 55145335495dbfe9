"""What the campaign forgives, and that it forgives no more: on a volume made by hand."""

import json
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.insert(0, os.path.dirname(__file__))

import checker
import running
import sites
import worlds

KEY = "a" * 64
NAME = f"weights-{KEY}-1-aaaaaaaa"


@pytest.fixture
def world(tmp_path):
    """A world without servers, whose pod 0 was handed weights."""
    (tmp_path / "volume").mkdir()
    site = SimpleNamespace(
        images=["image"] * len(sites.FLEET), port=lambda _: 8000, secret="planted", truth=None
    )
    disk = SimpleNamespace(top=str(tmp_path), path=str(tmp_path / "volume"))
    world = worlds.World(site, disk, "file", "kill/file/1")
    weights(world).mkdir(parents=True)
    piece = {"kind": "weights", "key": KEY, "generation": 1, "verdict": "sealed"}
    handed = Path(world.pods[0].warm, "handoff/handoff.json")
    handed.parent.mkdir()
    handed.write_text(json.dumps({"pieces": [piece]}))
    return world


def weights(world):
    return Path(world.volume, "v1/pieces/weights", KEY, "1")


def ended(world, name, status):
    """What the world says of a process in pod 0 that ended so."""
    paths = {"out": f"{world.top}/out", "err": f"{world.top}/err"}
    for path in paths.values():
        Path(path).touch()
    run = running.Run(name, world.pods[0], None, 0, began=0.0, status=status, **paths)
    world.wrong.clear()
    world.end([run], {0, 3})
    return world.wrong


def test_a_server_whose_weights_were_collected_while_its_pod_was_down_for_days_may_fail(world):
    world.aged = True
    assert ended(world, "serve", 1), "its weights are there"
    shutil.rmtree(weights(world))
    assert not ended(world, "serve", 1)
    assert ended(world, "serve", 2)
    assert ended(world, "prefill", 1)
    world.aged = False
    assert ended(world, "serve", 1), "nobody may have collected them"


@pytest.mark.parametrize("place", ["pieces", "trash"])
def test_what_something_else_has_torn_is_forgiven_wherever_it_lies(world, place):
    at = weights(world)
    if place == "trash":
        at = Path(world.volume, "v1/trash", NAME)
        at.parent.mkdir()
        weights(world).rename(at)
    (at / "seal.json").write_bytes(b"torn")
    assert checker.judge(world.volume, checker.Truth(), world.ledger)
    world.forgive()
    assert checker.judge(world.volume, checker.Truth(), world.ledger) == []
