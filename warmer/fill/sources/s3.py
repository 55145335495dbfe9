"""``s3://bucket/prefix``: a model in S3, or in what speaks its language.

Its revision is the digest of its listing: paths, sizes and ETags. Every range is asked for with
the listing's ETag as a condition, so that an object replaced midway is noticed and not mixed.
Credentials, region and endpoint come from where every AWS tool finds them.

What vouches for the bytes, as far as it is there: ``SHA256SUMS`` beside the files; the checksum
that S3 keeps of a whole object (CRC64NVME, CRC32, CRC32C, SHA-1, SHA-256); the ETag, where it is
an MD5. The ETag of a multi-part upload is none, nor is one with a KMS or customer key or of a
directory bucket; nor do checksums of parts count.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import functools
import hashlib
import re
from typing import TYPE_CHECKING, Any, Final

import boto3
import botocore.exceptions as failures
import botocore.loaders
import botocore.session
import urllib3
from botocore.compat import HTTPHeaders
from botocore.config import Config

from warmer import __version__
from warmer.errors import SourceError
from warmer.fill.deadline import OverdueError
from warmer.fill.sources import SourceFile, credentials, s3_errors, trickle
from warmer.fill.sources.s3_bytes import S3Bytes
from warmer.model import canonical

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from warmer.model import ModelRef

_CONFIG: Final = Config(
    connect_timeout=10,
    read_timeout=30,
    max_pool_connections=32,
    retries={"total_max_attempts": 1},  # `retry` wraps it
    response_checksum_validation="when_required",  # we hash what passes
    user_agent_extra=f"warmer/{__version__}",
)
_SUMS: Final = "SHA256SUMS"
_SUM: Final = re.compile(r"([0-9a-fA-F]{64}) [ *](.+)")
_SUMS_SIZE: Final = 16 << 20
_MD5: Final = re.compile(r'"?([0-9a-f]{32})"?')
_RANDOM_ETAGS: Final = ("--x-s3", "--xa-s3")
"""How names of directory buckets and their access points end (S3 Express One Zone)."""
_BROKEN: Final = (
    failures.BotoCoreError,
    urllib3.exceptions.HTTPError,
    OSError,
    ValueError,
)
"""How a connection fails; a ValueError is a read from one that is closed already."""
_CHECKSUMS: Final = ("sha256", "sha1", "crc64nvme", "crc32c", "crc32")


@functools.cache
def _models(path: str | None) -> botocore.loaders.Loader:
    """What botocore reads of S3's interface: parsed once, for forked workers too."""
    return botocore.loaders.create_loader(path)


class S3:
    """A model under one prefix of a bucket.

    Args:
        model: with ``bucket/prefix`` as its name.

    Raises:
        SourceError: the endpoint is no URL, or the credentials are half of a pair or too slow.
    """

    def __init__(self, model: ModelRef) -> None:
        self._model = model
        self._bucket, _, prefix = model.name.partition("/")
        self._prefix = f"{prefix}/"
        self._listed: dict[str, tuple[SourceFile, ...]] = {}
        try:
            session = botocore.session.get_session()
            models = _models(session.get_config_variable("data_path"))
            session.register_component("data_loader", models)
            credentials.bound(session)
            self._client = boto3.session.Session(botocore_session=session).client(
                "s3", config=_CONFIG
            )
            trickle.fit(self._client)
            self._bytes = S3Bytes(session, self._client, self._bucket)
        except (*s3_errors.NO_CREDENTIALS, OverdueError) as exc:
            raise s3_errors.translate(exc, f"s3://{model.name}") from exc
        except (failures.BotoCoreError, ValueError) as exc:
            raise SourceError(
                f"got no S3 client for s3://{self._bucket} ({type(exc).__name__}), expected a region "
                "and the URL of an endpoint",
                reason="no-s3",
                hint="set AWS_REGION, and AWS_ENDPOINT_URL for a service that is not AWS",
            ) from exc

    def resolve(self) -> ModelRef:
        """Digest the listing."""
        files = self._list()
        listing = [(file.path, file.size, file.version) for file in files]
        digest = hashlib.sha256(canonical(listing).encode()).hexdigest()
        self._listed[digest] = files
        return dataclasses.replace(self._model, revision=digest)

    def files(self, model: ModelRef) -> tuple[SourceFile, ...]:
        """List the objects under the prefix, with what ``SHA256SUMS`` says of them."""
        if model.revision not in self._listed and self.resolve().revision != model.revision:
            raise SourceError(
                f"got other objects under s3://{self._model.name} than {model.revision[:12]} was, "
                "expected the same",
                reason="source-changed",
                hint="leave the @revision out, or put the objects back",
            )
        files = self._listed[model.revision]
        if any(file.path == _SUMS for file in files):
            sums = self._sums(next(file for file in files if file.path == _SUMS))
            files = tuple(
                dataclasses.replace(file, digests={"sha256": sums[file.path]})
                if file.path in sums
                else file
                for file in files
                if file.path != _SUMS
            )
            self._listed[model.revision] = files
        return files

    def describe(self, _model: ModelRef, file: SourceFile) -> SourceFile:
        """Ask for the checksums of one object."""
        if "sha256" in file.digests:
            return file
        headers, _ = self._ask(self._head, file, ChecksumMode="ENABLED")
        digests = whole_digests(headers, self._bucket)
        return dataclasses.replace(file, digests=dict(file.digests) | digests)

    def open(self, _model: ModelRef, file: SourceFile, start: int, end: int) -> S3Reader:
        """Open a range of an object."""
        whole = (start, end) == (0, file.size)
        # Asked for a checksum, botocore computes it too: of a part that is work for nothing.
        span = {"ChecksumMode": "ENABLED"} if whole else {"Range": f"bytes={start}-{end - 1}"}
        headers, body = self._ask(self._bytes.get, file, **span)
        wanted = f"bytes {start}-{end - 1}/{file.size}"
        length = headers.get("Content-Length", "unknown")
        said = headers.get("Content-Range") or (wanted if whole else "the whole object")
        if said != wanted or length != str(end - start):
            body.close()
            raise SourceError(
                f"got {said} of {self._where(file)} in {length} bytes, expected {wanted}",
                reason="size-mismatch",
                hint="the service, or a proxy before it, does not obey Range",
            )
        digests = whole_digests(headers, self._bucket) if whole else {}
        return S3Reader(body, self._where(file), digests)

    def _ask(
        self, call: Callable[..., tuple[Mapping[str, str], Any]], file: SourceFile, **more: str
    ) -> tuple[HTTPHeaders, Any]:
        """Ask about the object that was listed; return the answer's headers and its body."""
        try:
            headers, body = call(self._prefix + file.path, IfMatch=file.version, **more)
        except Exception as exc:
            raise s3_errors.translate(exc, self._where(file)) from exc
        return HTTPHeaders.from_dict(headers), body

    def _head(self, key: str, **call: str) -> tuple[Mapping[str, str], None]:
        found = self._client.head_object(Bucket=self._bucket, Key=key, **call)
        return found["ResponseMetadata"]["HTTPHeaders"], None

    def _list(self) -> tuple[SourceFile, ...]:
        found: list[SourceFile] = []
        try:
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=self._prefix
            )
            for page in pages:
                for entry in page.get("Contents", ()):
                    path = entry["Key"].removeprefix(self._prefix)
                    if path and not (path.endswith("/") and not entry["Size"]):
                        found.append(SourceFile(path, entry["Size"], version=entry["ETag"]))
        except Exception as exc:
            raise s3_errors.translate(exc, f"s3://{self._model.name}") from exc
        if not found:
            raise SourceError(
                f"got no object under s3://{self._model.name}/, expected a model",
                reason="not-found",
                hint="check the bucket and the prefix",
            )
        return tuple(sorted(found, key=lambda file: file.path))

    def _sums(self, file: SourceFile) -> Mapping[str, str]:
        if file.size > _SUMS_SIZE:
            return {}
        data = bytearray(file.size)
        reader = self.open(self._model, file, 0, file.size)
        try:
            left = memoryview(data)
            while left and (count := reader.readinto(left)):
                left = left[count:]
        finally:
            reader.close()
        lines = data.decode("utf-8", "replace").splitlines()
        sums = [found for line in lines if (found := _SUM.fullmatch(line.rstrip()))]
        return {found[2].removeprefix("./"): found[1].lower() for found in sums}

    def _where(self, file: SourceFile) -> str:
        return f"s3://{self._bucket}/{self._prefix}{file.path}"


class S3Reader:
    """The body of one answer.

    Args:
        body: botocore's.
        where: names the object in errors.
        digests: what the answer says of the whole object.
    """

    def __init__(self, body: Any, where: str, digests: Mapping[str, str]) -> None:
        self.digests = digests
        self._body = body
        self._where = where

    def readinto(self, buffer: memoryview) -> int:
        """Put the next bytes into the buffer.

        Raises:
            TransientSourceError: the connection broke.
        """
        try:
            count: int = self._body.readinto(buffer)
        except _BROKEN as exc:
            raise s3_errors.unanswered(exc, self._where) from exc
        return count

    def close(self) -> None:
        """Let go of the connection."""
        self._body.close()


def whole_digests(headers: Mapping[str, str], bucket: str) -> dict[str, str]:
    """Read what an answer says of the whole object: names of `digests` → hex digits."""
    digests: dict[str, str] = {}
    if headers.get("x-amz-checksum-type", "FULL_OBJECT") == "FULL_OBJECT":
        for name in _CHECKSUMS:
            digests[name] = _hex(headers.get(f"x-amz-checksum-{name}") or "")
    plain = headers.get("x-amz-server-side-encryption", "AES256") == "AES256"
    plain = plain and "x-amz-server-side-encryption-customer-algorithm" not in headers
    plain = plain and not bucket.endswith(_RANDOM_ETAGS)
    if plain and (etag := _MD5.fullmatch(headers.get("ETag") or "")):
        digests["md5"] = etag[1]
    return {name: digits for name, digits in digests.items() if digits}


def _hex(text: str) -> str:
    try:
        return base64.b64decode(text, validate=True).hex()
    except (binascii.Error, ValueError):
        return ""
