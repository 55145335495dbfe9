"""Parsers with mistakes in them, for the driver to find: what proves that it finds any."""

from __future__ import annotations

from target import Target


def _crashes(data: bytes) -> None:
    """Fails at four bytes that no chance finds: each of them is a branch."""
    if data[:1] == b"W" and data[1:2] == b"a" and data[2:3] == b"r" and data[3:4] == b"m":
        raise KeyError("nobody expects this")


def _hangs(data: bytes) -> None:
    while data[:1] == b"h":
        pass


def _swells(data: bytes) -> None:
    kept = []
    while data[:1] == b"m":
        kept.append(bytearray(1 << 24))


TARGETS = {
    "planted-crash": Target(_crashes, (b"seed",)),
    "planted-hang": Target(_hangs, (b"seed",), ("h",)),
    "planted-swell": Target(_swells, (b"seed",), ("m",)),
}
