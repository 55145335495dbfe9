"""What a kernel tree holds: its files with all that unpacking needs to know, as a record.

The manifest holds every file's size, sha256, mode and modification time in nanoseconds: ninja
compares times, and a tree whose times moved is rebuilt.
"""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import json
import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from warmer.errors import IntegrityError
from warmer.seal import safe_path

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

SCHEMA_VERSION: Final = 1
MOST: Final = 1_000_000
"""Files that a manifest may name; vLLM's largest trees have thousands."""
LONGEST: Final = 256 * MOST
"""Bytes of a manifest at most."""
UNFIT: Final = "bad-archive"
"""The reason of errors that are met again however often the same bytes are read."""


@dataclass(frozen=True, slots=True)
class Member:
    """One file of a tree.

    Attributes:
        path: relative, with ``/``.
        size: bytes.
        sha256: 64 hex digits.
        mode: permission bits.
        mtime_ns: modification time.
    """

    path: str
    size: int
    sha256: str
    mode: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """What an archive holds: files by path, and directories that hold none."""

    members: Mapping[str, Member]
    empty: tuple[str, ...] = ()


def scan(tree: str, excluded: Sequence[str]) -> Manifest:
    """Read a tree's files and hash them.

    Symlinks, sockets and the like are left out: compilers remake the links they want.

    Args:
        tree: absolute directory; one that does not exist is an empty tree.
        excluded: fnmatch patterns of one path component; a trailing slash means a directory.
    """
    members: dict[str, Member] = {}
    empty: list[str] = []
    for path, info in walk(tree, excluded):
        if info is None:
            empty.append(path)
            continue
        with open(os.path.join(tree, path), "rb") as f:
            digest = hashlib.file_digest(f, "sha256").hexdigest()
        members[path] = Member(
            path, info.st_size, digest, stat.S_IMODE(info.st_mode) & 0o777, info.st_mtime_ns
        )
    return Manifest(dict(sorted(members.items())), tuple(sorted(empty)))


def changed(tree: str, excluded: Sequence[str]) -> Iterator[tuple[str, int]]:
    """Yield the files that `scan` would hash and when each was changed, in ns; others may write."""
    for path, info in walk(tree, excluded):
        if info is not None:
            yield path, info.st_mtime_ns


def sizes(tree: str) -> dict[str, int]:
    """Take a snapshot of every file, in bytes, of a tree that an engine may be writing."""
    found: dict[str, int] = {}
    for directory, _, names in os.walk(tree):
        for name in names:
            path = os.path.join(directory, name)
            with contextlib.suppress(OSError):
                found[path] = os.stat(path).st_size
    return found


def encode(manifest: Manifest) -> bytes:
    """Render a manifest."""
    files = [
        {
            "path": m.path,
            "size": m.size,
            "sha256": m.sha256,
            "mode": m.mode,
            "mtime_ns": m.mtime_ns,
        }
        for m in manifest.members.values()
    ]
    record = {"schema_version": SCHEMA_VERSION, "files": files, "empty": list(manifest.empty)}
    return json.dumps(record, indent=1).encode() + b"\n"


def parse(data: bytes, *, where: str) -> Manifest:
    """Read a manifest.

    Raises:
        IntegrityError: it is malformed, of another version, or names a path outside the tree.
    """
    try:
        record = json.loads(data)
        if record["schema_version"] != SCHEMA_VERSION:
            raise refuse(where, f"schema_version {repr(record['schema_version'])[:40]}")
        if len(record["files"]) + len(record["empty"]) > MOST:
            raise refuse(where, f"more than {MOST} files")
        members = {m.path: m for m in (_member(f) for f in record["files"])}
        empty = tuple(str(path) for path in record["empty"])
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as exc:
        raise refuse(where, f"malformed manifest: {exc}") from exc
    for path in (*members, *empty):
        if not safe_path(path):
            raise refuse(where, f"the path {path!r} leaves the tree")
    return Manifest(members, empty)


def walk(
    tree: str, excluded: Sequence[str], prefix: str = ""
) -> Iterator[tuple[str, os.stat_result | None]]:
    """Yield (path, stat) of regular files, and (path, None) of directories that hold nothing."""
    try:
        entries = sorted(os.scandir(os.path.join(tree, prefix)), key=lambda e: e.name)
    except FileNotFoundError:
        return
    if not entries and prefix:
        yield prefix, None
    for entry in entries:
        path = f"{prefix}/{entry.name}" if prefix else entry.name
        is_directory = entry.is_dir(follow_symlinks=False)
        name = entry.name + "/" if is_directory else entry.name
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in excluded):
            continue
        if is_directory:
            yield from walk(tree, excluded, path)
        elif entry.is_file(follow_symlinks=False):
            with contextlib.suppress(FileNotFoundError):  # removed while we look
                yield path, entry.stat(follow_symlinks=False)


def _member(record: Any) -> Member:
    return Member(
        path=str(record["path"]),
        size=int(record["size"]),
        sha256=str(record["sha256"]),
        mode=int(record["mode"]) & 0o777,
        mtime_ns=int(record["mtime_ns"]),
    )


def refuse(path: str, why: str) -> IntegrityError:
    """Make the error of an archive, or a manifest, that is not what it should be."""
    return IntegrityError(
        f"got {path} refused ({why}), expected what the manifest says",
        reason=UNFIT,
        hint="run `warmer prefill`: it moves what is corrupt aside and fills it again",
    )
