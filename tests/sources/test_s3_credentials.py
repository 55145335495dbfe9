"""Services that give AWS credentials a byte at a time and for ever: waited for a window, then told."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import pytest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import runs
import s3
from buckets import Bucket, refused

from warmer.fill import deadline
from warmer.fill.remote.service import Service
from warmer.fill.sources import TransientSourceError, trickle
from warmer.fill.sources.retry import Retrying, Trying
from warmer.fill.sources.s3 import S3
from warmer.urls import RemoteUrl, parse_model

WINDOW = 1.0
"""Seconds; a minute in life."""
SLOW = 0.2
"""Seconds between two bytes: none of botocore's own timeouts ends it."""


class Giver:
    """Gives credentials to all who ask it; none but a byte now and then once `trickles` is set."""

    def __init__(self):
        self.asked = 0
        self.trickles = True
        self.answer = b""
        self._closing = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._closing.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self):
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client):
        with client, suppress(OSError):
            client.recv(1 << 16)
            self.asked += 1
            head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n"
            client.sendall(head)
            if not self.trickles:
                client.sendall(self.answer)
                return
            while not self._closing.wait(SLOW):
                client.sendall(b" ")


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(trickle, "WINDOW", WINDOW)
    monkeypatch.setattr(trickle, "SHORT_WINDOW", WINDOW)
    # What is left of other tests counts too.
    monkeypatch.setattr(deadline, "_under_way", threading.BoundedSemaphore(deadline.MOST))


@pytest.fixture
def giver():
    with Giver() as giver:
        yield giver


@pytest.fixture
def bucket():
    with Bucket(s3.seaweed()) as bucket:
        yield bucket


def without_keys(bucket):
    environment = bucket.environment()
    del environment["AWS_ACCESS_KEY_ID"], environment["AWS_SECRET_ACCESS_KEY"]
    return environment


def role(way, giver, tmp_path):
    """The variables of a pod that has its credentials so."""
    (tmp_path / "token").write_text("the-pods-token")
    return {
        "web identity": {
            "AWS_ROLE_ARN": s3.ROLE,
            "AWS_WEB_IDENTITY_TOKEN_FILE": str(tmp_path / "token"),
            "AWS_ENDPOINT_URL_STS": giver.url,
        },
        "container": {"AWS_CONTAINER_CREDENTIALS_FULL_URI": f"{giver.url}/v1/credentials"},
        "instance": {
            "AWS_EC2_METADATA_DISABLED": "false",
            "AWS_EC2_METADATA_SERVICE_ENDPOINT": giver.url,
        },
    }[way]


@pytest.mark.parametrize("way", ["web identity", "container", "instance"])
def test_credentials_that_trickle_are_waited_for_a_window(bucket, giver, use, tmp_path, way):
    use(without_keys(bucket) | role(way, giver, tmp_path))
    began = time.monotonic()
    with refused(TransientSourceError, "too-slow", f"in {WINDOW:.0f} s", "credentials", "STS"):
        S3(parse_model(bucket.model)).resolve()
    assert WINDOW <= time.monotonic() - began < 8 * WINDOW
    assert giver.asked


def test_credentials_of_a_bucket_of_kernels_are_waited_for_a_window(bucket, giver, use, tmp_path):
    use(without_keys(bucket) | role("container", giver, tmp_path))
    began = time.monotonic()
    with refused(TransientSourceError, "too-slow", bucket.name):
        Service(RemoteUrl(bucket.name, "kernels"), Trying(budget=0.0))
    assert time.monotonic() - began < 8 * WINDOW


def test_credentials_that_are_renewed_and_trickle_hold_no_connection_for_longer(
    bucket, giver, use, tmp_path
):
    """All wait for the one that asks: none asks anew for itself once that has failed."""
    bucket.put("config.json", b"{}")
    soon = datetime.now(UTC) + timedelta(seconds=60)  # botocore renews ten minutes before
    keys = s3.seaweed().session()
    given = {"AccessKeyId": keys.access_key, "SecretAccessKey": keys.secret_key}
    more = {"Token": keys.token, "Expiration": soon.isoformat()}
    giver.answer, giver.trickles = json.dumps(given | more).encode(), False
    use(without_keys(bucket) | role("container", giver, tmp_path))
    source = S3(parse_model(bucket.model))
    model = source.resolve()
    (file,) = source.files(model)
    giver.trickles = True
    errors = []

    def ask():
        try:
            source.open(model, file, 0, 2)
        except TransientSourceError as exc:
            errors.append(exc.reason)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    began = time.monotonic()
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert errors == ["too-slow"] * len(threads)
    assert time.monotonic() - began < 4 * WINDOW
    giver.trickles = False
    Retrying(source, budget=30.0).open(model, file, 0, 2).close()


SHORT = (
    "import warmer.fill.sources.trickle as p; p.WINDOW = 1.0; from warmer.cli import main; main()"
)


def test_a_prefill_whose_credentials_trickle_ends_with_4(bucket, giver, tmp_path):
    words = ["prefill", "--json", "--volume", tmp_path / "volume", "--warm-dir", tmp_path / "warm"]
    words += ["--model", bucket.model, "--retry", "1", "--compile", "never"]
    os.makedirs(tmp_path / "volume")
    os.makedirs(tmp_path / "warm")
    env = {"PATH": os.defpath, "HOME": str(tmp_path)} | without_keys(bucket)
    env |= role("container", giver, tmp_path)
    env |= {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    argv = [sys.executable, "-c", SHORT, *map(str, words)]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60)
    result = runs.Result(done.returncode, done.stdout, done.stderr, 0.0)
    assert result.code == 4, result
    assert result.json["error"]["reason"] == "too-slow"
    assert "in 1 s" in result.json["error"]["message"]
