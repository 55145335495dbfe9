"""Strings that name a model, a lock or a bucket become values here, before any I/O."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Final, Literal

from warmer.errors import UsageError
from warmer.model import ModelRef

DEFAULT_LEASE: Final = 30.0
"""Seconds after which an owner that shows no life is taken to be gone."""

SHORTEST_LEASE: Final = 3.0
LONGEST_LEASE: Final = 600.0

_NAMESPACE: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)
_LEASE_PREFIX: Final = re.compile(
    r"(?=.{1,100}\Z)[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*", re.ASCII
)
_BUCKET: Final = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", re.ASCII)
_OBJECT_PREFIX: Final = re.compile(r"[\w.!*'()-]+(/[\w.!*'()-]+){0,31}", re.ASCII)
_PLAIN_QUERY: Final = re.compile(r"\w*(=[\w.-]{0,6}([&?]\w*=[\w.-]{0,6})*)?", re.ASCII)
"""What is too short for a password."""

_FORMS: Final = {"hf": "hf://org/name", "s3": "s3://bucket/prefix", "file": "file:///dir"}
_PAGE: Final = re.compile(
    r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/(\w[\w.-]*/\w[\w.-]*)", re.ASCII
)
"""The hub's page of a model, as a browser shows it."""
_REPO: Final = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class LockUrl:
    """Which lock, and where it is kept.

    Attributes:
        mechanism: ``file``, ``k8s`` or ``s3``.
        place: the namespace or the bucket; empty for ``file``, which is on the volume.
        prefix: what the names in that place start with; one per volume.
        lease: seconds after which an owner that shows no life is taken to be gone.
    """

    mechanism: Literal["file", "k8s", "s3"] = "file"
    place: str = ""
    prefix: str = ""
    lease: float = DEFAULT_LEASE


ON_THE_VOLUME: Final = LockUrl()
"""The lock where none is asked for."""


@dataclass(frozen=True, slots=True)
class RemoteUrl:
    """Where kernels are pulled from and pushed to.

    Attributes:
        bucket: its name.
        prefix: what the names of objects in it start with.
    """

    bucket: str
    prefix: str

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}"


def parse_model(uri: str) -> ModelRef:
    """Read a model URI: ``hf://org/name[@revision]``, ``s3://bucket/prefix``, ``file:///dir``.

    Bare ``org/name`` is of the hub. A listing of S3 can be pinned by its digest, as
    ``s3://bucket/prefix@<64 hex digits>``, which a plan shows.

    Raises:
        UsageError: anything else.
    """
    scheme, sep, rest = uri.partition("://")
    if not sep:
        if uri.startswith(("s3:", "hf:", "file:")):
            raise _bad_model(uri, f"{_FORMS[uri.partition(':')[0]]}, with two slashes")
        scheme, rest = "hf", uri
    if scheme == "file":
        if not rest.startswith("/") or "\0" in rest:
            raise _bad_model(uri, "file:// needs an absolute directory: file:///models/llama")
        return ModelRef("file", os.path.normpath(rest), "")
    if scheme == "s3":
        return _s3_model(uri, rest)
    if scheme != "hf":
        known = "hf://org/name[@revision], s3://bucket/prefix and file:///dir are known"
        page = _PAGE.match(uri)
        raise _bad_model(uri, f"write {page[1]} for a model of the hub" if page else known)
    name, at, revision = rest.partition("@")
    if not _REPO.fullmatch(name) or ".." in name or (at and not revision):
        directory = not sep and name.startswith(("/", "./", "../", "~"))
        form = "file:///dir for a directory" if directory else "hf://org/name@revision"
        raise _bad_model(uri, f"write hf://org/name or {form}")
    if revision and (
        revision.split() != [revision]
        or any(part in ("", ".", "..") for part in revision.split("/"))
    ):
        raise _bad_model(uri, "a revision is a commit, a branch or a tag")
    return ModelRef("hf", name, revision or "main")


def _s3_model(uri: str, rest: str) -> ModelRef:
    base, at, revision = rest.rpartition("@")
    if not at or not ModelRef("s3", base, revision).pinned:
        base, revision = rest, ""
    bucket, _, prefix = base.partition("/")
    prefix = prefix.strip("/")
    parts = prefix.split("/")
    if not _BUCKET.fullmatch(bucket) or not prefix or {"", ".", ".."} & set(parts):
        raise _bad_model(uri, "s3://bucket/prefix: the prefix is the model's directory")
    return ModelRef("s3", f"{bucket}/{prefix}", revision.lower())


def parse_lock(url: str) -> LockUrl:
    """Read a lock URL: ``file``, ``k8s://namespace/prefix``, ``s3://bucket/prefix``.

    Each may end in ``?lease=SECONDS``.

    Raises:
        UsageError: anything else.
    """
    base, _, query = url.partition("?")
    lease = _lease(url, query) if "?" in url else DEFAULT_LEASE
    if base == "file":
        return LockUrl(lease=lease)
    scheme, _, rest = base.partition("://")
    place, slash, prefix = rest.partition("/")
    if scheme == "k8s":
        if not _NAMESPACE.fullmatch(place) or not _LEASE_PREFIX.fullmatch(prefix):
            raise _bad_lock(url, "k8s://namespace/prefix, both in lower case: k8s://ml/models")
        return LockUrl("k8s", place, prefix, lease)
    if scheme == "s3":
        prefix = prefix.rstrip("/")
        named = _OBJECT_PREFIX.fullmatch(prefix) and not {".", ".."} & set(prefix.split("/"))
        if not _BUCKET.fullmatch(place) or not slash or not named:
            raise _bad_lock(url, "s3://bucket/prefix, one prefix per volume: s3://locks/models")
        return LockUrl("s3", place, prefix, lease)
    raise _bad_lock(url, "file, k8s://namespace/prefix or s3://bucket/prefix")


def parse_remote(url: str) -> RemoteUrl:
    """Read where kernels are kept for all: ``s3://bucket/prefix``.

    Raises:
        UsageError: anything else.
    """
    scheme, _, rest = url.partition("://")
    bucket, _, prefix = rest.partition("/")
    prefix = prefix.rstrip("/")
    named = _OBJECT_PREFIX.fullmatch(prefix) and not {".", ".."} & set(prefix.split("/"))
    if scheme != "s3" or not _BUCKET.fullmatch(bucket) or not named:
        raise UsageError(
            f"got --remote {_without_passwords(url)!r}, expected s3://bucket/prefix",
            reason="bad-remote",
            hint="as s3://kernels/team; credentials come from where every AWS tool finds them",
        )
    return RemoteUrl(bucket, prefix)


def _lease(url: str, query: str) -> float:
    name, _, value = query.partition("=")
    try:
        seconds = float(value)
    except ValueError:
        seconds = -1.0
    if name != "lease" or not SHORTEST_LEASE <= seconds <= LONGEST_LEASE:
        raise _bad_lock(url, f"?lease=SECONDS, from {SHORTEST_LEASE:.0f} to {LONGEST_LEASE:.0f}")
    return seconds


def _bad_lock(url: str, hint: str) -> UsageError:
    shown = _without_passwords(url)
    return UsageError(f"got --lock {shown!r}, expected a lock URL", reason="bad-lock", hint=hint)


def _without_passwords(url: str) -> str:
    """Leave out what stands where people put passwords: around colons, before @, in a query."""
    base, mark, query = url.partition("?")
    scheme, sep, rest = base.partition("://")
    if "@" in base or ":" in rest or scheme.count(":") > 1:
        base = f"{scheme}{sep}..." if scheme.isalnum() else "..."
    return base + mark + (query if _PLAIN_QUERY.fullmatch(query) else "...")


def _bad_model(uri: str, hint: str) -> UsageError:
    return UsageError(f"got the model {uri!r}, expected a model URI", reason="bad-model", hint=hint)
