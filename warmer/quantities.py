"""Durations, sizes and rates as people write them: ``14d``, ``100G``, ``1.5TiB``, ``1GB/s``. Pure."""

from __future__ import annotations

import re
from typing import Final

from warmer.errors import UsageError

_SECONDS: Final = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_POWERS: Final = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}
_DURATION: Final = re.compile(r"(\d{1,12}(?:\.\d{1,6})?) ?([a-z]*)", re.ASCII)
_BITS: Final = re.compile(
    r"(\d{1,9}(?:\.\d{1,6})?) ?([kmgt]?)(?:bit/s|bps|b/s)", re.ASCII | re.IGNORECASE
)
_EITHER: Final = re.compile(r"(?:b|ib/s|ibps)$")
"""Ends of what one reads as bits and the next as bytes, eight times as much: ``10Gb``, ``10Gib/s``."""
_SIZE: Final = re.compile(r"(\d{1,18}(?:\.\d{1,6})?) ?([kmgtp]?)(i?)b?", re.ASCII)


def parse_duration(text: str, flag: str) -> float:
    """Read a duration; return seconds.

    Args:
        text: a number and a unit (s, m, h, d, w); a bare number is of seconds.
        flag: the option, for the error.

    Raises:
        UsageError: anything else.
    """
    found = _DURATION.fullmatch(text.strip().lower())
    if found is None or found[2] not in _SECONDS:
        raise _bad(text, flag, "a duration", "as 90s, 30m, 12h, 14d or 2w")
    return float(found[1]) * _SECONDS[found[2]]


def parse_size(text: str, flag: str) -> int:
    """Read a size; return bytes.

    Args:
        text: a number and a unit: k, M, G, T, P of a thousand, Ki, Mi, ... of 1024; a B may follow.
        flag: the option, for the error.

    Raises:
        UsageError: anything else.
    """
    found = _SIZE.fullmatch(text.strip().lower())
    if found is None or (found[3] and not found[2]):
        raise _bad(text, flag, "a size", "as 500M, 100G or 1.5Ti")
    unit: int = (1024 if found[3] else 1000) ** _POWERS[found[2]]
    return round(float(found[1]) * unit)


def parse_rate(text: str, flag: str) -> float:
    """Read a rate; return bytes per second.

    Args:
        text: a size, which ``/s`` may follow, or bits, as networks are sold: ``10Gbit/s``, ``10Gbps``;
            with a capital B they are bytes.
        flag: the option, for the error.

    Raises:
        UsageError: anything else, and nothing at all: no time would be enough.
    """
    words = re.sub(r"Bps$", "B/s", text.strip())
    rate = 0.0
    bits = None if words.endswith("B/s") else _BITS.fullmatch(words)
    if bits is None and _EITHER.search(words):
        raise _bad(text, flag, "bits or bytes", "as 10Gbit/s or 10GB/s")
    try:
        if bits is not None:
            thousands: int = 1000 ** _POWERS[bits[2].lower()]
            rate = float(bits[1]) * thousands / 8
        else:
            rate = float(parse_size(words.removesuffix("/s"), flag))
    except UsageError:
        rate = 0.0
    if rate <= 0:
        raise _bad(text, flag, "a rate", "as 500MB/s, 1.2GB/s or 10Gbit/s")
    return rate


def show_bytes(count: float) -> str:
    """Write a number of bytes as a person would."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _bad(text: str, flag: str, what: str, hint: str) -> UsageError:
    return UsageError(f"got {flag} {text!r}, expected {what}", reason="bad-value", hint=hint)
