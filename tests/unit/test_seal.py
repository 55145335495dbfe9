"""The seal's wire format (`warmer.seal`): what is read back, what is foreign, what is corrupt."""

import dataclasses
import itertools
import json

import pytest

from warmer.errors import IntegrityError
from warmer.seal import ForeignSealError, Seal, SealedFile, encode, parse, safe_path

SHA = "0123456789abcdef" * 4
SEAL = Seal(
    kind="compile",
    key="ab" * 32,
    generation=3,
    nonce="0f1e2d3c",
    created="2026-01-02T03:04:05+00:00",
    by="warmer 0.1.0",
    source="engine run",
    seconds=12.345,
    files=(SealedFile("files/ü.bin", 0, SHA), SealedFile("key.json", 7, SHA)),
    needs={"flashinfer": 2},
)


def record(**changed):
    return json.loads(encode(SEAL)) | changed


def without(name):
    return {key: value for key, value in record().items() if key != name}


def file(**changed):
    return [{"path": "a", "size": 1, "sha256": SHA} | changed]


def as_bytes(value):
    return json.dumps(value).encode()


def test_a_seal_is_read_back_as_it_was_written():
    assert parse(encode(SEAL), where="x") == SEAL
    bare = dataclasses.replace(SEAL, files=(), needs={}, seconds=0.0)
    assert parse(encode(bare), where="x") == bare


def test_the_shape_on_the_volume_never_changes():
    """Other versions of warmer and of the probe read it."""
    assert json.loads(encode(SEAL)) == {
        "schema_version": 1,
        "kind": "compile",
        "key": "ab" * 32,
        "generation": 3,
        "nonce": "0f1e2d3c",
        "created": "2026-01-02T03:04:05+00:00",
        "by": "warmer 0.1.0",
        "source": "engine run",
        "seconds": 12.345,
        "needs": {"flashinfer": 2},
        "files": [
            {"path": "files/ü.bin", "size": 0, "sha256": SHA},
            {"path": "key.json", "size": 7, "sha256": SHA},
        ],
    }
    assert encode(SEAL).endswith(b"\n")


def test_the_size_is_the_sum_of_the_files():
    assert SEAL.size == 7


def test_fields_of_a_later_warmer_are_ignored():
    later = record(signature="x", files=file(mode=0o644))
    assert parse(as_bytes(later), where="x").files == (SealedFile("a", 1, SHA),)


@pytest.mark.parametrize("version", [0, 2, "1", None, [1]], ids=str)
def test_a_seal_of_another_version_is_foreign_whatever_else_it_says(version):
    for value in (record(schema_version=version), {"schema_version": version}):
        with pytest.raises(ForeignSealError, match="schema_version"):
            parse(as_bytes(value), where="x")


MALFORMED = {
    "empty": b"",
    "cut": encode(SEAL)[:-20],
    "zeros": bytes(400),
    "not-utf-8": b'{"schema_version": 1, "kind": "\xff"}',
    "list": b"[]",
    "text": b'"schema_version"',
    "number": b"1",
    "null": b"null",
    "no-version": as_bytes(without("schema_version")),
    **{f"no-{name}": as_bytes(without(name)) for name in record() if name != "schema_version"},
    "kind-a-number": as_bytes(record(kind=1)),
    "key-null": as_bytes(record(key=None)),
    "generation-text": as_bytes(record(generation="3")),
    "generation-negative": as_bytes(record(generation=-1)),
    "generation-fraction": as_bytes(record(generation=1.5)),
    "generation-true": as_bytes(record(generation=True)),
    "seconds-text": as_bytes(record(seconds="long")),
    "needs-list": as_bytes(record(needs=[])),
    "needs-text": as_bytes(record(needs={"jit": "1"})),
    "files-null": as_bytes(record(files=None)),
    "files-number": as_bytes(record(files=3)),
    "files-object": as_bytes(record(files={"a": 1})),
    "file-text": as_bytes(record(files=["a"])),
    "size-text": as_bytes(record(files=file(size="1"))),
    "size-null": as_bytes(record(files=file(size=None))),
    "size-negative": as_bytes(record(files=file(size=-1))),
    "path-number": as_bytes(record(files=file(path=1))),
    "path-leaves": as_bytes(record(files=file(path="../a"))),
    "path-absolute": as_bytes(record(files=file(path="/etc/passwd"))),
    "sha256-null": as_bytes(record(files=file(sha256=None))),
    "sha256-short": as_bytes(record(files=file(sha256=SHA[1:]))),
    "sha256-words": as_bytes(record(files=file(sha256="g" * 64))),
    "sha256-negative": as_bytes(record(files=file(sha256="-" + SHA[1:]))),
    "sha256-prefixed": as_bytes(record(files=file(sha256="0x" + SHA[2:]))),
    "sha256-underscore": as_bytes(record(files=file(sha256="0_" + SHA[2:]))),
    "sha256-space": as_bytes(record(files=file(sha256=" " + SHA[1:]))),
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_seal_is_an_integrity_error_that_names_the_file(data):
    with pytest.raises(IntegrityError, match=r"at /volume/seal\.json") as caught:
        parse(data, where="/volume/seal.json")
    assert caught.value.reason == "malformed-seal"
    assert caught.value.exit_code == 5


@pytest.mark.parametrize(
    "path", ["a", "a/b", "...", "a..b", "..a", ".a", "a/.b", "a b", "a\\b", "ü"]
)
def test_a_path_inside_is_safe(path):
    assert safe_path(path)


@pytest.mark.parametrize(
    "path",
    [
        *("", "/", "/a", "//a", ".", "..", "./a", "../a", "a/../b", "a/..", "a/../../b"),
        *("a/", "a//b", "a/.", "a/./b", "a\0b", "\0"),
    ],
)
def test_a_path_that_leaves_or_has_another_spelling_is_not_safe(path):
    assert not safe_path(path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seconds", 10**400),
        ("seconds", float("inf")),
        ("seconds", float("nan")),
        ("seconds", -1),
        ("generation", 10**400),
        ("needs", {"jit": 1 << 63}),
        ("files", [{"path": "a", "size": 10**400, "sha256": "a" * 64}]),
        ("signatures", ["a"]),
        ("signatures", None),
        ("signatures", {"a": 1}),
    ],
    ids=itertools.count(),
)
def test_numbers_beyond_reason_and_odd_signatures_are_malformed(field, value):
    record = json.loads(encode(SEAL)) | {field: value}
    with pytest.raises(IntegrityError) as caught:
        parse(json.dumps(record).encode(), where="here")
    assert caught.value.reason == "malformed-seal"
    assert len(caught.value.message) < 500
