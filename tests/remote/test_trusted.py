"""Signatures go with a piece through the bucket; what nobody trusted signed is never unpacked."""

import json
import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import fleets
import runs

from warmer import trust

NEVER = ("--compile", "never")


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    top = tmp_path_factory.mktemp("keys")
    for name in ("one", "two"):
        trust.generate(str(top / name))
    return str(top / "one"), str(top / "two")


@pytest.fixture
def signed(empty, keys):
    """A bucket into which a signer pushed."""
    empty.node().warmed("--signing-key", keys[0], env=empty.env())
    return empty


def signatures(record):
    return sorted(record.get("signatures", {}))


def test_what_is_pulled_stays_signed(signed, keys):
    (signer,) = trust.load(None, f"{keys[0]}.pub").keys
    readers = ("--trusted-keys", f"{keys[0]}.pub")
    node = signed.node()
    done = node.warmed(*readers, env=signed.env())
    assert done.json["warm"] is True
    assert set(done.json["pulled_bytes"]) == set(fleets.KERNELS)
    for kind in fleets.KERNELS:
        (top,) = node.generations(kind)
        assert signatures(json.loads(Path(top, "seal.json").read_bytes())) == [signer]
        assert signatures(signed.seals(kind)[1]) == [signer]
    assert node.run("plan", *readers, env=signed.away()).code == 0
    assert node.run("check", "--deep").code == 0


@pytest.mark.parametrize("by", ["nobody", "another"])
def test_what_nobody_trusted_signed_is_not_fetched(fleet, signed, keys, by):
    where = fleet if by == "nobody" else signed
    node = where.node()
    starts = len(node.engine.starts)
    asked = len(where.bucket.wire.requests)
    done = node.warmed("--trusted-keys", f"{keys[1]}.pub", env=where.env())
    assert set(done.json["without"]) == set(fleets.KERNELS)
    why = [
        w["why"] for w in fleets.warnings(done) if w["event"] == "a seal in the bucket is not used"
    ]
    assert len(why) == len(fleets.KERNELS)
    assert all("is not trusted" in one for one in why)
    assert not [path for _, path in where.bucket.wire.requests[asked:] if "/blobs/" in path]
    assert [node.generations(kind) for kind in fleets.KERNELS] == [[]] * len(fleets.KERNELS)
    assert not [
        name for kind in fleets.KERNELS for name in runs.listing(f"{node.warm}/cache/{kind}")
    ]
    assert len(node.engine.starts) == starts


def test_bytes_that_are_swapped_together_with_their_seal_are_not_fetched(signed, keys):
    record, other = signed.seals("compile")[1], signed.seals("bytecode")[1]
    swapped = record | {"files": other["files"]}
    signed.put(signed.seal_name("compile", 1), json.dumps(swapped).encode())
    node = signed.node()
    done = node.warmed("--trusted-keys", f"{keys[0]}.pub", env=signed.env())
    assert list(done.json["without"]) == ["compile"]
    assert node.generations("compile") == []


def test_a_signer_pushes_beside_what_is_not_trusted(fleet, keys):
    node = fleet.node()
    done = node.warmed("--signing-key", keys[0], env=fleet.env())
    assert done.json["warm"] is True
    for kind in fleets.KERNELS:
        first, second = (signatures(fleet.seals(kind)[number]) for number in (1, 2))
        assert (first, len(second)) == ([], 1)
    reader = fleet.node()
    done = reader.warmed("--trusted-keys", f"{keys[0]}.pub", env=fleet.env())
    assert done.json["warm"] is True
    fleet.check()


def test_factors_of_another_key_are_refused_though_their_hash_is_right(fleet):
    record, other = fleet.seals("compile")[1], fleet.seals("jit")[1]
    (key,) = (file for file in other["files"] if file["path"] == "key.json")
    files = [key if file["path"] == "key.json" else file for file in record["files"]]
    fleet.put(fleet.seal_name("compile", 1), json.dumps(record | {"files": files}).encode())
    node = fleet.node()
    done = node.warmed(*NEVER, env=fleet.env())
    assert list(done.json["without"]) == ["compile"]
    assert node.generations("compile") == []
