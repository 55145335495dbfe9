"""Ranges of a hub's files by signed URLs of a CDN, over real sockets."""

import os
import socket
import sys
import threading

import pytest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
from hub import Hub
from tinymodel import make_tiny_llama

from warmer.errors import SourceError
from warmer.fill.sources import TransientSourceError
from warmer.fill.sources.hub import Hub as HubSource
from warmer.fill.sources.retry import Retrying
from warmer.model import ModelRef

TOKEN = "hf_PlantedTokenOfTheHub"


@pytest.fixture
def hub(tmp_path):
    make_tiny_llama(str(tmp_path / "org" / "tiny"), layers=1)
    with Hub(tmp_path) as cdn, Hub(tmp_path, cdn=cdn) as hub:
        yield hub


@pytest.fixture
def source(hub):
    environment = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN}
    return HubSource(ModelRef("hf", "org/tiny", "main"), environment=environment)


@pytest.fixture
def model(source):
    return source.resolve()


@pytest.fixture
def shard(source, model):
    return max(source.files(model), key=lambda file: file.size)


def read(source, model, file, start, end):
    reader = source.open(model, file, start, end)
    try:
        data = bytearray(end - start)
        at = 0
        while at < len(data) and (count := reader.readinto(memoryview(data)[at:])):
            at += count
        return bytes(data[:at])
    finally:
        reader.close()


def content(hub, file):
    with open(f"{hub.root}/org/tiny/{file.path}", "rb") as stream:
        return stream.read()


def asked(hub):
    return [seen for seen in hub.log if "/resolve/" in seen.path]


def test_where_a_redirect_led_is_remembered_until_it_is_refused(hub, source, model, shard):
    data = content(hub, shard)
    assert read(source, model, shard, 0, 1000) == data[:1000]
    assert read(source, model, shard, 1000, 2000) == data[1000:2000]
    assert (len(asked(hub)), len(asked(hub.cdn))) == (1, 2)
    hub.cdn.signed.clear()
    assert read(source, model, shard, 2000, shard.size) == data[2000:], "asked for a new one"
    assert (len(asked(hub)), len(asked(hub.cdn))) == (2, 4)
    assert read(source, model, shard, 0, 10) == data[:10]
    assert (len(asked(hub)), len(asked(hub.cdn))) == (2, 5)
    assert {seen.authorized for seen in hub.cdn.log} == {False}
    assert {seen.authorized for seen in hub.log} == {True}


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
def test_a_signed_url_counts_as_expired_by_whatever_its_store_says(
    hub, source, model, shard, status
):
    data = content(hub, shard)
    read(source, model, shard, 0, 10)
    hub.cdn.fault(status=status, code="", times=1)
    assert read(source, model, shard, 10, 20) == data[10:20]
    assert len(asked(hub)) == 2


def test_a_new_signed_url_that_is_refused_too_is_an_error_after_one_more_question(
    hub, source, model, shard
):
    read(source, model, shard, 0, 10)
    hub.cdn.fault(status=403, code="")
    with pytest.raises(SourceError) as caught:
        read(source, model, shard, 10, 20)
    assert caught.value.reason == "denied"
    assert (len(asked(hub)), len(asked(hub.cdn))) == (2, 3)
    assert "Planted" not in caught.value.message + caught.value.hint


def test_a_failing_cdn_is_no_expired_url(hub, source, model, shard):
    read(source, model, shard, 0, 10)
    hub.cdn.fault(status=500)
    with pytest.raises(TransientSourceError):
        read(source, model, shard, 10, 20)
    assert len(asked(hub)) == 1


def test_connections_are_used_again(hub, source, model, shard):
    read(source, model, shard, 0, 10)
    before = len(hub.cdn._connections)
    for at in range(0, 50_000, 1000):
        read(source, model, shard, at, at + 1000)
    assert len(hub.cdn._connections) == before == 1


def test_a_redirect_that_never_ends_is_followed_no_further(hub, source, model, shard):
    hub.fault("/resolve/", status=302, code="")
    with pytest.raises(TransientSourceError) as caught:
        read(source, model, shard, 0, 10)
    assert caught.value.reason == "bad-answer"
    assert len(asked(hub)) == 8


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ({"all": True}, "bad-answer"),
        ({"lie": 7}, "size-mismatch"),
        ({"lie": -7}, "size-mismatch"),
        ({"status": 416}, "size-mismatch"),
        ({"status": 404, "code": "EntryNotFound"}, "not-found"),
        ({"status": 403}, "gated"),
    ],
)
def test_an_answer_that_is_not_the_range_is_refused_before_a_byte_of_it(
    hub, source, shard, fault, reason
):
    hub.cdn = None
    hub.fault("/resolve/", **fault)
    with pytest.raises(SourceError) as caught:
        source.open(source.resolve(), shard, 10, 20)
    assert caught.value.reason == reason


def test_a_file_that_is_shorter_than_listed_is_told(hub, source, model, shard):
    hub.cdn = None
    commit = hub.commit("org/tiny", model.revision)
    short = commit.files[shard.path]
    hub.commit = lambda *_: commit._replace(
        files={**commit.files, shard.path: short._replace(size=15)}
    )
    for start, end in ((0, shard.size), (10, 20), (16, 20)):
        with pytest.raises(SourceError) as caught:
            source.open(model, shard, start, end)
        assert caught.value.reason == "size-mismatch", (start, end)


def test_a_wait_for_others_sake_does_not_eat_into_the_budget():
    """Who waited because another connection was throttled still has its own tries."""
    source = Flaky()
    patient = Retrying(source, budget=2.0)
    throttled = threading.Thread(target=patient.resolve)
    throttled.start()
    assert source.refused.wait(10)
    # From here on the whole process is quiet for 2 s at least; then its own failure comes.
    source.failing = 1
    assert patient.files(None) == ()
    throttled.join()
    assert patient.patience.retries == {"rate-limited": 1, "unavailable": 1}
    assert patient.patience.throttled_s >= 1.5


class Flaky:
    """Throttles its first question, and fails the next ones as often as it is told."""

    def __init__(self):
        self.refused = threading.Event()
        self.failing = 0

    def resolve(self):
        if not self.refused.is_set():
            self.refused.set()
            raise TransientSourceError(
                "slow", reason="rate-limited", retry_after=1.5, throttled=True
            )

    def files(self, _model):
        if self.failing:
            self.failing -= 1
            raise TransientSourceError("once", reason="unavailable", retry_after=0.9)
        return ()


def test_a_hub_that_accepts_and_says_nothing_is_given_up(model, shard, monkeypatch):
    monkeypatch.setattr("warmer.fill.sources.hub_bytes._TIMEOUT", (0.5, 0.5))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        source = HubSource(model, environment={"HF_ENDPOINT": endpoint})
        with pytest.raises(TransientSourceError) as caught:
            source.open(model, shard, 0, 10)
    assert caught.value.reason == "unreachable"
