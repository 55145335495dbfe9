"""Buckets that bring, or take, a few bytes a second: a pull ends, and so does a push."""

import hashlib
import os
import sys
import time

import pytest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import s3
from trickle import Trickle

from warmer.errors import SourceError
from warmer.fill.remote import service
from warmer.fill.remote.bucket import Bucket
from warmer.fill.sources import trickle
from warmer.fill.sources.retry import Trying
from warmer.model import Key
from warmer.seal import SealedFile
from warmer.urls import RemoteUrl

WINDOW = 0.5
KEY = Key("compile", {"name": "org/model"})
SIZE = 3 << 20


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(trickle, "SHORT_WINDOW", WINDOW)


@pytest.fixture
def far(monkeypatch):
    """Return what opens a bucket whose connections go through a link, and the link."""
    weed = s3.seaweed()
    for name, value in weed.environment().items():
        monkeypatch.setenv(name, value)
    name = weed.bucket()
    links = []

    def make(**how):
        links.append(Trickle(weed.endpoint, **how))
        monkeypatch.setenv("AWS_ENDPOINT_URL", links[-1].url)
        return Bucket(RemoteUrl(name, "kernels"), Trying(budget=0.5, once=True)), links[-1]

    yield make
    for link in links:
        link.close()


@pytest.fixture
def blob(tmp_path):
    data = os.urandom(SIZE)
    (tmp_path / "blob").write_bytes(data)
    return SealedFile("blob", SIZE, hashlib.sha256(data).hexdigest()), str(tmp_path / "blob")


@pytest.mark.parametrize("free", [0, 3000])
def test_a_blob_that_trickles_is_given_up_within_the_one_budget(far, blob, free):
    bucket, link = far()
    assert bucket.put(*blob)
    bucket.client.close()
    link.free, link.down = free, 100.0
    with pytest.raises(SourceError) as caught:
        bucket.read(blob[0], lambda _: None)
    assert caught.value.reason == "too-slow"
    assert "from 127.0.0.1 for s3://" in caught.value.message
    assert bucket.trying.patience.retries["too-slow"] >= 1


def test_a_listing_and_a_seal_that_trickle_are_given_up(far):
    bucket, link = far()
    assert bucket.put_seal(KEY, 1, b"{}")
    link.down = 100.0
    for ask in (lambda: bucket.numbers(KEY), lambda: bucket.seal(KEY, 1, most=100)):
        with pytest.raises(SourceError) as caught:
            ask()
        assert caught.value.reason == "too-slow"


def test_an_answer_to_a_push_that_trickles_is_given_up(far, blob):
    bucket, link = far()
    assert bucket.numbers(KEY) == []
    link.down = 20.0
    with pytest.raises(SourceError) as caught:
        bucket.put(*blob)
    assert caught.value.reason == "too-slow"


def test_a_push_that_is_drained_slowly_ends_when_its_time_is_over(far, blob, monkeypatch):
    quick = service._CONFIG.merge(type(service._CONFIG)(read_timeout=1))
    monkeypatch.setattr(service, "_CONFIG", quick)
    # Slow enough to take minutes, fast enough for no send to count as silence.
    bucket, _ = far(up=50_000.0)
    bucket.until = time.monotonic() + 1.0
    began = time.monotonic()
    with pytest.raises(SourceError):
        bucket.put(*blob)
    assert time.monotonic() - began < 15.0 < SIZE / 50_000.0, "not at the end of the blob"
