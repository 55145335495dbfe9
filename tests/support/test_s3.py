"""The S3 servers which tests of locks and sources rely on do what those tests take for granted."""

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import botocore.exceptions
import pytest

sys.path.insert(0, os.path.dirname(__file__))
import s3
from runs import eventually

THREADS, ROUNDS = 8, 20
STALE = '"00000000000000000000000000000000"'


@pytest.fixture(scope="module")
def weed():
    return s3.seaweed()


def asked(call, **what):
    """The status and the error code, "" for none, of a call."""
    try:
        return call(**what)["ResponseMetadata"]["HTTPStatusCode"], ""
    except botocore.exceptions.ClientError as e:
        return e.response["ResponseMetadata"]["HTTPStatusCode"], e.response["Error"]["Code"]


def put(client, bucket, key, data):
    return client.put_object(Bucket=bucket, Key=key, Body=data)


def content(client, bucket, key):
    try:
        return client.get_object(Bucket=bucket, Key=key)["Body"].read()
    except client.exceptions.NoSuchKey:
        return None


PRECONDITIONS = [
    # what is asked, whether an object is there, the status where preconditions count.
    ("none-match", False, 200),
    ("none-match", True, 412),
    ("match", True, 200),
    ("match-stale", True, 412),
    ("match-stale", False, 412),  # AWS: 404
]


def put_if(server, condition, present):
    """Put an object under a precondition; return the status and what is there then."""
    client, bucket = server.client(), server.bucket()
    etag = STALE
    if present:
        etag = put(client, bucket, "key", b"before")["ETag"]
    if condition == "match-stale" and present:
        put(client, bucket, "key", b"since")
    header = {"IfNoneMatch": "*"} if condition == "none-match" else {"IfMatch": etag}
    status, _ = asked(client.put_object, Bucket=bucket, Key="key", Body=b"mine", **header)
    return status, content(client, bucket, "key")


@pytest.mark.parametrize(("condition", "present", "status"), PRECONDITIONS)
def test_seaweedfs_keeps_preconditions(weed, condition, present, status):
    kept = {"none-match": b"before", "match-stale": b"since"}.get(condition) if present else None
    assert put_if(weed, condition, present) == (status, b"mine" if status == 200 else kept)


@pytest.mark.parametrize(("condition", "present", "status"), PRECONDITIONS)
def test_rclone_keeps_none(condition, present, status):
    assert put_if(s3.rclone(), condition, present) == (200, b"mine")


@pytest.mark.parametrize("condition", ["none-match", "match"])
def test_of_racing_writers_one_wins_every_round(weed, condition):
    # All rounds at once, or it takes a minute: who loses a race may wait for seconds.
    client, bucket = weed.client(max_pool_connections=THREADS * ROUNDS), weed.bucket()
    starts = [threading.Barrier(THREADS) for _ in range(ROUNDS)]
    headers = [{"IfNoneMatch": "*"}] * ROUNDS
    if condition == "match":
        puts = [put(client, bucket, f"{number}", b"before") for number in range(ROUNDS)]
        headers = [{"IfMatch": answer["ETag"]} for answer in puts]

    def write(number, writer):
        what = {"Bucket": bucket, "Key": f"{number}", "Body": b"%d" % writer}
        starts[number].wait(60)
        return asked(client.put_object, **what, **headers[number])[0]

    with ThreadPoolExecutor(THREADS * ROUNDS) as pool:
        pairs = [(number, writer) for number in range(ROUNDS) for writer in range(THREADS)]
        statuses = list(pool.map(write, *zip(*pairs, strict=True)))
    for number in range(ROUNDS):
        mine = statuses[number * THREADS : (number + 1) * THREADS]
        assert sorted(mine) == [200] + [412] * (THREADS - 1)
        assert content(client, bucket, f"{number}") == b"%d" % mine.index(200)


def test_the_reader_may_not_write(weed):
    bucket, owner, reader = weed.bucket(), weed.client(), weed.client(weed.reader)
    put(owner, bucket, "key", b"data")
    assert content(reader, bucket, "key") == b"data"
    assert reader.list_objects_v2(Bucket=bucket)["KeyCount"] == 1
    denied = (403, "AccessDenied")
    assert asked(reader.put_object, Bucket=bucket, Key="key", Body=b"") == denied
    assert asked(reader.put_object, Bucket=bucket, Key="new", Body=b"") == denied
    assert asked(reader.delete_object, Bucket=bucket, Key="key") == denied
    assert content(owner, bucket, "key") == b"data"


@pytest.mark.parametrize(
    ("keys", "code"),
    [
        (s3.Keys("testkey", "another secret"), "SignatureDoesNotMatch"),
        (s3.Keys("nobody", "testsecret"), "InvalidAccessKeyId"),
    ],
)
def test_wrong_keys_are_refused(weed, keys, code):
    client = weed.client(keys)
    assert asked(client.put_object, Bucket="ready", Key="x", Body=b"") == (403, code)


def test_temporary_credentials_work_and_expired_ones_get_what_aws_says(weed):
    live = weed.session()
    what = {"Bucket": weed.bucket(), "Key": "key"}
    with s3.ExpiredCredentials(weed) as expired:
        old, new = expired.client(), expired.client(live)
        assert asked(new.put_object, **what, Body=b"data") == (200, "")
        assert asked(old.put_object, **what, Body=b"more") == (400, "ExpiredToken")
        assert asked(old.list_objects_v2, Bucket=what["Bucket"]) == (400, "ExpiredToken")
        assert asked(old.head_object, **what) == (400, "400")  # an answer to HEAD has no body
        with pytest.raises(botocore.exceptions.ClientError) as caught:
            old.get_object(**what)
        assert caught.value.response["Error"]["Token-0"] == expired.keys.token
        assert expired.keys.token not in str(caught.value)
        direct = weed.client(expired.keys)
        assert asked(direct.get_object, **what) == (403, "InvalidAccessKeyId")
        assert content(new, bucket=what["Bucket"], key="key") == b"data"


@pytest.mark.parametrize("kind", ["owner", "reader", "session"])
def test_its_environment_is_all_a_process_needs(weed, kind):
    bucket = weed.bucket()
    keys = {"owner": None, "reader": weed.reader, "session": weed.session()}[kind]
    script = "import boto3, sys; boto3.client('s3').put_object(Bucket=sys.argv[1], Key='k')"
    argv = [sys.executable, "-c", script, bucket]
    ended = subprocess.run(argv, env=weed.environment(keys), stderr=subprocess.PIPE, text=True)
    assert (ended.returncode == 0) == (kind != "reader"), ended.stderr
    assert ("AccessDenied" in ended.stderr) == (kind == "reader")


def test_a_stopped_server_times_out_and_goes_on(weed):
    bucket, client = weed.bucket(), weed.client(read_timeout=1)
    put(client, bucket, "key", b"before")
    weed.stop()
    try:
        with pytest.raises(botocore.exceptions.ReadTimeoutError):
            put(client, bucket, "key", b"after")
    finally:
        weed.cont()
    # Whether that write counts is open, and stays open: it may be done at any time from now on.
    assert content(weed.client(), bucket, "key") in {b"before", b"after"}


@pytest.mark.parametrize("make", [s3.Seaweed, s3.Rclone])
def test_a_killed_server_comes_back_with_what_it_stored(make):
    with make() as server:
        endpoint, bucket, client = server.endpoint, server.bucket(), server.client()
        put(client, bucket, "key", b"data")
        server.kill()
        with pytest.raises(botocore.exceptions.EndpointConnectionError):
            client.get_object(Bucket=bucket, Key="key")
        server.restart()
        assert server.endpoint == endpoint
        assert content(client, bucket, "key") == b"data"
        put(client, bucket, "key", b"more")
    assert not os.path.exists(server.top)
    assert not list(Path("/tmp").glob(f"seaweedfs-*-{server.ports[-1]}.sock"))


def test_a_server_listens_on_loopback_only(weed):
    inodes = set()
    for link in Path(f"/proc/{weed.pid}/fd").iterdir():
        if (target := os.readlink(link)).startswith("socket:["):
            inodes.add(target[8:-1])
    bound = []
    for table in ("tcp", "tcp6"):
        lines = Path(f"/proc/{weed.pid}/net/{table}").read_text().splitlines()[1:]
        rows = [line.split() for line in lines]
        bound += [row[1] for row in rows if row[3] == "0A" and row[9] in inodes]
    assert {int(address.split(":")[1], 16) for address in bound} == set(weed.ports)
    assert {address.split(":")[0] for address in bound} == {"0100007F"}


def test_a_server_dies_with_a_killed_run(tmp_path):
    script = (
        "import sys, time; sys.path.insert(0, sys.argv[1]); import s3; server = s3.Rclone();"
        "print(server.pid, server.top, flush=True); time.sleep(60)"
    )
    argv = [sys.executable, "-c", script, os.path.dirname(__file__)]
    env = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=env) as run:
        pid, top = run.stdout.readline().split()
        assert os.path.exists(f"/proc/{pid}")
        run.send_signal(signal.SIGKILL)
        run.wait(10)
        eventually(lambda: not os.path.exists(f"/proc/{pid}"))
    assert top.startswith(str(tmp_path))


def test_the_shared_server_is_one_and_outlives_a_fork_that_closes_it(weed):
    assert s3.seaweed() is weed
    if (pid := os.fork()) == 0:
        try:
            s3.seaweed().close()
        finally:
            os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert content(weed.client(), "ready", "ready") == b"ready"
