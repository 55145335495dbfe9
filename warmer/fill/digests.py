"""Hash bytes as they pass, under every name that some source vouches for them by.

sha256 is always among them: it goes into the seal. The others are what a source may say instead:
git's blob hash (files of a hub that are not LFS), MD5 (the ETag of an S3 object put in one part),
and the checksums that S3 keeps of whole objects.
"""

from __future__ import annotations

import hashlib
import zlib
from typing import TYPE_CHECKING, Final, Protocol

from warmer.errors import IntegrityError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping


class _Hash(Protocol):
    def update(self, data: memoryview, /) -> None: ...

    def hexdigest(self) -> str: ...


class _Checksum:
    """A running checksum with the face of `hashlib`."""

    def __init__(self, function: Callable[[memoryview, int], int], width: int) -> None:
        self._function = function
        self._width = width
        self._value = 0

    def update(self, data: memoryview, /) -> None:
        self._value = self._function(data, self._value)

    def hexdigest(self) -> str:
        return f"{self._value:0{self._width}x}"


def _make(name: str, size: int) -> _Hash:
    match name:
        case "sha256":
            return hashlib.sha256()
        case "sha1":
            return hashlib.sha1(usedforsecurity=False)
        case "md5":
            return hashlib.md5(usedforsecurity=False)
        case "git-sha1":
            return hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
        case "crc32":
            return _Checksum(zlib.crc32, 8)
    from awscrt import checksums  # noqa: PLC0415 - 10 ms, for S3 alone

    width = {"crc32c": 8, "crc64nvme": 16}[name]
    return _Checksum(getattr(checksums, name), width)


KNOWN: Final = ("sha256", "crc64nvme", "crc32c", "crc32", "sha1", "git-sha1", "md5")
"""Every name, those first that cost least: sha256 is computed anyway, md5 takes twice its time."""


class Hashing:
    """Running hashes of one file.

    Args:
        names: which besides sha256; unknown ones are left out.
        size: bytes the file will have; git's hash begins with it.
    """

    def __init__(self, names: Iterable[str], size: int) -> None:
        self._hashes = {name: _make(name, size) for name in KNOWN if name in {*names, "sha256"}}
        self.seen = 0

    def update(self, data: memoryview) -> None:
        """Take the next bytes."""
        for running in self._hashes.values():
            running.update(data)
        self.seen += len(data)

    def sha256(self) -> str:
        """The sha256 of what passed, 64 hex digits."""
        return self._hashes["sha256"].hexdigest()

    def check(self, path: str, expected: Mapping[str, str]) -> None:
        """Compare with what a source says.

        Args:
            path: names the file in errors.
            expected: name → hex digits; names that were not asked for count for nothing.

        Raises:
            IntegrityError: one differs.
        """
        for name, running in self._hashes.items():
            got = running.hexdigest()
            if (wanted := expected.get(name)) is not None and got != wanted.lower():
                raise IntegrityError(
                    f"got {path} with {name} {got}, expected {wanted}",
                    reason="hash-mismatch",
                    hint="run again; if it stays, the source or a proxy in between is broken",
                )


def quickest(digests: Mapping[str, str]) -> tuple[str, ...]:
    """Name the digest that tells at the least cost what a connection did to bytes."""
    return tuple(name for name in KNOWN if name in digests)[:1]


def provable(digests: Mapping[str, str]) -> bool:
    """Whether bytes that were lying about can be proved to be a file's."""
    return any(name in KNOWN for name in digests)
