"""Every name under which a source vouches for bytes is the algorithm of that name."""

import hashlib
import itertools
import os
import shutil
import subprocess

import pytest

from warmer.errors import IntegrityError
from warmer.fill.digests import KNOWN, Hashing, provable, quickest

CHECK = b"123456789"
# What catalogues of checksums call the check value, and what the standards print for hashes.
VECTORS = {
    "sha256": "15e2b0d3c33891ebb0f1ef609ec419420c20e320ce94c65fbc8c3312448eb225",
    "sha1": "f7c3bc1d808e04732adf679965ccc34ca7ae3441",
    "git-sha1": "e2e107ac61ac259b87c544f6e7a4eb03422c6c21",
    "md5": "25f9e794323b453885f5181f1b624d0b",
    "crc64nvme": "ae8b14860a799888",
    "crc32c": "e3069283",
    "crc32": "cbf43926",
}


def running(data, *, cuts=(), names=KNOWN):
    hashing = Hashing(names, len(data))
    edges = [0, *cuts, len(data)]
    for start, end in itertools.pairwise(edges):
        hashing.update(memoryview(data)[start:end])
    return hashing


def test_every_known_name_has_a_vector():
    assert set(VECTORS) == set(KNOWN)


@pytest.mark.parametrize("name", VECTORS)
@pytest.mark.parametrize("cuts", [(), (1,), (3, 4, 8), range(1, 9)])
def test_a_digest_is_the_known_one_however_the_bytes_are_cut(name, cuts):
    hashing = running(CHECK, cuts=cuts, names=[name])
    hashing.check("a", {name: VECTORS[name]})
    hashing.check("a", {name: VECTORS[name].upper()})
    assert hashing.sha256() == VECTORS["sha256"]
    assert hashing.seen == len(CHECK)


@pytest.mark.parametrize("name", VECTORS)
def test_a_digest_of_other_bytes_is_refused_by_its_name(name):
    with pytest.raises(IntegrityError) as caught:
        running(b"123456780", names=[name]).check("the/path", {name: VECTORS[name]})
    assert caught.value.reason == "hash-mismatch"
    for word in (name, "the/path", VECTORS[name]):
        assert word in caught.value.message


@pytest.mark.skipif(not shutil.which("git"), reason="git is the judge here")
def test_the_hash_of_gits_blobs_is_gits_own(tmp_path):
    data = os.urandom(70_001)
    (tmp_path / "blob").write_bytes(data)
    said = subprocess.check_output(["git", "hash-object", "--no-filters", str(tmp_path / "blob")])
    running(data, cuts=(1, 4096, 65_536)).check("blob", {"git-sha1": said.decode().strip()})


def test_checksums_keep_their_leading_zeros():
    for number in range(2000):
        data = os.urandom(8)
        found = {name: running(data, names=[name]) for name in ("crc32", "crc32c", "crc64nvme")}
        widths = {name: len(one._hashes[name].hexdigest()) for name, one in found.items()}
        assert widths == {"crc32": 8, "crc32c": 8, "crc64nvme": 16}, number


def test_names_that_nobody_knows_prove_nothing_and_refuse_nothing():
    assert not provable({"sha3": "0", "etag": "x-2"})
    assert provable({"crc32": "0"})
    hashing = running(CHECK, names=["sha3"])
    hashing.check("a", {"sha3": "0"})
    assert hashing.sha256() == hashlib.sha256(CHECK).hexdigest()


def test_of_several_digests_the_one_that_costs_least_is_asked_of_a_connection():
    every = dict.fromkeys(KNOWN, "00")
    assert quickest(every) == ("sha256",), "it is computed anyway"
    without = {name: "00" for name in KNOWN if name != "sha256"}
    assert quickest(without) == ("crc64nvme",)
    assert quickest({"md5": "00", "crc32": "00"}) == ("crc32",)
    assert quickest({"md5": "00"}) == ("md5",)
    assert quickest({"unheard-of": "00"}) == quickest({}) == ()
