"""What an S3 source lists, resolves and says of bytes, against a real SeaweedFS."""

import hashlib
import os
import sys

import pytest
from botocore.awsrequest import HeadersDict as HTTPHeaders

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import s3
from buckets import PREFIX, Bucket, fetch, listed, read, refused

from warmer.errors import IntegrityError, SourceError
from warmer.fill.sources.s3 import whole_digests
from warmer.urls import parse_model

MORE_THAN_A_PAGE = 1100
NAMES = (
    "with space.json",
    "päth/ünïcode.txt",
    "日本語/モデル.safetensors",
    "a+b&c=d%20e.txt",
    "quote'and\"more.txt",
    "deep/er/and/deeper.bin",
)


@pytest.fixture
def bucket(monkeypatch):
    with Bucket(s3.seaweed()) as bucket:
        for name, value in bucket.environment().items():
            monkeypatch.setenv(name, value)
        yield bucket


def md5(data):
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def test_more_objects_than_a_page_holds_are_listed_once_and_fetched(bucket, tmp_path):
    files = {f"{n % 7}/{n}.json": b"%d" % n for n in range(MORE_THAN_A_PAGE)}
    bucket.put_all(files)
    source = bucket.source()
    model = source.resolve()
    found = source.files(model)
    assert [file.path for file in found] == sorted(files)
    assert {file.path: file.size for file in found} == {p: len(d) for p, d in files.items()}
    assert bucket.wire.listings == 2, "two pages, asked for once"
    assert fetch(source, tmp_path) == files


def test_every_name_that_an_object_may_have_is_fetched_as_it_is(bucket, tmp_path):
    files = {name: name.encode() * 1000 for name in NAMES}
    bucket.put_all(files)
    assert fetch(bucket.source(), tmp_path) == files


def test_an_empty_object_is_a_file_and_a_directory_marker_is_none(bucket, tmp_path):
    files = {"config.json": b"{}", "empty": b"", "sub/__init__.py": b""}
    bucket.put_all(files | {"sub/": b"", "": b""})
    assert fetch(bucket.source(), tmp_path) == files


def test_objects_of_other_prefixes_are_not_the_models(bucket):
    bucket.put("config.json", b"{}")
    for other in (f"{PREFIX}-2/config.json", PREFIX, f"{PREFIX}.json", "team/config.json"):
        bucket.client.put_object(Bucket=bucket.name, Key=other, Body=b"other")
    assert list(listed(bucket.source())) == ["config.json"]


def test_the_revision_is_the_same_until_an_object_changes(bucket):
    bucket.put_all({"config.json": b"{}", "model.safetensors": b"weights"})
    first = bucket.source().resolve()
    assert first.pinned
    assert bucket.source().resolve() == first
    bucket.put("model.safetensors", b"WEIGHTS")
    changed = bucket.source().resolve()
    assert changed.revision != first.revision
    bucket.put("extra.json", b"{}")
    assert bucket.source().resolve().revision not in (first.revision, changed.revision)


def test_a_pinned_listing_is_found_again_or_refused(bucket):
    bucket.put("config.json", b"{}")
    pinned = f"{bucket.model}@{bucket.source().resolve().revision}"
    source = bucket.source(pinned)
    assert [file.path for file in source.files(parse_model(pinned))] == ["config.json"]
    bucket.put("config.json", b"[]")
    with refused(SourceError, "source-changed", "@revision"):
        bucket.source(pinned).files(parse_model(pinned))


def test_a_file_of_sums_vouches_for_what_it_names_and_is_no_file_of_the_model(bucket):
    files = {"a": b"a", "b c": b"b", "d/e": b"d", "not named": b"f"}
    sums = [
        f"{sha256(b'a')}  a",
        f"{sha256(b'b').upper()} *b c\r",
        f"{sha256(b'd')}  ./d/e",
        f"{sha256(b'g')}  gone",
        "nonsense",
        f"{sha256(b'f')[:40]}  not named",
    ]
    bucket.put_all(files | {"SHA256SUMS": "\n".join(sums).encode()})
    source = bucket.source()
    found = listed(source)
    assert {path: dict(file.digests) for path, file in found.items()} == {
        "a": {"sha256": sha256(b"a")},
        "b c": {"sha256": sha256(b"b")},
        "d/e": {"sha256": sha256(b"d")},
        "not named": {},
    }
    heads = bucket.wire.methods["HEAD"]
    assert source.describe(source.resolve(), found["a"]) == found["a"]
    assert bucket.wire.methods["HEAD"] == heads, "a sha256 needs no further question"


def test_bytes_that_differ_from_the_file_of_sums_are_refused(bucket, tmp_path):
    sums = f"{sha256(b'the bytes that were signed')}  model.safetensors\n"
    bucket.put_all({"model.safetensors": b"other bytes", "SHA256SUMS": sums.encode()})
    with refused(IntegrityError, "hash-mismatch", "model.safetensors", "sha256"):
        fetch(bucket.source(), tmp_path)


def test_the_file_of_sums_outweighs_what_the_service_says_of_the_bytes_it_gives(bucket, tmp_path):
    bucket.put("config.json", b"tampered", ChecksumAlgorithm="SHA256")
    bucket.put("SHA256SUMS", f"{sha256(b'original')}  config.json\n".encode())
    with refused(IntegrityError, "hash-mismatch", "config.json", sha256(b"original")):
        fetch(bucket.source(), tmp_path)


@pytest.mark.parametrize("algorithm", ["CRC64NVME", "CRC32", "CRC32C"])
def test_a_multi_part_object_is_checked_by_the_whole_objects_checksum(bucket, tmp_path, algorithm):
    data = os.urandom((5 << 20) + 12345)
    etag = bucket.put_in_parts("model.safetensors", data, algorithm)
    assert etag.endswith('-2"')
    source = bucket.source()
    (file,) = listed(source).values()
    described = source.describe(source.resolve(), file)
    assert set(described.digests) == {algorithm.lower()}, "an ETag of parts is no MD5"
    assert fetch(source, tmp_path / "right") == {"model.safetensors": data}
    bucket.wire.fault("model.safetensors", method="GET", corrupt=True)
    with refused(IntegrityError, "hash-mismatch", "model.safetensors", algorithm.lower()):
        fetch(source, tmp_path / "wrong")


@pytest.mark.parametrize("algorithm", ["CRC64NVME", "CRC32", "CRC32C", "SHA1", "SHA256"])
def test_an_object_put_at_once_is_checked_by_its_md5_and_its_checksum(bucket, tmp_path, algorithm):
    data = os.urandom(300_000)
    bucket.put("model.safetensors", data, ChecksumAlgorithm=algorithm)
    source = bucket.source()
    (file,) = listed(source).values()
    digests = source.describe(source.resolve(), file).digests
    assert digests["md5"] == md5(data)
    assert set(digests) == {"md5", algorithm.lower()}
    if algorithm.startswith("SHA"):
        assert digests[algorithm.lower()] == hashlib.new(algorithm, data).hexdigest()
    assert fetch(source, tmp_path / "right") == {"model.safetensors": data}
    bucket.wire.fault("model.safetensors", method="GET", corrupt=True)
    with refused(IntegrityError, "hash-mismatch", "model.safetensors"):
        fetch(source, tmp_path / "wrong")


def test_a_flipped_byte_in_one_range_of_many_is_found(bucket, tmp_path, monkeypatch):
    monkeypatch.setattr("warmer.fill.transfer.PART", 1 << 20)
    data = os.urandom(6_500_000)
    bucket.put_in_parts("model.safetensors", data, "CRC64NVME")
    source = bucket.source()
    assert fetch(source, tmp_path / "right") == {"model.safetensors": data}
    assert len(bucket.wire.ranges) == 7
    bucket.wire.fault("model.safetensors", method="GET", corrupt=True, times=1)
    with refused(IntegrityError, "hash-mismatch", "model.safetensors", "crc64nvme"):
        fetch(source, tmp_path / "wrong")


MD5 = "0123456789abcdef0123456789abcdef"
SSE = "x-amz-server-side-encryption"
ANSWERS = [
    # headers of an answer of S3; what of that is a digest of the whole object.
    ({"ETag": f'"{MD5}"'}, {"md5": MD5}),
    ({"ETag": f'"{MD5}"', SSE: "AES256"}, {"md5": MD5}),
    ({"ETag": f'"{MD5}"', SSE: "aws:kms"}, {}),
    ({"ETag": f'"{MD5}"', SSE: "aws:kms:dsse"}, {}),
    ({"ETag": f'"{MD5}"', f"{SSE}-customer-algorithm": "AES256"}, {}),
    ({"ETag": f'"{MD5}-2"'}, {}),
    ({"ETag": '"0x8DC0FFEE"'}, {}),
    ({"x-amz-checksum-crc32": "AAAAAQ=="}, {"crc32": "00000001"}),
    (
        {"x-amz-checksum-crc32": "AAAAAQ==", "x-amz-checksum-type": "FULL_OBJECT"},
        {"crc32": "00000001"},
    ),
    ({"x-amz-checksum-crc32": "AAAAAQ==-2"}, {}),
    ({"x-amz-checksum-sha256": "AAAAAQ==", "x-amz-checksum-type": "COMPOSITE"}, {}),
    ({"x-amz-checksum-crc32": "no base64"}, {}),
    ({}, {}),
]


@pytest.mark.parametrize(("headers", "digests"), ANSWERS)
def test_only_what_is_a_digest_of_the_whole_object_is_taken_for_one(headers, digests):
    assert whole_digests(HTTPHeaders(headers), "bucket") == digests


def test_etags_of_a_directory_bucket_are_random_and_no_md5():
    headers = {"ETag": f'"{MD5}"', "x-amz-checksum-crc32": "AAAAAQ=="}
    found = whole_digests(HTTPHeaders(headers), "models--usw2-az1--x-s3")
    assert found == {"crc32": "00000001"}


def test_ranges_of_an_object_are_what_was_asked_for(bucket):
    data = os.urandom(100_000)
    bucket.put("model.safetensors", data)
    source = bucket.source()
    model, (file,) = source.resolve(), listed(source).values()
    for start, end in ((0, 1), (5, 70_000), (99_999, 100_000), (0, 99_999)):
        reader = source.open(model, file, start, end)
        assert dict(reader.digests) == {}, "a range's answer vouches for no whole object"
        assert read(reader) == data[start:end]
    reader = source.open(model, file, 0, 100_000)
    assert reader.digests["md5"] == md5(data)
    assert read(reader) == data
    reader.close()
    assert [asked for _, asked in bucket.wire.ranges] == [
        *("bytes=0-0", "bytes=5-69999", "bytes=99999-99999", "bytes=0-99998"),
        "",
    ]
