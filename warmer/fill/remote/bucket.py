"""Objects of one bucket that are written once: listed, read and put, with patience."""

from __future__ import annotations

import base64
import hashlib
import io
from typing import TYPE_CHECKING, Final

from warmer.errors import IntegrityError, SourceError
from warmer.fill.remote import layout
from warmer.fill.remote.service import Service, TakenError, Upload
from warmer.fill.sources import s3_errors
from warmer.fill.sources.s3 import S3Reader
from warmer.observe import numbers

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from warmer.fill.sources.retry import Trying
    from warmer.model import Key
    from warmer.seal import SealedFile
    from warmer.urls import RemoteUrl

_NEW: Final = {"IfNoneMatch": "*"}
"""The condition that no object of the name is there."""
_CHUNK: Final = 1 << 20
_LARGEST: Final = 5 << 30
"""Bytes that S3 takes in one request."""
_LISTED: Final = 10_000
"""Names read of one listing: a key has a handful of seals."""


class Bucket(Service):
    """Objects under one prefix of a bucket, as `Service` reaches it."""

    def __init__(self, url: RemoteUrl, trying: Trying) -> None:
        super().__init__(url, trying)
        self._wrong: set[str] = set()

    def numbers(self, key: Key) -> list[int]:
        """List the numbers of a key's seals, newest first.

        As on a volume, numbers that counting by ones cannot have come to are none of warmer's.

        Raises:
            SourceError: the service failed or refused.
        """
        prefix = layout.seals(self.url.prefix, key)
        found = self.trying.call(self._list, prefix)
        named = (layout.number(name.removeprefix(prefix)) for name in found)
        return numbers.counted(number for number in named if number is not None)[::-1]

    def seal(self, key: Key, number: int, *, most: int) -> bytes:
        """Read a seal.

        Raises:
            SourceError: the service failed or refused; `not-found` where it is gone.
            IntegrityError: it is longer than `most` bytes.
        """
        name = layout.seal(self.url.prefix, key, number)

        def once() -> bytes:
            found = self.ask(name, self.client.get_object, Key=name)
            body = S3Reader(found["Body"], self.where(name), {})
            size = self.length(name, found)
            data = bytearray(min(size, most))
            left = memoryview(data)
            try:
                if size > most:
                    raise self._too_long(name, size, most)
                while left and (count := body.readinto(left)):
                    left = left[count:]
            finally:
                body.close()
            if left:
                raise s3_errors.unanswered(EOFError(), self.where(name))
            return bytes(data)

        return self.trying.call(once)

    def put_seal(self, key: Key, number: int, data: bytes) -> bool:
        """Put a seal under a number; False where the number is taken.

        Raises:
            SourceError: the service failed or refused.
        """
        name = layout.seal(self.url.prefix, key, number)
        sha256 = hashlib.sha256(data).hexdigest()
        return self.trying.call(self._put, name, sha256, lambda: io.BytesIO(data), _NEW)

    def read(self, file: SealedFile, write: Callable[[memoryview], object]) -> None:
        """Read the blob that a sealed file is, and prove it.

        Raises:
            SourceError: the service failed or refused; `not-found` where the blob is gone.
            IntegrityError: it has other bytes than its name says.
        """
        name = layout.blob(self.url.prefix, file.sha256)
        seen = hashlib.sha256()
        buffer = memoryview(bytearray(min(_CHUNK, max(1, file.size))))

        def reopen(at: int) -> S3Reader:
            span = {"Range": f"bytes={at}-{file.size - 1}"} if at else {}
            found = self.ask(name, self.client.get_object, Key=name, **span)
            if (size := self.length(name, found)) != file.size - at:
                found["Body"].close()
                raise self._other(name, f"{size} bytes", str(file.size - at))
            return S3Reader(found["Body"], self.where(name), {})

        reader = self.trying.reading(reopen, self.where(name), 0, file.size)
        try:
            while count := reader.readinto(buffer):
                self.insist_on_time(name)
                seen.update(buffer[:count])
                write(buffer[:count])
        finally:
            reader.close()
        if seen.hexdigest() != file.sha256:
            raise self._other(name, "other bytes", "those it is named after")

    def put(self, file: SealedFile, path: str) -> bool:
        """Put a sealed file's bytes; False where they are there.

        Bytes that are not what their name says are the one thing that is ever replaced.

        Raises:
            SourceError: the service failed or refused.
            OSError: the file cannot be read.
            OddFileError: it is no regular file.
        """
        name = layout.blob(self.url.prefix, file.sha256)
        size = self.trying.call(self._size, name)
        if self._right(name, size, file):
            return False
        if file.size > _LARGEST:
            raise SourceError(
                f"got {file.path} of {file.size} bytes, expected at most {_LARGEST} for one object",
                reason="too-large",
                hint="it stays on the volume",
            )
        condition = _NEW if size is None else {}
        return self.trying.call(self._put, name, file.sha256, lambda: Upload(path, self), condition)

    def has(self, file: SealedFile) -> bool:
        """Whether a blob is there, of the right size, and not known to be wrong.

        Raises:
            SourceError: the service failed or refused.
        """
        name = layout.blob(self.url.prefix, file.sha256)
        return self._right(name, self.trying.call(self._size, name), file)

    def _put(
        self, name: str, sha256: str, body: Callable[[], io.IOBase], condition: Mapping[str, str]
    ) -> bool:
        """Put an object under a condition; False where it fails. S3 compares bytes and sha256."""
        checksum = base64.b64encode(bytes.fromhex(sha256)).decode()
        with body() as stream:
            try:
                self.ask(
                    name,
                    self.client.put_object,
                    Key=name,
                    Body=stream,
                    ChecksumSHA256=checksum,
                    **condition,
                )
            except TakenError:
                return False
        return True

    def _right(self, name: str, size: int | None, file: SealedFile) -> bool:
        return size == file.size and name not in self._wrong

    def _size(self, name: str) -> int | None:
        try:
            return self.length(name, self.ask(name, self.client.head_object, Key=name))
        except SourceError as exc:
            if exc.reason == "not-found":  # without a bucket, the put says so
                return None
            raise

    def _list(self, prefix: str) -> list[str]:
        found: list[str] = []
        more: dict[str, str] = {}
        while True:
            page = self.ask(prefix, self.client.list_objects_v2, Prefix=prefix, **more)
            found += [entry.get("Key", "") for entry in page.get("Contents", ())]
            token = page.get("NextContinuationToken")
            if not page.get("IsTruncated") or not token:
                return found
            if len(found) >= _LISTED:
                raise SourceError(
                    f"got more than {_LISTED} names at {self.where(prefix)}, expected a handful",
                    reason="too-many",
                    hint="something else writes there; use another prefix",
                )
            more = {"ContinuationToken": token}

    def _other(self, name: str, got: str, expected: str) -> IntegrityError:
        self._wrong.add(name)
        return IntegrityError(
            f"got {got} at {self.where(name)}, expected {expected}",
            reason="hash-mismatch",
            hint="who builds it next, and may write there, puts it right",
        )

    def _too_long(self, name: str, size: int, most: int) -> IntegrityError:
        return IntegrityError(
            f"got {size} bytes at {self.where(name)}, expected a seal of at most {most}",
            reason="malformed-seal",
            hint="remove that object: warmer did not put it there",
        )
