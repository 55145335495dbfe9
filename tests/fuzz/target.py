"""What a fuzz target is: a parser, the errors it may give, and bytes to begin with."""

from __future__ import annotations

import json
import os
import tempfile
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

DIGEST = "ab" * 32


class Target(NamedTuple):
    """One parser of bytes that somebody else wrote.

    Attributes:
        run: gives it the bytes, swallows its documented errors alone, and asserts what must hold.
        seeds: bytes to begin with, one of them what warmer itself writes.
        words: what a mutation may put in.
        longest: bytes of an input at most.
    """

    run: Callable[[bytes], None]
    seeds: tuple[bytes, ...]
    words: tuple[str, ...] = ()
    longest: int = 4096


JSON = (
    "null",
    "true",
    "1e999",
    "NaN",
    "Infinity",
    "-1",
    "\\u0000",
    "\\ud800",
    "[]",
    "{}",
    '""',
    '"..":',
    "9" * 30,
    '"/"',
)
"""Words that break readers of JSON."""  # fmt: skip


def text(data: bytes) -> str:
    """Bytes as a file opened with surrogateescape gives them."""
    return data.decode(errors="surrogateescape")


def dumps(value: object) -> bytes:
    return json.dumps(value).encode()


def scratch() -> str:
    """A directory in memory, gone with the machine's reboot at the latest."""
    memory = "/dev/shm"
    where = memory if os.access(memory, os.W_OK) else None
    return tempfile.mkdtemp(prefix="warmer-fuzz-", dir=where)


def put(path: str, data: bytes) -> None:
    """Write a file over what it held; its inode stays."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        os.write(descriptor, data)
    finally:
        os.close(descriptor)
