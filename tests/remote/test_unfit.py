"""Pieces in a bucket whose hashes are right but that nobody can unpack are left, and replaced."""

import dataclasses
import hashlib
import json
import os
import sys

import pytest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import fleets
import runs

from warmer import seal, trust
from warmer.trust import ANYBODY

NEVER = ("--compile", "never")


def plant(fleet, kind, number, signed_by=ANYBODY):
    """Seal an archive that is no archive, as a pusher would, in place of a good one or after it."""
    data = b"written by something else"
    file = seal.SealedFile("tree.tar.zst", len(data), hashlib.sha256(data).hexdigest())
    good = seal.parse(json.dumps(fleet.seals(kind)[1]).encode(), where="the bucket")
    files = tuple(file if one.path == file.path else one for one in good.files)
    bad = dataclasses.replace(good, generation=number, files=files)
    bad = dataclasses.replace(bad, signatures=signed_by.sign(seal.statement(bad)))
    name = fleet.seal_name(kind, 1).replace("/1.json", f"/{number}.json")
    fleet.put(f"blobs/{file.sha256}", data)
    fleet.put(name, seal.encode(bad))


def aside(node):
    return [name.split("-")[0] for name in runs.listing(f"{node.volume}/v1/quarantine")]


@pytest.mark.parametrize("kind", ["compile", "jit"])
def test_what_cannot_be_unpacked_is_built_again_by_one_node_and_pulled_by_the_next(fleet, kind):
    plant(fleet, kind, 1)
    node = fleet.node()
    starts = len(node.engine.starts)
    done = node.warmed(env=fleet.env(FAKE_ENGINE="op=one"))
    assert done.json["warm"] is True
    assert aside(node) == [kind]
    assert len(node.engine.starts) == starts + 1
    assert list(fleet.seals(kind)) == [1, 2]
    fleet.check()
    last = fleet.node()
    assert last.warmed(*NEVER, env=fleet.env()).json["warm"] is True
    assert aside(last) == [], "the newest is asked for first"


def test_an_older_piece_is_taken_where_the_newest_cannot_be_unpacked(fleet):
    plant(fleet, "compile", 2)
    node = fleet.node()
    done = node.warmed(*NEVER, env=fleet.env())
    assert done.json["warm"] is True
    assert aside(node) == ["compile"]
    said = [line["event"] for line in fleets.warnings(done)]
    assert "a piece in the bucket was moved aside here" in said
    assert node.run("plan", env=fleet.away()).code == 0, "and it is settled: nothing is asked"


def test_a_trusted_key_under_it_makes_no_difference(empty, tmp_path):
    signer = str(tmp_path / "one")
    trust.generate(signer)
    words = ("--signing-key", signer)
    empty.node().warmed(*words, env=empty.env())
    plant(empty, "compile", 1, trust.load(signer, None))
    node = empty.node()
    assert node.warmed(*words, env=empty.env()).json["warm"] is True
    assert (aside(node), list(empty.seals("compile"))) == (["compile"], [1, 2])
    reader = ("--trusted-keys", f"{signer}.pub")
    last = empty.node()
    assert last.warmed(*NEVER, *reader, env=empty.env()).json["warm"] is True
    assert aside(last) == []
