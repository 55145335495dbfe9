"""The seal: the record, written last, that says a generation is complete. Pure.

The wire format is one JSON object. Unknown fields are ignored; an unknown `schema_version` is
not a seal of ours (`foreign`), never an error; anything malformed is `corrupt`. The readiness
probe (`warmer.check`) reads `files` alone, so their shape is part of the volume's format.
"""

from __future__ import annotations

import json
import posixpath
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from warmer.errors import IntegrityError

if TYPE_CHECKING:
    from collections.abc import Mapping

SCHEMA_VERSION: Final = 1
LONGEST: Final = 16 << 20
"""Bytes of a seal at most: some 80,000 files. A longer one is neither written nor read."""

_MOST: Final = 1 << 63
_SHOWN: Final = 300
_HEX: Final = frozenset("0123456789abcdef")


ENGINE_RUN: Final = "engine run"
HARVEST: Final = "harvest"
HARVEST_OFFLINE: Final = "harvest offline"
"""Sources of kernels: a run of the engine, a server, a server that was kept from the hub."""
HARVESTS: Final = (HARVEST, HARVEST_OFFLINE)
"""Sources that a piece keeps when it passes through a bucket."""


@dataclass(frozen=True, slots=True, order=True)
class SealedFile:
    """One file of a generation.

    Attributes:
        path: relative to the generation, with ``/``; never leaves it.
        size: bytes.
        sha256: 64 hex digits.
    """

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Seal:
    """A complete generation.

    Attributes:
        kind: the piece's kind.
        key: the digest of its key.
        generation: its number under the key.
        nonce: names the claim that published it, so that a lost reply can be settled.
        created: UTC, ISO 8601.
        by: the warmer that wrote it.
        source: where the bytes came from; never holds credentials.
        seconds: what filling took.
        files: every file, sorted by path.
        needs: kind → lowest generation of another piece it was built beside.
        signatures: id of a key → its signature of the `statement`, in base64.
    """

    kind: str
    key: str
    generation: int
    nonce: str
    created: str
    by: str
    source: str
    seconds: float
    files: tuple[SealedFile, ...]
    needs: Mapping[str, int] = field(default_factory=dict)
    signatures: Mapping[str, str] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(f.size for f in self.files)


def statement(seal: Seal) -> bytes:
    """What a signature is of: these bytes, in these files, are this piece under this key.

    Not the number and not `needs`, which belong to one volume: a piece keeps its signatures where
    it is copied.
    """
    record = {
        "statement": "warmer piece",
        "version": SCHEMA_VERSION,
        "kind": seal.kind,
        "key": seal.key,
        "files": [[f.path, f.size, f.sha256] for f in sorted(seal.files)],
    }
    return json.dumps(record, sort_keys=True, separators=(",", ":")).encode()


class ForeignSealError(Exception):
    """The record is of a format this warmer does not know."""


def encode(seal: Seal) -> bytes:
    """Render a seal."""
    record = {
        "schema_version": SCHEMA_VERSION,
        "kind": seal.kind,
        "key": seal.key,
        "generation": seal.generation,
        "nonce": seal.nonce,
        "created": seal.created,
        "by": seal.by,
        "source": seal.source,
        "seconds": round(seal.seconds, 3),
        "needs": dict(seal.needs),
        "files": [{"path": f.path, "size": f.size, "sha256": f.sha256} for f in seal.files],
    }
    if seal.signatures:
        record["signatures"] = dict(seal.signatures)
    return json.dumps(record, indent=1).encode() + b"\n"


def parse(data: bytes, *, where: str) -> Seal:
    """Read a seal.

    Args:
        data: the file's bytes.
        where: the file's path, for messages.

    Raises:
        ForeignSealError: a `schema_version` this warmer does not know.
        IntegrityError: not a seal.
    """
    try:
        record = json.loads(data)
        version = record["schema_version"]
        shown = repr(version)[:40]
    except (ValueError, TypeError, KeyError, RecursionError) as exc:
        raise _malformed(where, "no JSON object with a schema_version") from exc
    if version != SCHEMA_VERSION:
        raise ForeignSealError(f"schema_version {shown}, expected {SCHEMA_VERSION}")
    try:
        return Seal(
            kind=_text(record["kind"]),
            key=_text(record["key"]),
            generation=_count(record["generation"]),
            nonce=_text(record["nonce"]),
            created=_text(record["created"]),
            by=_text(record["by"]),
            source=_text(record["source"]),
            seconds=_seconds(record["seconds"]),
            files=tuple(_file(f) for f in record["files"]),
            needs={_text(k): _count(v) for k, v in record["needs"].items()},
            signatures={_text(k): _text(v) for k, v in record.get("signatures", {}).items()},
        )
    except (
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        OverflowError,
        RecursionError,  # of what is shown of a value that was read just so
    ) as exc:
        raise _malformed(where, f"{type(exc).__name__}: {exc}"[:_SHOWN]) from exc


def safe_path(path: str) -> bool:
    """Whether a relative path stays inside the directory it is taken from."""
    return (
        bool(path)
        and not path.startswith("/")
        and "\0" not in path
        and not any("\ud800" <= c <= "\udfff" and not "\udc80" <= c <= "\udcff" for c in path)
        and posixpath.normpath(path) == path
        and path.split("/", 1)[0] not in ("..", ".")
    )


def _file(record: Any) -> SealedFile:
    path = _text(record["path"])
    sha256 = _text(record["sha256"])
    if not safe_path(path):
        raise ValueError(f"the path {path!r} leaves the generation")
    if len(sha256) != 64 or not set(sha256) <= _HEX:
        raise ValueError(f"{sha256!r} is not a sha256")
    return SealedFile(path, _count(record["size"]), sha256)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"got {value!r}, expected text")
    return value


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < _MOST:
        raise TypeError("got something else, expected a count below 2**63")
    return value


def _seconds(value: Any) -> float:
    seconds = float(value)
    if not 0 <= seconds < _MOST:
        raise ValueError("got no number of seconds")
    return seconds


def _malformed(where: str, what: str) -> IntegrityError:
    return IntegrityError(
        f"got a malformed seal at {where} ({what}), expected one that warmer wrote",
        reason="malformed-seal",
        hint="run `warmer prefill`: it moves what is corrupt aside and fills it again",
    )
