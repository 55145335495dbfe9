"""Bind every bytecode entry of a tree to the content of its source; remove what cannot be bound.

A script, run by the Python that wrote the tree: it imports nothing of warmer and needs Python 3.9.

    python rehash.py <tree of PYTHONPYCACHEPREFIX> <package it was made for>

CPython trusts an entry whose header holds its source's size and whole seconds of modification
time. Builds that set all times alike make both the same in two images. PEP 552's checked entries
hold a hash of the source instead, which Python computes anew at every import. An entry stays
where its source is on this Python's path and is, now, what the header says. Equal sources give
equal bytes and times. The last line says what became of the entries, as JSON.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import marshal
import os
import re
import sys
import types

_CHECKED = 0b11
"""The header's flags: by hash, and the source is compared at every import (PEP 552)."""
_HEADER = 16


def bind(path: str, source: str | None) -> str:
    """Rewrite one entry's header; return why that cannot be, or an empty string.

    Args:
        path: the entry.
        source: what it was compiled from; None where it is on no path.
    """
    if source is None:
        return "not of this Python's path"
    try:
        with open(source, "rb") as f:
            info, text = os.fstat(f.fileno()), f.read()
    except OSError:
        return "no source"
    with open(path, "rb") as f:
        data = f.read()
    if data[:4] != importlib.util.MAGIC_NUMBER or not _whole(data[_HEADER:]):
        return "torn, or of another Python"
    flags = int.from_bytes(data[4:8], "little")
    digest = importlib.util.source_hash(text)
    seconds, size = int(info.st_mtime) & 0xFFFFFFFF, info.st_size & 0xFFFFFFFF
    stamp = seconds.to_bytes(4, "little") + size.to_bytes(4, "little")
    if data[8:_HEADER] != {0: stamp, 1: digest, _CHECKED: digest}.get(flags):
        return "of another source"
    if flags != _CHECKED:
        with open(path, "r+b") as f:
            f.write(data[:4] + _CHECKED.to_bytes(4, "little") + digest)
    os.utime(path, (0, 0))
    return ""


def source_of(path: str, tree: str, roots: tuple[str, ...]) -> str | None:
    """Name the source an entry stands for, if it lies under one of the roots."""
    tag = re.escape(sys.implementation.cache_tag or "-")
    directory, name = os.path.split(path)
    match = re.fullmatch(rf"([^.]+)\.{tag}(\.opt-[12])?\.pyc", name)
    source = os.path.join(directory[len(tree) :], f"{match[1]}.py") if match else ""
    return source if source.startswith(roots) else None


def _whole(body: bytes) -> bool:
    try:
        return isinstance(marshal.loads(body), types.CodeType)  # noqa: S302 - this very Python wrote it
    except (EOFError, TypeError, ValueError):
        return False


def main(tree: str, package: str) -> None:
    """Bind or remove every file of a tree, and remove directories that are then empty."""
    here = os.path.dirname(os.path.realpath(__file__))  # Python puts it first
    path = [entry for entry in sys.path if os.path.realpath(entry) != here]
    roots = tuple(os.path.join(entry, "") for entry in path if os.path.isabs(entry))
    kept, found = 0, False
    dropped: dict[str, int] = {}
    for directory, _, names in os.walk(tree, topdown=False):
        for name in names:
            entry = os.path.join(directory, name)
            source = source_of(entry, tree, roots)
            why = "a link" if os.path.islink(entry) else bind(entry, source)
            if why:
                os.unlink(entry)
                dropped[why] = dropped.get(why, 0) + 1
            else:
                kept += 1
                found = found or f"{source}".endswith(f"/{package}/__init__.py")
        if directory != tree:
            with contextlib.suppress(OSError):  # it is not empty
                os.rmdir(directory)
    print(json.dumps({"kept": kept, "dropped": dropped, "found": found}))  # noqa: T201 - the answer


if __name__ == "__main__":
    main(sys.argv[1].rstrip("/"), sys.argv[2])
