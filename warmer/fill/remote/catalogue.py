"""What a bucket has of a key: seals, newest first, of which only those are told that may be used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import structlog

from warmer import seal
from warmer.errors import IntegrityError, SourceError
from warmer.fill import archive, members
from warmer.layout import KEY, MANIFEST
from warmer.observe import inventory

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from warmer.fill.remote.bucket import Bucket
    from warmer.model import Key
    from warmer.trust import Trust

_log = structlog.get_logger(__name__)
_LOOKS: Final = 8
"""Seals of one key that are read at most: who can write could put thousands."""
_SEAL_SIZE: Final = 1 << 20
_READ_SIZE: Final = 64 << 20
"""Bytes of a blob that is read into memory."""


class Found(NamedTuple):
    """A seal in a bucket, and its number there."""

    number: int
    seal: seal.Seal


def acceptable(bucket: Bucket, key: Key, numbers: Sequence[int], trust: Trust) -> Iterator[Found]:
    """Read the seals with these numbers, and yield those that may be used.

    Raises:
        SourceError: the service failed or refused.
    """
    for number in numbers[:_LOOKS]:
        try:
            data = bucket.seal(key, number, most=_SEAL_SIZE)
            record = seal.parse(data, where=f"{key.kind} {key.short} {number} of {bucket.url}")
            why = inventory.objection(record, key, number, trust) or _shape(record)
        except SourceError as exc:
            if exc.reason != "not-found":
                raise
            why = "is gone"
        except IntegrityError as exc:
            why = f"is corrupt: {exc.message}"
        except seal.ForeignSealError as exc:
            why = f"has another format: {exc}"
        if why:
            _log.warning(
                "a seal in the bucket is not used",
                kind=key.kind,
                key=key.short,
                number=number,
                why=why,
            )
            continue
        yield Found(number, record)


def manifest(bucket: Bucket, found: Found) -> members.Manifest:
    """Read which files of the tree a piece in the bucket holds.

    Raises:
        SourceError: the service failed or refused.
        IntegrityError: its manifest is not what the seal says, or is none.
    """
    (listing,) = (file for file in found.seal.files if file.path == MANIFEST)
    where = f"{MANIFEST} of {found.seal.kind} {found.number} of {bucket.url}"
    return members.parse(read(bucket, listing), where=where)


def paths(bucket: Bucket, found: Found) -> frozenset[str]:
    """Read the paths alone, likewise."""
    return frozenset(manifest(bucket, found).members)


def read(bucket: Bucket, file: seal.SealedFile) -> bytes:
    """Read a blob into memory, proved.

    Raises:
        SourceError: the service failed or refused.
        IntegrityError: it is not what its name says, or too large.
    """
    if file.size > _READ_SIZE:
        raise IntegrityError(
            f"got {file.path} of {file.size} bytes in {bucket.url}, expected at most {_READ_SIZE}",
            reason="malformed-seal",
            hint="warmer did not put that there; use another prefix",
        )
    data = bytearray()
    bucket.read(file, data.extend)
    return bytes(data)


def _shape(record: seal.Seal) -> str:
    """Say what is wrong with the files that a seal names; empty where they are a piece's."""
    names = [file.path for file in record.files]
    archives = [name for name in names if archive.is_one(name)]
    others = sorted(set(names) - set(archives))
    if others != sorted((KEY, MANIFEST)) or not archives or len(set(names)) != len(names):
        return "names other files than a kernel piece has"
    return ""
