"""What can go wrong with S3 is caused, and met: real refusals, a proxy that cuts and lies."""

import contextlib
import os
import socket
import ssl
import sys
import threading
import time

import pytest
import trustme

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import runs
import s3
from buckets import Bucket, fetch, listed, read, refused

from warmer.errors import SourceError
from warmer.fill.sources import TransientSourceError
from warmer.fill.sources.retry import Retrying
from warmer.fill.sources.s3 import S3
from warmer.urls import parse_model

SHARD = "model.safetensors"
SIZE = 24 << 20
"""More than the sockets between a server and a client that does not read can hold."""
XML = {"Content-Type": "application/xml"}


@pytest.fixture
def weed():
    return s3.seaweed()


@pytest.fixture
def bucket(weed, monkeypatch):
    with Bucket(weed) as bucket:
        use(monkeypatch, bucket.environment())
        yield bucket


@pytest.fixture(scope="module")
def data():
    return os.urandom(SIZE)


KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}


@contextlib.contextmanager
def tls(authority, target):
    """Speak TLS before a server: yields the URL."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    host, port = target.removeprefix("http://").split(":")
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def copy(source, sink):
            with contextlib.suppress(OSError, ValueError):
                while data := source.recv(1 << 16):
                    sink.sendall(data)
            with contextlib.suppress(OSError):
                sink.shutdown(socket.SHUT_WR)

        def accept():
            while True:
                try:
                    raw, _ = listening.accept()
                except OSError:
                    return
                try:
                    client = context.wrap_socket(raw, server_side=True)
                except OSError:
                    continue
                server = socket.create_connection((host, int(port)))
                for ends in ((client, server), (server, client)):
                    threading.Thread(target=copy, args=ends, daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield f"https://127.0.0.1:{listening.getsockname()[1]}"


def use(monkeypatch, environment):
    monkeypatch.delenv("AWS_SESSION_TOKEN", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


def one(source):
    """Resolve a model of one file; returns both."""
    model = source.resolve()
    (file,) = source.files(model)
    return model, file


# --- objects that change -------------------------------------------------------------------------


def test_an_object_replaced_after_the_listing_is_refused_by_every_call(bucket):
    bucket.put(SHARD, b"before" * 1000)
    source = bucket.source()
    model, file = one(source)
    assert read(source.open(model, file, 0, 3000)) == b"before" * 500
    bucket.put(SHARD, b"after!" * 1000)
    for ask in (
        lambda: source.open(model, file, 3000, 6000),
        lambda: source.open(model, file, 0, 6000),
        lambda: source.describe(model, file),
    ):
        with refused(SourceError, "source-changed", SHARD, "run again"):
            ask()


def test_an_object_replaced_before_a_broken_connection_is_taken_up_is_not_mixed(bucket, data):
    bucket.put(SHARD, data)
    source = Retrying(bucket.source(), budget=30)
    model, file = one(source)
    bucket.wire.fault(SHARD, method="GET", truncate=SIZE // 2, times=1)
    reader = source.open(model, file, 0, SIZE)
    bucket.put(SHARD, bytes(SIZE))
    with refused(SourceError, "source-changed", SHARD):
        read(reader)
    (_, first), (_, second) = bucket.wire.ranges
    assert (first, second[:6]) == ("", "bytes=")


def test_an_object_removed_after_the_listing_is_named(bucket):
    bucket.put(SHARD, b"data")
    source = bucket.source()
    model, file = one(source)
    bucket.client.delete_object(Bucket=bucket.name, Key=f"team/model/{SHARD}")
    with refused(SourceError, "not-found", SHARD):
        source.open(model, file, 0, 4)


# --- refusals ------------------------------------------------------------------------------------


def test_expired_credentials_say_so_and_the_token_is_in_no_error(bucket, weed, monkeypatch):
    bucket.put(SHARD, b"data")
    model, file = one(bucket.source())
    with s3.ExpiredCredentials(weed) as expired:
        use(monkeypatch, expired.environment())
        source, secrets = bucket.source(), (expired.keys.token, expired.keys.secret_key)
        for ask in (
            source.resolve,
            lambda: source.open(model, file, 0, 4),
            lambda: source.describe(model, file),  # an answer to HEAD has no body that names it
        ):
            with refused(SourceError, "denied", "expired", secrets=secrets):
                ask()


def test_credentials_that_may_only_read_are_enough(bucket, weed, monkeypatch, tmp_path):
    bucket.put(SHARD, b"data")
    use(monkeypatch, bucket.environment(weed.reader))
    assert fetch(bucket.source(), tmp_path) == {SHARD: b"data"}


@pytest.mark.parametrize(
    "keys", [s3.Keys("testkey", "not-the-secret"), s3.Keys("nobody", "not-the-secret")]
)
def test_wrong_keys_are_denied_by_every_call(bucket, monkeypatch, keys):
    bucket.put(SHARD, b"data")
    model, file = one(bucket.source())
    use(monkeypatch, bucket.environment(keys))
    source = bucket.source()
    for ask in (
        source.resolve,
        lambda: source.open(model, file, 0, 4),
        lambda: source.describe(model, file),
    ):
        with refused(SourceError, "denied", "403", "s3:GetObject", secrets=(keys.secret_key,)):
            ask()


def test_no_credentials_are_asked_for(bucket, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with refused(SourceError, "denied", "NoCredentialsError", "AWS_ACCESS_KEY_ID"):
        bucket.source().resolve()


def test_half_of_a_pair_of_keys_is_told(bucket, monkeypatch):
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with refused(SourceError, "denied", "PartialCredentialsError", secrets=("testkey",)):
        bucket.source().resolve()


def test_no_such_bucket_and_no_such_prefix_are_not_found(bucket):
    with refused(SourceError, "not-found", "no-such-bucket-here", "NoSuchBucket"):
        bucket.source("s3://no-such-bucket-here/model").resolve()
    with refused(SourceError, "not-found", f"s3://{bucket.name}/none/"):
        bucket.source(f"s3://{bucket.name}/none").resolve()


def test_an_endpoint_that_is_no_url_is_told(bucket, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "no url")
    with refused(SourceError, "no-s3", "AWS_ENDPOINT_URL"):
        bucket.source()


# --- slowness ------------------------------------------------------------------------------------


def slow_down(bucket, seconds, code="SlowDown", **more):
    body = s3.refusal(code, "Please reduce your request rate.")
    headers = XML | {"Retry-After": f"{seconds}"}
    return bucket.wire.fault(status=503, body=body, headers=headers, **more)


def test_slow_down_is_obeyed_for_as_long_as_it_says(bucket):
    bucket.put(SHARD, b"data")
    slow_down(bucket, 1, times=1)
    source = Retrying(bucket.source(), budget=30)
    started = time.monotonic()
    assert list(listed(source)) == [SHARD]
    assert time.monotonic() - started >= 1, "it came back before it was asked to"
    assert source.patience.retries == {"rate-limited": 1}
    assert source.patience.throttled_s >= 1


def test_slow_down_for_longer_than_the_budget_ends_at_once(bucket):
    bucket.put(SHARD, b"data")
    slow_down(bucket, 60)
    with refused(TransientSourceError, "rate-limited", "503 SlowDown", "--retry") as caught:
        Retrying(bucket.source(), budget=5).resolve()
    assert caught.value.retry_after == 60
    assert len(bucket.wire.requests) == 1


def test_slow_down_until_a_date_is_understood(bucket):
    bucket.put(SHARD, b"data")
    slow_down(bucket, "Wed, 21 Oct 2999 07:28:00 GMT")
    with refused(TransientSourceError, "rate-limited", "503 SlowDown", "--retry") as caught:
        Retrying(bucket.source(), budget=5).resolve()
    assert caught.value.retry_after > 1e9


def test_slow_down_while_bytes_are_fetched_costs_no_byte(bucket, data, tmp_path):
    bucket.put(SHARD, data)
    source = Retrying(bucket.source(), budget=30)
    slow_down(bucket, 1, path=SHARD, method="GET", times=1)
    assert fetch(source, tmp_path) == {SHARD: data}
    assert source.patience.retries == {"rate-limited": 1}


@pytest.mark.parametrize(
    ("status", "code", "reason"),
    [
        (500, "InternalError", "unavailable"),
        (503, "ServiceUnavailable", "unavailable"),
        (429, "TooManyRequests", "rate-limited"),
        (400, "RequestTimeout", "unavailable"),
    ],
)
def test_what_may_pass_is_tried_again(bucket, status, code, reason):
    bucket.put(SHARD, b"data")
    bucket.wire.fault(status=status, body=s3.refusal(code, "later"), headers=XML, times=2)
    with refused(TransientSourceError, reason, f"{status} {code}"):
        bucket.source().resolve()
    source = Retrying(bucket.source(), budget=30)
    assert list(listed(source)) == [SHARD]
    assert source.patience.retries == {reason: 1}


def test_a_service_that_refuses_connections_is_unreachable(bucket, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{runs.closed_port()}")
    with refused(TransientSourceError, "unreachable", "AWS_ENDPOINT_URL", secrets=("testsecret",)):
        bucket.source().resolve()


@pytest.mark.parametrize(
    ("status", "reason"), [(200, "unavailable"), (302, "unreachable"), (502, "unavailable")]
)
def test_a_portal_in_between_is_no_listing(bucket, status, reason):
    body, headers = (
        b"<html><body>Sign in<br></body>",
        {"Location": "/", "Content-Type": "text/html"},
    )
    bucket.wire.fault(status=status, body=body, headers=headers)
    with refused(TransientSourceError, reason):
        bucket.source().resolve()


@pytest.mark.parametrize("status", [301, 307, 400])
def test_a_bucket_of_another_region_is_read_by_the_client_that_knows_how_to_follow(bucket, status):
    data = os.urandom(1000)
    bucket.put(SHARD, data)
    source = bucket.source()
    model, file = one(source)
    elsewhere = XML | {"x-amz-bucket-region": "eu-west-1", "Location": "http://elsewhere.invalid/"}
    body = s3.refusal("PermanentRedirect", "The bucket must be addressed elsewhere.")
    fault = bucket.wire.fault(
        method="GET", path=SHARD, status=status, headers=elsewhere, body=body, times=1
    )
    for start in (0, 500):
        assert read(source.open(model, file, start, 1000)) == data[start:]
    assert fault.times == 0, "it was not met"
    gets = [path for method, path in bucket.wire.requests if method == "GET" and SHARD in path]
    assert len(gets) == 3, "only the first request was made twice"


@pytest.mark.parametrize(
    ("region", "name", "place"),
    [
        ("us-east-1", "bucket", "https://bucket.s3.amazonaws.com/"),
        ("eu-west-1", "bucket", "https://bucket.s3.eu-west-1.amazonaws.com/"),
        ("cn-north-1", "bucket", "https://bucket.s3.cn-north-1.amazonaws.com.cn/"),
        ("eu-west-1", "a.bucket", "https://s3.eu-west-1.amazonaws.com/a.bucket/"),
    ],
)
def test_bytes_are_asked_for_where_boto3_would_ask(monkeypatch, region, name, place):
    use(monkeypatch, {"AWS_REGION": region, "AWS_DEFAULT_REGION": region, **KEYS})
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    assert S3(parse_model(f"s3://{name}/model"))._bytes._top == place


@pytest.mark.parametrize("name", ["bucket--use1-az4--x-s3", "bucket--use1-az4--xa-s3"])
def test_buckets_with_signatures_of_their_own_are_left_to_boto3(monkeypatch, name):
    use(monkeypatch, {"AWS_REGION": "us-east-1", **KEYS})
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    assert not S3(parse_model(f"s3://{name}/model"))._bytes._plainly


@pytest.mark.parametrize("variable", ["AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"])
def test_a_private_authority_is_trusted_where_boto3_trusts_it(
    bucket, monkeypatch, tmp_path, variable
):
    bucket.put(SHARD, b"data")
    for name in ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    with tls(authority, bucket.wire.url) as url:
        use(monkeypatch, {"AWS_ENDPOINT_URL": url})
        with refused(TransientSourceError, "unreachable", "SSL"):
            listed(bucket.source())
        use(monkeypatch, {variable: str(tmp_path / "ca.pem")})
        source = bucket.source()
        model, file = one(source)
        assert read(source.open(model, file, 1, 3)) == b"at"


# --- bodies that break or lie --------------------------------------------------------------------


def test_a_truncated_body_is_taken_up_where_it_broke_off(bucket, data):
    bucket.put(SHARD, data)
    source = Retrying(bucket.source(), budget=30)
    model, file = one(source)
    bucket.wire.fault(SHARD, method="GET", truncate=1_000_000, times=3)
    assert read(source.open(model, file, 0, SIZE)) == data
    first, *resumed = [asked for _, asked in bucket.wire.ranges]
    assert first == ""
    starts = [int(asked.removeprefix("bytes=").split("-")[0]) for asked in resumed]
    assert starts == [1_000_000, 2_000_000, 3_000_000], "nothing is fetched twice"
    assert source.patience.retries == {"unreachable": 3}


def test_a_connection_that_is_lost_midway_is_taken_up(bucket, data, tmp_path):
    bucket.put(SHARD, data)
    source = Retrying(bucket.source(), budget=30)
    model, file = one(source)
    reader = source.open(model, file, 0, SIZE)
    buffer = memoryview(bytearray(1 << 20))
    count = reader.readinto(buffer)
    bucket.wire.refuse()
    bucket.wire.accept()
    assert bytes(buffer[:count]) + read(reader) == data
    assert len(bucket.wire.ranges) == 2
    start = int(bucket.wire.ranges[1][1].removeprefix("bytes=").split("-")[0])
    assert count <= start < SIZE


def test_without_patience_a_truncated_body_is_an_error_that_may_pass(bucket, data):
    bucket.put(SHARD, data)
    source = bucket.source()
    model, file = one(source)
    bucket.wire.fault(SHARD, method="GET", truncate=1_000_000)
    with refused(TransientSourceError, "unreachable", SHARD):
        read(source.open(model, file, 0, SIZE))


def test_a_server_that_ignores_range_is_refused(bucket, data):
    bucket.put(SHARD, data)
    source = bucket.source()
    model, file = one(source)
    bucket.wire.fault(SHARD, method="GET", status=200, body=data[:50_000])
    for start, end in ((0, 1000), (1000, 50_000)):
        with refused(SourceError, "size-mismatch", SHARD, "Range"):
            source.open(model, file, start, end)


def test_a_length_that_is_larger_than_the_body_is_a_truncated_body(bucket):
    bucket.put(SHARD, bytes(10_000))
    source = bucket.source()
    model, file = one(source)
    headers = {"Content-Length": "9000", "Content-Range": "bytes 1000-9999/10000"}
    bucket.wire.fault(SHARD, method="GET", status=206, body=bytes(4000), headers=headers)
    reader = source.open(model, file, 1000, 10_000)
    with refused(TransientSourceError, "unreachable", SHARD):
        read(reader)


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Range": "bytes 1000-9999/10000", "Content-Length": "4000"},
        {"Content-Range": "bytes 2000-9999/10000"},
        {"Content-Range": "bytes 1000-9999/20000"},
        {"Content-Range": "bytes 0-8999/10000"},
        {},
    ],
)
def test_an_answer_that_is_not_the_range_that_was_asked_for_is_refused(bucket, headers):
    bucket.put(SHARD, bytes(10_000))
    source = bucket.source()
    model, file = one(source)
    bucket.wire.fault(SHARD, method="GET", status=206, body=bytes(9000), headers=headers)
    with refused(SourceError, "size-mismatch", SHARD, "1000-9999/10000"):
        source.open(model, file, 1000, 10_000)


def test_an_object_whose_length_is_not_the_listed_one_is_refused(bucket):
    bucket.put(SHARD, bytes(10_000))
    source = bucket.source()
    model, file = one(source)
    bucket.wire.fault(SHARD, method="GET", status=200, body=bytes(9000))
    with refused(SourceError, "size-mismatch", SHARD):
        source.open(model, file, 0, 10_000)
