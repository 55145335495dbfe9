"""Parsers of what lies on the volume, in the bucket, or is somebody's lock."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import shutil
import tarfile

import zstandard
from target import DIGEST, JSON, Target, dumps, put, scratch, text

from warmer import seal, trust, usage
from warmer.collect import removal
from warmer.errors import IntegrityError, UsageError, VolumeError
from warmer.fill import archive, members, revision
from warmer.fill.locks import kubernetes
from warmer.fill.locks import record as owners
from warmer.fill.remote import layout as bucket_layout
from warmer.fill.remote import pull
from warmer.fill.sources import s3
from warmer.layout import KEY, Volume, WarmDir
from warmer.model import KINDS, Key, ModelRef
from warmer.observe import crashes, inventory, mount, numbers
from warmer.trust import ANYBODY

_SEAL = seal.Seal(
    "compile", DIGEST, 3, "n", "2026-01-01T00:00:00+00:00", "warmer", "engine run", 1.5,
    (seal.SealedFile("tree.tar.zst", 10, DIGEST),), {"flashinfer": 2}, {"ab" * 8: "AAAA"},
)  # fmt: skip
_TRUSTING = trust.Trust({"ab" * 8: bytes(32)})


def _seal(data: bytes) -> None:
    try:
        found = seal.parse(data, where="x")
    except (IntegrityError, seal.ForeignSealError):
        return
    assert all(seal.safe_path(file.path) and file.size >= 0 for file in found.files)
    assert seal.parse(seal.encode(found), where="x").files == found.files
    assert _TRUSTING.objection(seal.statement(found), found.signatures), "no such key has signed"


_MEMBERS = {"a/b": b"first", "c": b"x" * 600}
_MANIFEST = members.Manifest(
    {
        name: members.Member(name, len(data), hashlib.sha256(data).hexdigest(), 0o644, 5)
        for name, data in _MEMBERS.items()
    },
    ("d",),
)


def _manifest(data: bytes) -> None:
    with contextlib.suppress(IntegrityError):
        found = members.parse(data, where="x")
        assert all(seal.safe_path(path) for path in (*found.members, *found.empty))
        assert all(0 <= member.mode <= 0o777 for member in found.members.values())
        assert members.parse(members.encode(found), where="x") == found


def _tar() -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in _MEMBERS.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return raw.getvalue()[: 512 * 6]


_TOP = scratch()
_TREE = os.path.join(_TOP, "tree")
_ARCHIVE = os.path.join(_TOP, "archive")


def _archive(data: bytes) -> None:
    """The first byte says whether the rest is a tar, which is then compressed, or an archive."""
    raw = data[1:]
    if data[:1] != b"z":
        raw = zstandard.ZstdCompressor(level=1).compress(raw)
    put(_ARCHIVE, raw)
    os.mkdir(_TREE)
    try:
        with contextlib.suppress(IntegrityError):
            archive._extract_all([_ARCHIVE], _MANIFEST, _TREE)
        for directory, names, files in os.walk(_TREE):
            for name in (*names, *files):
                path = os.path.join(directory, name)
                inside = os.path.relpath(path, _TREE)
                assert not os.path.islink(path), "a link was unpacked"
                assert os.path.isdir(path) or inside in _MEMBERS, "an unnamed file was unpacked"
        assert sorted(os.listdir(_TOP)) == ["archive", "tree"], "something is beside the tree"
    finally:
        shutil.rmtree(_TREE)


def _owner(data: bytes) -> None:
    found = owners.parse(data)
    assert 0 <= found.lease <= 600
    assert 0 <= found.epoch < (1 << 31) - 1
    owners.encode(found)


def _lease(data: bytes) -> None:
    """An annotation and a holder in a Lease that the API has checked the types of."""
    record, _, holder = text(data).partition("\0")
    record, holder = (word.encode(errors="replace").decode() for word in (record, holder))
    epoch, lease = (1 << 31) - 1, 1 << 31
    for spec in ({}, {"holderIdentity": holder, "leaseTransitions": epoch - 2}):
        meta = {"annotations": {kubernetes._RECORD: record}}
        found = kubernetes._owner(meta, spec | {"leaseDurationSeconds": lease - 1})
        assert 0 <= found.lease <= 600
        assert 0 <= found.epoch < epoch


def _use(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        pieces, owner = usage.parse(data)
        assert all(p.kind in KINDS and p.number >= usage.ANY for p in pieces)
        assert isinstance(owner, str)


_PLACE = scratch()
_VOLUME, _WARM = Volume(f"{_PLACE}/volume"), WarmDir(f"{_PLACE}/warm")
_MODEL = ModelRef("hf", "org/name", "main")
_NEIGHBOUR = _VOLUME.generation("compile", DIGEST, 1)
for _directory in (_NEIGHBOUR, os.path.dirname(_VOLUME.ref(_MODEL.slug)), _WARM.starts):
    os.makedirs(_directory)
_WANTED = Key("compile", {"argv.--x": [["2"]], "engine.vllm": "1"})


def _factors(data: bytes) -> None:
    put(os.path.join(_NEIGHBOUR, KEY), data)
    look = inventory.observe(_VOLUME, _WARM, {"compile": _WANTED}, trust=ANYBODY)
    for near in look.nearest.values():
        json.dumps([dataclasses.asdict(d) for d in near.differences], indent=2)
    with contextlib.suppress(IntegrityError):
        pull._insist_on_key(_NEIGHBOUR, _WANTED)


def _ref(data: bytes) -> None:
    put(_VOLUME.ref(_MODEL.slug), data)
    found = revision._read(_VOLUME, _MODEL)
    assert found is None or dataclasses.replace(_MODEL, revision=found).pinned


def _collected(data: bytes) -> None:
    put(_VOLUME.collected, data)
    assert removal.counted(_VOLUME) >= 0


def _names(data: bytes) -> None:
    """Names in pieces/, trash/, taken/, crashes/ and of a bucket's seals; lines of a start's record."""
    for name in text(data).split("\n"):
        found = numbers.aside(name)
        assert found is None or (found.kind in KINDS and found.number > 0)
        told = bucket_layout.number(name)
        assert told is None or told > 0
        if numbers._GENERATION.fullmatch(name):
            assert numbers.counted([int(name), 1])
    put(os.path.join(_WARM.starts, f"{'0' * 16}-warm-{'0' * 16}"), data)
    assert all(piece.kind in KINDS for piece, _ in crashes._in(_WARM))


def _keys(data: bytes) -> None:
    for flag in (trust._public_keys, lambda t, _: trust._private_key(t)):
        with contextlib.suppress(UsageError):
            flag(text(data), "--trusted-keys")


def _mounts(data: bytes) -> None:
    with contextlib.suppress(VolumeError):
        found = mount.judge(text(data), "/models/x")
        assert found.locks in ("shared", "node", "none", "unknown")


def _listing(data: bytes) -> None:
    """What S3 says of an object's bytes, in headers."""
    names = ("ChecksumSHA256", "ChecksumType", "ETag", "ChecksumCRC64NVME", "ServerSideEncryption")
    values = dict(zip(names, text(data).split("\n"), strict=False))
    found = s3.whole_digests(values, "bucket")
    assert all(isinstance(value, str) for value in found.values())


_ASIDE = f"compile-{DIGEST}-7"
_MOUNTINFO = (
    b"36 35 98:0 / / rw,noatime master:1 - ext4 /dev/root rw\n"
    b"37 36 0:50 / /models rw,relatime shared:9 - nfs4 server:/export rw,vers=4.1,local_lock=none\n"
    b"38 36 0:51 / /mo\\040dels rw - fuse.s3fs s3fs rw\n"
)
_PEM = (
    b"-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n"
    b"-----END PUBLIC KEY-----\n"
)
_OWNER = owners.encode(owners.Owner(5, "pod", "n", "boot", 3, 30.0, "x", 1, 2))
TARGETS = {
    "seal": Target(_seal, (seal.encode(_SEAL),), JSON),
    "manifest": Target(_manifest, (members.encode(_MANIFEST),), JSON),
    "archive": Target(
        _archive,
        (b"t" + _tar(), b"z" + zstandard.ZstdCompressor(write_checksum=True).compress(_tar())),
        ("ustar\\x0000", "a/b", "../a", "PaxHeader", "27 GNU.sparse.size=99999999\\n", "path=", "11 size=-1\\n", "L", "K"),
    ),
    "owner": Target(_owner, (_OWNER,), JSON, 1024),
    "lease": Target(_lease, (_OWNER.rstrip() + b"\0pod n",), JSON, 1024),
    "use": Target(
        _use,
        (
            dumps(
                {"schema_version": 1, "by": "w", "owner": "o", "warm_dir": "/warm"}
                | {"pieces": [{"kind": "jit", "key": DIGEST, "generation": 1}]}
            ),
        ),
        JSON,
    ),
    "factors": Target(
        _factors,
        (dumps({"kind": "compile", "factors": {"argv.--x": [["1"]], "engine.vllm": "1"}}),),
        JSON,
    ),
    "ref": Target(_ref, (dumps({"main": "a" * 40, "v1": "b" * 40}),), JSON),
    "collected": Target(_collected, (dumps({"schema_version": 1, "removed_bytes": 5}),), JSON),
    "names": Target(
        _names,
        (f"7\n{_ASIDE}\n{_ASIDE}-0123abcd.gone\n{_ASIDE}.0123456789abcdef\n7.json".encode(),),
        (DIGEST, *KINDS, "9" * 18, "\\xd9\\xa3"),
    ),
    "keys": Target(_keys, (_PEM, _PEM.replace(b"PUBLIC", b"PRIVATE")), ("-----BEGIN ", "ENCRYPTED ", "-----END ")),
    "mounts": Target(_mounts, (_MOUNTINFO,), (" - ", "nfs4", "lustre", "fuse.", "\\\\040", "\\\\777", "nolock")),
    "checksums": Target(_listing, (b'q1w2\nFULL_OBJECT\n"abc-2"\nAAAA\nAES256',), ("COMPOSITE", "-1", "==")),
}  # fmt: skip
