"""Names in a remote bucket, and the URL that says where it is."""

import pytest

from warmer.errors import UsageError
from warmer.fill.remote import layout
from warmer.model import Key
from warmer.urls import RemoteUrl, parse_remote

KEY = Key("jit", {"a": 1})


@pytest.mark.parametrize("number", [1, 2, 10, 10**18 - 1])
def test_a_seals_name_says_its_number(number):
    name = layout.seal("team/x", KEY, number)
    assert name == f"team/x/v1/seals/jit/{KEY.digest}/{number}.json"
    assert layout.number(name.removeprefix(layout.seals("team/x", KEY))) == number


@pytest.mark.parametrize(
    "name",
    [
        "",
        "0.json",
        "01.json",
        "1",
        "1.JSON",
        "x/1.json",
        "-1.json",
        "1.json\n",
        "٣.json",
        f"1{'0' * 18}.json",
    ],
)
def test_other_names_are_no_seals(name):
    assert layout.number(name) is None


def test_a_blob_is_named_by_its_bytes_alone():
    assert layout.blob("team", "ab" * 32) == f"team/v1/blobs/{'ab' * 32}"


@pytest.mark.parametrize(
    ("url", "meant"),
    [
        ("s3://kernels/team", RemoteUrl("kernels", "team")),
        ("s3://kernels/team/a/b/", RemoteUrl("kernels", "team/a/b")),
    ],
)
def test_a_bucket_and_a_prefix_are_read(url, meant):
    assert parse_remote(url) == meant
    assert str(meant) == url.rstrip("/")


@pytest.mark.parametrize(
    "url",
    [
        *("kernels/team", "s3://kernels", "s3://kernels/", "s3:///team", "file:///team", ""),
        *("s3://kernels/../team", "s3://kernels/a//b", "s3://Kernels/team", "s3://kernels/a b"),
        *("s3://kernels/team?region=x", "s3://kernels/team#x", "hf://kernels/team", "s3://k/team"),
    ],
)
def test_anything_else_is_refused(url):
    with pytest.raises(UsageError) as caught:
        parse_remote(url)
    assert caught.value.reason == "bad-remote"
    assert "expected s3://bucket/prefix" in caught.value.message


def test_passwords_in_a_wrong_url_are_not_repeated():
    for url in ("s3://AKIAX:PLANTED@kernels/team", "s3://kernels/team?secret=PLANTEDplanted"):
        with pytest.raises(UsageError) as caught:
            parse_remote(url)
        assert "PLANTED" not in caught.value.message + caught.value.hint
