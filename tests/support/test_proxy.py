"""The proxy passes what is signed, and each of its faults is what a client and the server see."""

import http.client
import os
import random
import sys
import threading
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import botocore.exceptions as errors
import pytest

sys.path.insert(0, os.path.dirname(__file__))
import s3
from hub import Hub
from proxy import Proxy
from runs import eventually

DATA = random.Random(0).randbytes(3_000_000)  # noqa: S311 - not a secret


@pytest.fixture(scope="module")
def weed():
    return s3.seaweed()


@pytest.fixture
def proxy(weed):
    with Proxy(weed.endpoint) as proxy:
        yield proxy


@pytest.fixture
def bucket(weed):
    return weed.bucket()


def stored(weed, bucket, key="key"):
    client = weed.client()
    try:
        return client.get_object(Bucket=bucket, Key=key)["Body"].read()
    except client.exceptions.NoSuchKey:
        return None


def test_signed_requests_pass_and_their_bytes_are_counted(weed, proxy, bucket):
    client = weed.client(endpoint=proxy.url)
    client.put_object(Bucket=bucket, Key="key", Body=DATA)
    assert len(DATA) < proxy.up < len(DATA) + 4096
    assert proxy.down < 4096
    up, down = proxy.up, proxy.down
    assert client.get_object(Bucket=bucket, Key="key")["Body"].read() == DATA
    assert len(DATA) < proxy.down - down < len(DATA) + 4096
    assert proxy.up - up < 4096
    down = proxy.down
    assert client.head_object(Bucket=bucket, Key="key")["ContentLength"] == len(DATA)
    part = client.get_object(Bucket=bucket, Key="key", Range="bytes=1000-1999")
    assert part["Body"].read() == DATA[1000:2000]
    assert 1000 < proxy.down - down < 8192
    client.put_object(Bucket=bucket, Key="empty", Body=b"")
    assert [key["Size"] for key in client.list_objects_v2(Bucket=bucket)["Contents"]] == [
        0,
        3_000_000,
    ]
    assert proxy.methods == {"PUT": 2, "GET": 3, "HEAD": 1}
    assert proxy.requests[:2] == [("PUT", f"/{bucket}/key"), ("GET", f"/{bucket}/key")]
    assert stored(weed, bucket) == DATA


def test_a_body_in_chunks_passes_both_ways(weed, proxy, bucket):
    link = weed.client(endpoint=proxy.url).generate_presigned_url
    where = {"Bucket": bucket, "Key": "key"}
    chunks = (DATA[at : at + 70_000] for at in range(0, len(DATA), 70_000))
    put = urllib.request.Request(link("put_object", where), data=chunks, method="PUT")
    put.add_header("Transfer-Encoding", "chunked")
    put.add_header("Content-Type", "")
    with urllib.request.urlopen(put, timeout=60) as answer:
        assert answer.status == 200
    assert stored(weed, bucket) == DATA
    with Proxy(s3.rclone().endpoint) as other:
        client, bucket = s3.rclone().client(endpoint=other.url), s3.rclone().bucket()
        for number in range(30):  # enough for an answer in chunks
            client.put_object(Bucket=bucket, Key=f"{number:0100}", Body=b"")
        for _ in range(2):
            answer = client.list_objects_v2(Bucket=bucket)
            assert answer["KeyCount"] == 30
            headers = answer["ResponseMetadata"]["HTTPHeaders"]
            assert headers["transfer-encoding"] == "chunked"


def test_the_server_holds_a_signature_against_the_host_it_was_sent(weed, proxy, bucket):
    weed.client().put_object(Bucket=bucket, Key="key", Body=b"data")
    where = {"Bucket": bucket, "Key": "key"}
    signed = weed.client(signature_version="s3v4").generate_presigned_url("get_object", where)
    elsewhere = signed.replace(weed.endpoint, proxy.url)
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(elsewhere, timeout=60)
    assert caught.value.code == 403
    host = {"Host": weed.endpoint.removeprefix("http://")}
    with urllib.request.urlopen(urllib.request.Request(elsewhere, headers=host), timeout=60) as got:
        assert got.read() == b"data"


@pytest.mark.parametrize("how", ["drop", "hang"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_lost_answer_leaves_a_write_and_a_lost_request_none(weed, proxy, bucket, how, when):
    client = weed.client(endpoint=proxy.url, read_timeout=1)
    fault = proxy.fault(method="PUT", times=1, **{how: when})
    lost = errors.ConnectionClosedError if how == "drop" else errors.ReadTimeoutError
    with pytest.raises(lost):
        client.put_object(Bucket=bucket, Key="key", Body=b"mine", IfNoneMatch="*")
    assert fault.times == 0
    if how == "hang" and when == "after":
        eventually(lambda: stored(weed, bucket))
    assert stored(weed, bucket) == (b"mine" if when == "after" else None)
    # Asked again, a client is told that somebody else was there first: it was itself.
    if when == "after":
        with pytest.raises(errors.ClientError, match="PreconditionFailed"):
            client.put_object(Bucket=bucket, Key="key", Body=b"again", IfNoneMatch="*")
    else:
        client.put_object(Bucket=bucket, Key="key", Body=b"again", IfNoneMatch="*")


def test_an_answer_of_its_own_never_reaches_the_server(weed, proxy, bucket):
    body = s3.refusal("SlowDown", "Please reduce your request rate.")
    proxy.fault(status=503, body=body, headers={"Retry-After": "7"})
    client = weed.client(endpoint=proxy.url)
    for call in (
        lambda: client.put_object(Bucket=bucket, Key="key", Body=DATA),
        lambda: client.list_objects_v2(Bucket=bucket),
        lambda: client.head_object(Bucket=bucket, Key="key"),
    ):
        with pytest.raises(errors.ClientError) as caught:
            call()
        answer = caught.value.response
        assert answer["ResponseMetadata"]["HTTPStatusCode"] == 503
        assert answer["ResponseMetadata"]["HTTPHeaders"]["retry-after"] == "7"
        assert answer["Error"]["Code"] in {"SlowDown", "503"}
    assert (proxy.up, proxy.down) == (0, 0)
    assert stored(weed, bucket) is None
    proxy.faults.clear()
    client.put_object(Bucket=bucket, Key="key", Body=b"data")


def test_a_fault_is_limited_by_path_method_and_count(weed, proxy, bucket):
    client = weed.client(endpoint=proxy.url)
    fault = proxy.fault(r"/one$", method="PUT", times=3, status=500)
    client.put_object(Bucket=bucket, Key="two", Body=b"")
    with pytest.raises(errors.ClientError, match="404"):
        client.head_object(Bucket=bucket, Key="one")
    for _ in range(3):
        with pytest.raises(errors.ClientError, match="500"):
            client.put_object(Bucket=bucket, Key="one", Body=b"")
    client.put_object(Bucket=bucket, Key="one", Body=b"")
    assert fault.times == 0


def test_of_many_at_once_a_fault_hits_as_many_as_it_says(weed, proxy, bucket):
    client = weed.client(endpoint=proxy.url)
    proxy.fault(times=5, drop="before")

    def put(number):
        try:
            client.put_object(Bucket=bucket, Key=f"{number}", Body=b"data")
        except errors.ConnectionClosedError:
            return 1
        return 0

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(put, range(40))) == 5
    assert weed.client().list_objects_v2(Bucket=bucket)["KeyCount"] == 35
    assert proxy.methods == {"PUT": 40}


def test_a_delay_outlasts_a_timeout_and_the_request_still_comes(weed, proxy, bucket):
    client = weed.client(endpoint=proxy.url, read_timeout=1)
    client.put_object(Bucket=bucket, Key="key", Body=b"before")
    proxy.fault(delay=2, times=1)
    with pytest.raises(errors.ReadTimeoutError):
        client.delete_object(Bucket=bucket, Key="key")
    eventually(lambda: stored(weed, bucket) is None)


def test_refused_is_refused_until_it_is_not(weed, proxy, bucket):
    client = weed.client(endpoint=proxy.url)
    client.put_object(Bucket=bucket, Key="key", Body=b"data")  # leaves its connection open
    for _ in range(3):
        proxy.refuse()
        for _ in range(2):
            with pytest.raises((errors.EndpointConnectionError, errors.ConnectionClosedError)):
                client.get_object(Bucket=bucket, Key="key")
        with pytest.raises(errors.EndpointConnectionError):
            weed.client(endpoint=proxy.url).get_object(Bucket=bucket, Key="key")
        proxy.accept()
        assert client.get_object(Bucket=bucket, Key="key")["Body"].read() == b"data"
    proxy.close()
    with pytest.raises(errors.EndpointConnectionError):
        client.get_object(Bucket=bucket, Key="key")


def test_a_body_is_cut_or_spoilt(weed, proxy, bucket):
    weed.client().put_object(Bucket=bucket, Key="key", Body=DATA)
    client = weed.client(endpoint=proxy.url)
    proxy.fault(truncate=1_000_000, times=1)
    body = client.get_object(Bucket=bucket, Key="key")["Body"]
    assert body.read(1_000_000) == DATA[:1_000_000]
    with pytest.raises((errors.ResponseStreamingError, errors.IncompleteReadError)):
        body.read()
    proxy.fault(corrupt=True, times=2)
    with pytest.raises(errors.FlexibleChecksumError):
        client.get_object(Bucket=bucket, Key="key")["Body"].read()
    spoilt = client.get_object(Bucket=bucket, Key="key", Range="bytes=0-9")["Body"].read()
    assert [at for at in range(10) if spoilt[at] != DATA[at]] == [5]
    assert client.get_object(Bucket=bucket, Key="key")["Body"].read() == DATA


def test_a_server_that_is_gone_closes_the_connection():
    with s3.Rclone() as server, Proxy(server.endpoint) as proxy:
        server.kill()
        with pytest.raises(errors.ConnectionClosedError):
            server.client(endpoint=proxy.url).list_buckets()
        server.restart()
        assert server.client(endpoint=proxy.url).list_buckets()["Buckets"]


def test_close_ends_what_hangs(weed, proxy, bucket):
    proxy.fault(hang="before")
    client, ended = weed.client(endpoint=proxy.url), threading.Event()

    def ask():
        with pytest.raises(errors.ConnectionClosedError):
            client.list_objects_v2(Bucket=bucket)
        ended.set()

    threading.Thread(target=ask, daemon=True).start()
    eventually(lambda: proxy.methods["GET"])
    proxy.close()
    assert ended.wait(20)


def test_one_connection_carries_many_requests_to_any_server(tmp_path):
    repo = tmp_path / "org" / "tiny"
    repo.mkdir(parents=True)
    (repo / "config.json").write_bytes(b"{}")
    with Hub(tmp_path) as hub, Proxy(hub.url) as proxy:
        connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=10)
        connection.connect()
        opened = connection.sock
        for method in ("GET", "HEAD", "GET"):
            connection.request(method, "/org/tiny/resolve/main/config.json")
            assert connection.getresponse().read() == (b"" if method == "HEAD" else b"{}")
            assert connection.sock is opened
        connection.close()
        assert [method for method, _ in hub.requests] == ["GET", "HEAD", "GET"]
