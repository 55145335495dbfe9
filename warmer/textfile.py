"""The lines of a text that somebody saved: of any length, packed or not, within limits.

Logs that a kubelet or logrotate set aside are packed by gzip, what PowerShell redirects is UTF-16, and
a log of days is longer than memory. A line that is too long is given in parts.
"""

from __future__ import annotations

import codecs
import errno
import io
import zlib
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

LONGEST: Final = 1 << 20
"""Characters of a line at most."""
_CHUNK: Final = 1 << 16
_LOOK: Final = 256
_GZIP: Final = b"\x1f\x8b"
_FORMAT: Final = 16 + zlib.MAX_WBITS
"""zlib's word for gzip."""


class _Unpacked(io.RawIOBase):
    """The content of a gzip file, of several members too; one that is cut ends where it was cut."""

    def __init__(self, packed: io.BufferedReader) -> None:
        self._packed, self._zlib, self._rest = packed, zlib.decompressobj(_FORMAT), b""
        self.cut = False

    def readable(self) -> bool:
        return True

    def readinto(self, into: memoryview) -> int:  # type: ignore[override]  # the one buffer it is given
        while True:
            if self._zlib.eof:
                self._rest, self._zlib = self._zlib.unused_data, zlib.decompressobj(_FORMAT)
                if not self._rest and not self._packed.peek(1):
                    return 0
            packed = self._zlib.unconsumed_tail or self._rest or self._packed.read(_CHUNK)
            self._rest = b""
            try:
                data = self._zlib.decompress(packed, len(into))
            except zlib.error as exc:
                raise OSError(errno.EIO, "broken gzip") from exc
            if data or not packed:
                self.cut = not data
                into[: len(data)] = data
                return len(data)


def coding(head: bytes) -> str:
    """Tell UTF-16, as PowerShell's `>` writes it, from all else, which is read as UTF-8."""
    low = {codecs.BOM_UTF16_LE: 1, codecs.BOM_UTF16_BE: 0}.get(head[:2])
    if low is None:
        return "utf-8"
    others = head[2 + low : _LOOK : 2]
    return "utf-16" if 2 * others.count(0) >= max(1, len(others)) else "utf-8"


@contextmanager
def _opened(path: str) -> Iterator[tuple[io.BufferedReader, _Unpacked | None]]:
    """Open a file, a pipe too, for what was packed into it."""
    with open(path, "rb") as raw:
        if raw.peek(len(_GZIP))[: len(_GZIP)] != _GZIP:
            yield raw, None
            return
        unpacked = _Unpacked(raw)
        yield io.BufferedReader(unpacked), unpacked


def read(path: str, most: int) -> bytes:
    """Read the bytes of a file, unpacked.

    Args:
        path: where.
        most: bytes at most; one more tells that there are more.

    Raises:
        OSError: it cannot be read, is broken, or was cut.
    """
    with _opened(path) as (file, unpacked):
        body = file.read(most + 1)
    if unpacked is not None and unpacked.cut:
        raise OSError(errno.EIO, "a gzip file that was cut")
    return body


def lines(path: str, most: int) -> Iterator[str]:
    r"""Give the lines of a file, each with its ``\n``; what is no text in them is replaced.

    Args:
        path: where.
        most: characters; what follows is not read.

    Raises:
        OSError: it cannot be read, or is broken. A packed one that is cut ends where it was cut.
    """
    with _opened(path) as (file, _):
        text = io.TextIOWrapper(file, coding(file.peek(_LOOK)), errors="replace", newline="\n")
        while most > 0 and (line := text.readline(LONGEST)):
            most -= len(line)
            yield line
