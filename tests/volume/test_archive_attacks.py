"""Archives and manifests made to escape, to lie or to hurt: refused, and nothing leaves the target."""

import hashlib
import io
import json
import sys
import tarfile
import tracemalloc
from pathlib import Path

import pytest
import zstandard

sys.path.insert(0, str(Path(__file__).parent.parent / "support"))

import volumes

from warmer.errors import IntegrityError
from warmer.fill import archive, members

GOOD = {"a": b"first", "d/b": b"second"}
MEMBER = {"path": "a", "size": 1, "sha256": "0" * 64, "mode": 0o644, "mtime_ns": 0}


def manifest_of(files):
    named = (
        members.Member(path, len(data), hashlib.sha256(data).hexdigest(), 0o644, 1)
        for path, data in files.items()
    )
    return members.Manifest({member.path: member for member in named})


def entry(name, data=b"", kind=tarfile.REGTYPE, **more):
    info = tarfile.TarInfo(name)
    info.size, info.type = len(data), kind
    for field, value in more.items():
        setattr(info, field, value)
    return info, data


def pack(entries):
    """A tar of whatever it is told, in zstd."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for info, data in entries:
            tar.addfile(info, io.BytesIO(data))
    return raw.getvalue()


GOOD_ENTRIES = [entry(path, data) for path, data in GOOD.items()]
GOOD_TAR = pack(GOOD_ENTRIES)
GOOD_ARCHIVE = zstandard.ZstdCompressor(write_checksum=True).compress(GOOD_TAR)


@pytest.fixture
def unpack(tmp_path):
    """Unpack bytes into box/target, and insist that nothing else anywhere near changed."""
    box = tmp_path / "box"
    box.mkdir()
    (box / "victim").write_bytes(b"untouched")
    (tmp_path / "victim").write_bytes(b"untouched")

    def outside():
        near = (path for path in tmp_path.rglob("*") if not path.is_relative_to(box / "target"))
        return {path: path.lstat().st_mtime_ns for path in near if path != box}

    def attack(data, manifest):
        (tmp_path / "archive").write_bytes(data)
        before = outside()
        try:
            archive.unpack([str(tmp_path / "archive")], manifest, str(box / "target"))
        finally:
            assert outside() == before, "something outside the target was touched"
            assert sorted(path.name for path in box.iterdir()) == ["target", "victim"]
            assert not any(path.is_symlink() for path in (box / "target").rglob("*"))

    return attack


def test_the_good_archive_is_accepted(unpack, tmp_path):
    unpack(GOOD_ARCHIVE, manifest_of(GOOD))
    assert volumes.read_tree(tmp_path / "box/target").keys() == GOOD.keys()


ESCAPES = ["../victim", "../../victim", "d/../../victim", "/etc/warmer-was-here", "d/../a", "./a"]


@pytest.mark.parametrize("name", ESCAPES)
def test_a_member_with_a_path_that_is_not_in_the_manifest_is_refused(unpack, name):
    data = zstandard.compress(pack([*GOOD_ENTRIES, entry(name, b"evil")]))
    with pytest.raises(IntegrityError):
        unpack(data, manifest_of(GOOD))
    assert not Path("/etc/warmer-was-here").exists()


@pytest.mark.parametrize(
    "name", [*ESCAPES, "", ".", "..", "d/", "d//b", "d/./b", "/", "nul\0", "..//x", "a/.."]
)
@pytest.mark.parametrize("where", ["files", "empty"])
def test_a_manifest_whose_path_leaves_the_tree_is_refused(name, where):
    record = {"schema_version": 1, "files": [], "empty": []}
    record[where].append(dict(MEMBER, path=name) if where == "files" else name)
    with pytest.raises(IntegrityError) as refused:
        members.parse(json.dumps(record).encode(), where="here")
    assert refused.value.reason == "bad-archive"


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        (tarfile.SYMTYPE, {"linkname": "../victim"}),
        (tarfile.SYMTYPE, {"linkname": "/etc/passwd"}),
        (tarfile.LNKTYPE, {"linkname": "../victim"}),
        (tarfile.LNKTYPE, {"linkname": "d/b"}),
        (tarfile.CHRTYPE, {"devmajor": 1, "devminor": 3}),
        (tarfile.BLKTYPE, {"devmajor": 7, "devminor": 0}),
        (tarfile.FIFOTYPE, {}),
        (tarfile.DIRTYPE, {}),
        (b"Z", {}),
    ],
)
def test_a_member_that_is_no_file_is_refused(unpack, tmp_path, kind, more):
    entries = [entry("d/b", GOOD["d/b"]), entry("a", kind=kind, **more)]
    with pytest.raises(IntegrityError):
        unpack(zstandard.compress(pack(entries)), manifest_of(GOOD | {"a": b""}))
    assert not (tmp_path / "box/target/a").exists()


def test_a_link_to_outside_is_not_followed_by_a_member_below_it(unpack):
    entries = [entry("d", kind=tarfile.SYMTYPE, linkname=".."), entry("d/victim", b"evil")]
    with pytest.raises(IntegrityError):
        unpack(zstandard.compress(pack(entries)), manifest_of({"d/victim": b"evil"}))


@pytest.mark.parametrize(
    "entries",
    [
        [*GOOD_ENTRIES, entry("a", GOOD["a"])],
        [*GOOD_ENTRIES, entry("a", b"other")],
        [entry("a", b"other"), *GOOD_ENTRIES],
        GOOD_ENTRIES[:1],
        GOOD_ENTRIES[1:],
        [],
        [*GOOD_ENTRIES, entry("extra")],
        [entry("a", b"FIRST"), GOOD_ENTRIES[1]],
        [entry("a", b"firs"), GOOD_ENTRIES[1]],
        [entry("a", b"first!"), GOOD_ENTRIES[1]],
        [entry("a"), GOOD_ENTRIES[1]],
        [entry("a", b"second"), entry("d/b", b"first")],
    ],
    ids=[
        *("twice", "twice with other bytes", "twice, the other first", "last missing"),
        *("first missing", "all missing", "one too many", "other bytes", "shorter", "longer"),
        *("emptied", "swapped"),
    ],
)
def test_members_that_are_not_the_manifests_are_refused(unpack, entries):
    with pytest.raises(IntegrityError) as refused:
        unpack(zstandard.compress(pack(entries)), manifest_of(GOOD))
    assert refused.value.reason == "bad-archive"


@pytest.mark.parametrize("cut", range(0, len(GOOD_ARCHIVE) - 4, 7))
def test_an_archive_cut_anywhere_before_its_last_bytes_is_refused(unpack, cut):
    with pytest.raises(IntegrityError):
        unpack(GOOD_ARCHIVE[:cut], manifest_of(GOOD))


def test_a_flipped_bit_is_refused_or_changes_no_file(unpack, tmp_path):
    refused = 0
    for at in range(len(GOOD_ARCHIVE)):
        data = bytearray(GOOD_ARCHIVE)
        data[at] ^= 0x10
        try:
            unpack(bytes(data), manifest_of(GOOD))
        except IntegrityError:
            refused += 1
        else:
            (tmp_path / "good").mkdir(exist_ok=True)
            found = volumes.read_tree(tmp_path / "box/target")
            assert found == {
                path: (len(data), hashlib.sha256(data).hexdigest()) for path, data in GOOD.items()
            }
        for path in sorted((tmp_path / "box/target").rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        (tmp_path / "box/target").rmdir()
    assert refused > len(GOOD_ARCHIVE) // 2


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"\0", b"x" * 10_000, b"\0" * 10_000, GOOD_TAR, GOOD_ARCHIVE[4:]),
        zstandard.compress(b""),
        zstandard.compress(b"no tar at all" * 100),
        zstandard.compress(GOOD_TAR[:512]),
        zstandard.compress(GOOD_TAR[:520]),
        zstandard.compress(GOOD_TAR[:1024]),
    ],
    ids=range(11),
)
def test_garbage_is_refused(unpack, data):
    with pytest.raises(IntegrityError):
        unpack(data, manifest_of(GOOD))


def test_a_huge_declared_size_is_refused_without_being_believed(unpack, tmp_path):
    huge = 1 << 50
    info, _ = entry("a")
    info.size = huge
    data = zstandard.compress(info.tobuf(tarfile.PAX_FORMAT) + b"x" * 4096)
    with pytest.raises(IntegrityError):
        unpack(data, manifest_of(GOOD))
    (tmp_path / "box/target").rmdir()
    lying = members.Manifest({"a": members.Member("a", huge, "0" * 64, 0o644, 1)})
    with pytest.raises(IntegrityError):
        unpack(data, lying)
    assert sum(path.stat().st_size for path in (tmp_path / "box").rglob("*")) < 100_000


def test_a_frame_that_asks_for_gigabytes_of_window_is_refused(unpack):
    with pytest.raises(IntegrityError):
        unpack(b"\x28\xb5\x2f\xfd\x04\xa0" + b"\0" * 64, manifest_of(GOOD))


def test_a_bomb_behind_the_last_member_is_not_unpacked(unpack, tmp_path):
    data = zstandard.compress(pack([*GOOD_ENTRIES, entry("bomb", b"\0" * 50_000_000)]))
    assert len(data) < 50_000
    with pytest.raises(IntegrityError):
        unpack(data, manifest_of(GOOD))
    assert not (tmp_path / "box/target/bomb").exists()


@pytest.mark.parametrize("header", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_header_that_is_longer_than_all_members_is_not_read(unpack, header):
    data = zstandard.compress(pack([entry("x", b"\0" * 300_000_000, header), *GOOD_ENTRIES]))
    assert len(data) < 50_000
    tracemalloc.start()
    try:
        with pytest.raises(IntegrityError, match="longer than its members"):
            unpack(data, manifest_of(GOOD))
        assert tracemalloc.get_traced_memory()[1] < 30_000_000
    finally:
        tracemalloc.stop()


def test_a_sparse_member_is_refused(unpack):
    info = tarfile.TarInfo("a")
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "a"}
    info.pax_headers["GNU.sparse.realsize"] = f"{len(GOOD['a'])}"
    body = b"1\n0\n%d\n" % len(GOOD["a"])
    body = body.ljust(512, b"\0") + GOOD["a"]
    info.size = len(body)
    data = zstandard.compress(pack([(info, body), *GOOD_ENTRIES[1:]]))
    with pytest.raises(IntegrityError, match="no such file"):
        unpack(data, manifest_of(GOOD))


def test_a_manifest_of_too_many_files_is_refused():
    record = {"schema_version": 1, "files": [], "empty": ["a"] * (members.MOST + 1)}
    with pytest.raises(IntegrityError, match="more than 1000000 files"):
        members.parse(json.dumps(record).encode(), where="here")


def test_an_existing_target_is_not_unpacked_into(unpack, tmp_path):
    (tmp_path / "box/target").mkdir()
    with pytest.raises(FileExistsError):
        unpack(GOOD_ARCHIVE, manifest_of(GOOD))
    assert volumes.read_tree(tmp_path / "box/target") == {}


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"\0", b"null", b"[]", b"{}", b"7", b"\xff\xfe", b"[" * 100_000),
        json.dumps({"schema_version": 2, "files": [], "empty": []}).encode(),
        json.dumps({"schema_version": 1, "files": []}).encode(),
        json.dumps({"schema_version": 1, "files": {"a": 1}, "empty": []}).encode(),
        *(
            json.dumps({"schema_version": 1, "files": [MEMBER | wrong], "empty": []}).encode()
            for wrong in (
                *({"size": None}, {"size": "x"}, {"size": float("inf")}, {"mode": "rw"}),
                *({"mode": float("inf")}, {"mtime_ns": float("inf")}, {"mtime_ns": []}),
            )
        ),
    ],
    ids=lambda data: f"{data[:1]!r}-{hashlib.sha256(data).hexdigest()[:6]}",
)
def test_a_malformed_manifest_is_refused(data):
    with pytest.raises(IntegrityError) as refused:
        members.parse(data, where="here")
    assert refused.value.exit_code == 5


@pytest.mark.parametrize(
    ("files", "empty"),
    [
        ({"a": {}, "a/b": {}}, []),
        ({"a": {}}, ["a"]),
        ({"a": {}}, ["a/b"]),
        ({"a" * 300: {}}, []),
        ({"a": {}}, ["b" * 300]),
        ({"a": {}}, ["\ud800"]),
    ],
    ids=[
        *("file below a file", "file and empty", "empty below a file"),
        *("long name", "long empty name", "name that cannot be"),
    ],
)
def test_a_manifest_that_no_disk_can_follow_is_refused_as_integrity(unpack, files, empty):
    """Refused as IntegrityError it is moved aside and built anew; anything else stays for ever."""
    hashes = {"size": 1, "sha256": hashlib.sha256(b"x").hexdigest()}
    listed = [MEMBER | hashes | {"path": path} | wrong for path, wrong in files.items()]
    record = {"schema_version": 1, "files": listed, "empty": empty}
    packed = zstandard.compress(pack([entry(path, b"x") for path in files]))
    with pytest.raises(IntegrityError):
        unpack(packed, members.parse(json.dumps(record).encode(), where="here"))


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_chain_of_headers_that_is_deeper_than_python_goes_is_refused(unpack, kind):
    big = bytes(8 << 20)  # room for them all
    record = b"11 path=a\n\n" if kind == tarfile.XHDTYPE else b"a\0"
    chain = [entry("header", record, kind=kind) for _ in range(2000)]
    with pytest.raises(IntegrityError) as refused:
        unpack(zstandard.compress(pack([*chain, entry("a", big)])), manifest_of({"a": big}))
    assert refused.value.reason == "bad-archive"
