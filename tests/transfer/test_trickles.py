"""Sources that bring a few bytes a second and for ever, over real sockets: ended, and tried again."""

import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
import trustme
import urllib3

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import runs
import s3
from buckets import Bucket
from hub import Hub
from scripted import transfer
from trickle import Trickle

from warmer.errors import SourceError
from warmer.fill.sources import SourceFile, TransientSourceError, trickle
from warmer.fill.sources.hub import Hub as HubSource
from warmer.fill.sources.retry import Retrying
from warmer.fill.sources.s3 import S3
from warmer.model import ModelRef
from warmer.urls import parse_model

WINDOW = 1.0
"""Seconds; a minute in life."""
SIZE = 300_000
BIG = "model.safetensors"


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(trickle, "WINDOW", WINDOW)
    monkeypatch.setattr(trickle, "SHORT_WINDOW", WINDOW)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    top = tmp_path_factory.mktemp("hub")
    os.makedirs(top / "org" / "big")
    (top / "org" / "big" / "config.json").write_text("{}")
    (top / "org" / "big" / BIG).write_bytes(os.urandom(SIZE))
    return top


@pytest.fixture
def hub(files):
    with Hub(files) as hub:
        yield hub


@pytest.fixture
def bucket(files, monkeypatch):
    with Bucket(s3.seaweed()) as bucket:
        for name, value in bucket.environment().items():
            monkeypatch.setenv(name, value)
        for name in ("config.json", BIG):
            bucket.put(name, (files / "org" / "big" / name).read_bytes())
        yield bucket


def of_hub(hub, link=None, **environment):
    endpoint = link.url if link else hub.url
    model = ModelRef("hf", "org/big", hub.sha("org/big"))
    return model, HubSource(model, environment={"HF_ENDPOINT": endpoint} | environment)


def of_bucket(bucket, link, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", link.url)
    model = parse_model(bucket.model)
    return model, S3(model)


def trickles(call, *arguments):
    """Call, which must end as what trickles; return the error."""
    with pytest.raises(TransientSourceError) as caught:
        call(*arguments)
    assert caught.value.reason == "too-slow", caught.value.message
    assert caught.value.hint
    return caught.value.message


def pull(reader, size=SIZE):
    buffer = memoryview(bytearray(size))
    while buffer and (count := reader.readinto(buffer)):
        buffer = buffer[count:]


class Fetched:
    """A whole transfer of the big file into a staging, with patience of so many seconds."""

    def __init__(self, model, source, staging, *, budget, connections=4):
        self.source = Retrying(source, budget=budget)
        self.listed = tuple(f for f in source.files(model) if f.path == BIG)
        self.staging, self.connections = staging, connections
        self.moved = Counter()

    def run(self):
        told = lambda path, count: self.moved.update({path: count})  # noqa: E731
        return transfer(self.source, self.staging, moved=told, connections=self.connections)


@pytest.fixture
def fetched(monkeypatch):
    # `scripted.transfer` asks for the model by its own name.
    def make(model, source, staging, **how):
        monkeypatch.setattr("scripted.MODEL", model)
        one = Fetched(model, source, staging, **how)
        one.source.listed = one.listed
        return one

    return make


@pytest.mark.parametrize("rate", [200.0, 2000.0])
def test_where_every_connection_trickles_the_fill_ends_and_says_how_much_came(
    hub, tmp_path, fetched, small_parts, rate
):
    fault = hub.fault(BIG, rate=rate)
    one = fetched(*of_hub(hub), tmp_path, budget=1.0)
    with pytest.raises(SourceError) as caught:
        one.run()
    assert (caught.value.reason, caught.value.exit_code) == ("too-slow", 4)
    words = caught.value.message.split()
    got, expected = int(words[1]), int(words[-1])
    assert got < expected
    assert f"bytes in {WINDOW:.0f} s from 127.0.0.1 for {BIG}" in caught.value.message
    assert expected == trickle.FLOOR * WINDOW
    assert one.source.patience.retries["too-slow"] >= 1, "it was tried on a new connection"
    assert one.moved[BIG] == 0, "no byte of it counts as going on"
    assert fault.hits("GET", BIG)


def test_one_connection_that_trickles_is_replaced_and_what_others_brought_is_kept(
    hub, files, tmp_path, fetched, small_parts
):
    hub.fault(BIG, rate=200.0, times=1)
    one = fetched(*of_hub(hub), tmp_path, budget=5.0)
    one.run()
    path = f"files/{BIG}"
    assert (tmp_path / path).read_bytes() == (files / "org" / "big" / BIG).read_bytes()
    assert one.source.patience.retries == {"too-slow": 1}
    parts = -(-SIZE // small_parts)
    asked = [seen.range for seen in hub.log if BIG in seen.path]
    assert len(asked) == parts + 1, "one part was asked for twice"


def test_a_slow_link_that_all_connections_share_is_never_ended(hub, tmp_path, fetched, small_parts):
    # 8 connections of 4 workers share 200 kB/s in life: 6 kB/s each. Here 4 share 50 kB/s.
    with Trickle(hub.url, down=50_000.0, shared=True) as link:
        one = fetched(*of_hub(hub, link), tmp_path, budget=0.0)
        began = time.monotonic()
        one.run()
    assert time.monotonic() - began > 3 * WINDOW, "it was judged several times"
    assert one.source.patience.retries == {}


def test_a_small_share_of_a_slow_link_is_spared_while_the_others_bring_theirs(hub):
    hub.fault(BIG, rate=trickle.FLOOR / 2, times=1)
    hub.fault(BIG, rate=trickle.LINK / 2)
    model, source = of_hub(hub)
    small, *others = (source.open(model, SourceFile(BIG, SIZE), 0, SIZE) for _ in range(4))
    with ThreadPoolExecutor() as pool:
        rest = [pool.submit(pull, other, int(trickle.LINK / 2 * 3 * WINDOW)) for other in others]
        pull(
            small, int(trickle.FLOOR / 2 * 2 * WINDOW)
        )  # two windows, of which each brings too little
        for one in rest:
            one.result()
    trickles(pull, small, 10 * trickle.FLOOR)


def test_many_streams_below_the_floor_are_spared_where_all_together_are_a_link(hub):
    """Each of the eight of four workers has that much where all share 80 kB/s."""
    hub.fault(BIG, rate=0.8 * trickle.FLOOR)
    model, source = of_hub(hub)
    several = [source.open(model, SourceFile(BIG, SIZE), 0, SIZE) for _ in range(8)]
    with ThreadPoolExecutor(len(several)) as pool:
        size = int(0.8 * trickle.FLOOR * 2.5 * WINDOW)
        for one in [pool.submit(pull, reader, size) for reader in several]:
            one.result()
    for reader in several:
        reader.close()


def test_small_answers_of_a_source_that_thinks_after_their_headers_are_no_trickle():
    """Hundreds may come over one connection, and however fast, they bring few bytes a second."""
    body = b"{}"
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = []

        def serve():
            with suppress(OSError):
                client, _ = server.accept()
                taken.append(client)
                while client.recv(1 << 16):
                    client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")
                    time.sleep(0.6 * WINDOW)
                    client.sendall(body)

        thread = threading.Thread(target=serve)
        thread.start()
        manager = urllib3.PoolManager(retries=False)
        manager.pool_classes_by_scheme = trickle.pools(manager.pool_classes_by_scheme)
        url = f"http://127.0.0.1:{server.getsockname()[1]}/"
        assert [manager.request("GET", url).data for _ in range(3)] == [body] * 3
        manager.clear()
        thread.join()
        assert len(taken) == 1, "all came over one connection"
        taken[0].close()


def test_a_volume_that_is_slow_to_write_takes_nothing_from_the_source(hub, monkeypatch):
    monkeypatch.setattr(trickle, "WINDOW", 0.2)
    model, source = of_hub(hub)
    file = next(f for f in source.files(model) if f.path == BIG)
    reader = source.open(model, file, 0, SIZE)
    pull(reader, 1000)
    time.sleep(0.5)  # as a write that hangs
    pull(reader, 1000)
    time.sleep(0.5)
    pull(reader, SIZE - 2000)
    reader.close()


def test_headers_that_trickle_are_ended(hub, tmp_path):
    with Trickle(hub.url, down=40.0) as link:
        model, source = of_hub(hub, link)
        file = SourceFile(BIG, SIZE)
        assert "from 127.0.0.1" in trickles(source.open, model, file, 0, SIZE)


def test_a_listing_that_trickles_is_not_waited_for(hub):
    with Trickle(hub.url, down=40.0) as link:
        _, source = of_hub(hub, link)
        assert "in 1 s" in trickles(source.resolve)
        link.down = None
        assert source.resolve().revision == hub.sha("org/big")


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_trickles_is_ended(hub, monkeypatch, scheme):
    """With TLS to the hub it is asked to CONNECT, before the connection counts as made."""
    with Trickle(hub.url, down=40.0) as link:
        monkeypatch.setenv(f"{scheme.upper()}_PROXY", link.url)
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        model, source = of_hub(hub, HF_ENDPOINT=f"{scheme}://hub.invalid")
        message = trickles(source.open, model, SourceFile(BIG, SIZE), 0, SIZE)
        assert "127.0.0.1" in message, "the proxy is what trickles"


def test_what_trickles_through_tls_is_ended(hub, tmp_path):
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with Trickle(hub.url, down=400.0, free=300, tls=context) as link:
        more = {"REQUESTS_CA_BUNDLE": str(tmp_path / "ca.pem")}
        model, source = of_hub(hub, link, **more)
        file = SourceFile(BIG, SIZE)
        assert "from 127.0.0.1" in trickles(lambda: pull(source.open(model, file, 0, SIZE)))
        link.down = None
        pull(source.open(model, file, 0, SIZE))


@pytest.mark.parametrize("anonymous", [False, True])
@pytest.mark.parametrize("free", [0, 2000])
def test_an_object_that_trickles_is_ended_headers_and_body(bucket, monkeypatch, free, anonymous):
    with Trickle(bucket.server.endpoint, free=1 << 30) as link:
        model, source = of_bucket(bucket, link, monkeypatch)
        if anonymous:  # as where boto3 itself makes the calls
            source._bytes._plainly = False
        resolved = source.resolve()
        file = next(f for f in source.files(resolved) if f.path == BIG)
        link.free, link.down = free, 100.0
        source._client._endpoint.http_session.close()
        assert "from 127.0.0.1" in trickles(lambda: pull(source.open(model, file, 0, SIZE)))


def test_a_listing_of_a_bucket_that_trickles_is_ended(bucket, monkeypatch):
    with Trickle(bucket.server.endpoint, down=100.0) as link:
        _, source = of_bucket(bucket, link, monkeypatch)
        assert "from 127.0.0.1" in trickles(source.resolve)


SHORT = (
    "import warmer.fill.sources.trickle as p; p.WINDOW = 1.0; from warmer.cli import main; main()"
)


@pytest.mark.parametrize("where", [BIG, "^/api/"])
def test_a_prefill_from_a_hub_that_trickles_ends_with_4(hub, tmp_path, where):
    hub.fault(where, method="GET", rate=50.0)
    env = {"PATH": os.defpath, "HOME": str(tmp_path), "HF_ENDPOINT": hub.url}
    words = ["prefill", "--json", "--volume", tmp_path / "volume", "--warm-dir", tmp_path / "warm"]
    words += ["--model", "org/big", "--retry", "1", "--compile", "never"]
    os.makedirs(tmp_path / "volume")
    os.makedirs(tmp_path / "warm")
    argv = [sys.executable, "-c", SHORT, *map(str, words)]
    env |= {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60)
    result = runs.Result(done.returncode, done.stdout, done.stderr, 0.0)
    assert result.code == 4, result
    assert result.json["error"]["reason"] == "too-slow"
    assert "in 1 s" in result.json["error"]["message"]
