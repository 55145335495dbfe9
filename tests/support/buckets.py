"""Models in a bucket of a real S3 server, and sources that read them."""

from __future__ import annotations

import os
import re
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

from proxy import Proxy

from warmer.fill.sources.s3 import S3
from warmer.fill.transfer import Transfer
from warmer.settings import Writing
from warmer.urls import parse_model

if TYPE_CHECKING:
    from warmer.errors import WarmerError

PREFIX = "team/model"


class Wire(Proxy):
    """A proxy that notes which ranges were asked for: (path, Range), in order."""

    def __init__(self, target):
        self.ranges: list[tuple[str, str]] = []
        super().__init__(target)

    def take(self, head):
        if head.first[0] == "GET" and "list-type" not in head.first[1]:
            self.ranges.append((head.first[1].split("?")[0], head.headers.get("range", "")))
        return super().take(head)

    @property
    def listings(self) -> int:
        return sum("list-type=2" in path for _, path in self.requests)


class Bucket:
    """One new bucket behind a `Wire`; `model` is the URI of what lies under `PREFIX`."""

    def __init__(self, server):
        self.server = server
        self.client = server.client()
        self.name = server.bucket()
        self.wire = Wire(server.endpoint)
        self.model = f"s3://{self.name}/{PREFIX}"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.wire.close()

    def put(self, path: str, data: bytes, **more) -> str:
        """Put one object into the model; return its ETag."""
        key = f"{PREFIX}/{path}"
        return self.client.put_object(Bucket=self.name, Key=key, Body=data, **more)["ETag"]

    def put_all(self, files: dict[str, bytes]) -> None:
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(self.put, files, files.values()))

    def put_in_parts(self, path: str, data: bytes, algorithm: str, part: int = 5 << 20) -> str:
        """Put an object in parts, with a checksum of the whole object; return its ETag."""
        name, where = f"Checksum{algorithm}", {"Bucket": self.name, "Key": f"{PREFIX}/{path}"}
        with_sums = {"ChecksumAlgorithm": algorithm}
        upload = self.client.create_multipart_upload(
            **where, **with_sums, ChecksumType="FULL_OBJECT"
        )
        where["UploadId"], parts = upload["UploadId"], []
        for number, at in enumerate(range(0, len(data), part), 1):
            body = {"PartNumber": number, "Body": data[at : at + part]}
            got = self.client.upload_part(**where, **with_sums, **body)
            parts.append({"PartNumber": number, "ETag": got["ETag"], name: got[name]})
        done = self.client.complete_multipart_upload(**where, MultipartUpload={"Parts": parts})
        return done["ETag"]

    def put_tree(self, top: str) -> None:
        for directory, _, names in os.walk(top):
            for name in names:
                path = os.path.join(directory, name)
                with open(path, "rb") as stream:
                    self.put(os.path.relpath(path, top), stream.read())

    def environment(self, keys=None) -> dict[str, str]:
        """Return the variables of a process that reaches the bucket through the wire."""
        return self.server.environment(keys, self.wire.url)

    def source(self, model: str = "") -> S3:
        """Make a source as this process's variables say."""
        return S3(parse_model(model or self.model))


def listed(source) -> dict:
    """Resolve and list; returns path → file."""
    return {file.path: file for file in source.files(source.resolve())}


def fetch(source, top, *, connections: int = 4) -> dict[str, bytes]:
    """Move a whole model into a directory as a fill does; returns path → bytes."""
    staging = os.path.join(top, "staging")
    os.makedirs(staging)
    model = source.resolve()
    transfer = Transfer(
        source,
        model,
        staging=staging,
        moved=lambda _path, _count: None,
        writing=Writing(),
        connections=connections,
    )
    done = transfer.run(source.files(model), {})
    found = {}
    for path, sealed in done.items():
        with open(os.path.join(staging, sealed.path), "rb") as stream:
            found[path] = stream.read()
    return found


def read(reader) -> bytes:
    """Read a range to its end."""
    found, buffer = bytearray(), memoryview(bytearray(1 << 16))
    while count := reader.readinto(buffer):
        found += buffer[:count]
    reader.close()
    return bytes(found)


class Caught:
    """The error that a block of `refused` ended with."""

    value: WarmerError


@contextmanager
def refused(kind: type[WarmerError], reason: str, *words: str, secrets=()):
    """Assert that a block fails with one line, a hint, and none of the secrets anywhere."""
    caught = Caught()
    try:
        yield caught
    except kind as exc:
        caught.value = error = exc
    else:
        raise AssertionError(f"nothing failed, expected {kind.__name__} for {reason}")
    assert type(error) is kind
    assert error.reason == reason, error
    assert error.hint
    assert re.fullmatch("got .*, expected .*", error.message)
    for word in words:
        assert word in error.message + error.hint, (word, error.message, error.hint)
    text = "".join(traceback.format_exception(error))
    for secret in secrets:
        assert secret not in text
