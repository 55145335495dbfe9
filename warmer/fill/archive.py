"""Kernel trees as one archive: deterministic tar in zstd, beside a manifest of what is inside.

The manifest holds every file's size, sha256, mode and modification time in nanoseconds: ninja
compares times, and a tree whose times moved is rebuilt. Unpacking trusts the manifest alone,
into a directory that must not exist: a member that is not in it, is no regular file, leaves the
target, or has other bytes is refused.
"""

from __future__ import annotations

import errno
import fnmatch
import hashlib
import json
import os
import stat
import tarfile
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, Final, cast

import zstandard

from warmer.errors import IntegrityError
from warmer.seal import SealedFile, safe_path

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

SCHEMA_VERSION: Final = 1
_LEVEL: Final = 3
"""zstd's default; other levels were not measured."""
_CHUNK: Final = 1 << 20
_IMPOSSIBLE: Final = (
    errno.EEXIST,
    errno.EINVAL,
    errno.EISDIR,
    errno.ENAMETOOLONG,
    errno.ENOTDIR,
)
"""What a file system answers to names that contradict each other or cannot be."""


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
    for path, info in _walk(tree, "", excluded):
        if info is None:
            empty.append(path)
            continue
        with open(os.path.join(tree, path), "rb") as f:
            digest = hashlib.file_digest(f, "sha256").hexdigest()
        members[path] = Member(
            path, info.st_size, digest, stat.S_IMODE(info.st_mode) & 0o777, info.st_mtime_ns
        )
    return Manifest(dict(sorted(members.items())), tuple(sorted(empty)))


def pack(tree: str, manifest: Manifest, target: str) -> SealedFile:
    """Write the archive of the files in `manifest`; equal trees give equal bytes.

    Args:
        tree: where the files are.
        manifest: which of them, from `scan`.
        target: the archive's path.

    Returns:
        The archive, named by its last path component.

    Raises:
        OSError: from either side.
        IntegrityError: a file changed between scan and pack.
    """
    digest = hashlib.sha256()
    with open(target, "wb") as raw:
        compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True)
        with (
            compressor.stream_writer(cast("IO[bytes]", _Tee(raw, digest)), closefd=False) as out,
            tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT) as tar,
        ):
            for member in manifest.members.values():
                info = tarfile.TarInfo(member.path)
                info.size, info.mode = member.size, member.mode
                info.mtime = member.mtime_ns // 10**9
                content = hashlib.sha256()
                with open(os.path.join(tree, member.path), "rb") as f:
                    if os.fstat(f.fileno()).st_size != member.size:
                        raise _refuse(member.path, "it changed while it was packed")
                    tar.addfile(info, cast("IO[bytes]", _Hashed(f, content)))
                if content.hexdigest() != member.sha256:
                    raise _refuse(member.path, "it changed while it was packed")
        size = raw.tell()
    return SealedFile(os.path.basename(target), size, digest.hexdigest())


def unpack(archive: str, manifest: Manifest, target: str) -> None:
    """Unpack into a directory that must not exist.

    Raises:
        IntegrityError: the archive is not what the manifest says.
        OSError: from either side.
    """
    os.mkdir(target)
    left = dict(manifest.members)
    try:
        with open(archive, "rb") as raw:
            reader = zstandard.ZstdDecompressor().stream_reader(raw)
            with reader, tarfile.open(fileobj=reader, mode="r|") as tar:
                for info in tar:
                    member = left.pop(info.name, None)
                    if member is None or not info.isreg() or info.size != member.size:
                        raise _refuse(info.name, "the manifest has no such file")
                    source = tar.extractfile(info)
                    if source is not None:
                        _extract(source, member, target)
        for path in manifest.empty:
            os.makedirs(os.path.join(target, path), exist_ok=True)
    except (zstandard.ZstdError, tarfile.TarError, EOFError, ValueError) as exc:
        raise _refuse(archive, str(exc)) from exc
    except OSError as exc:
        if exc.errno not in _IMPOSSIBLE:
            raise
        raise _refuse(archive, f"{exc.filename} cannot be made: {exc.strerror}") from exc
    if left:
        raise _refuse(archive, f"{len(left)} files are missing, {next(iter(left))} first")


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
            raise _refuse(where, f"schema_version {record['schema_version']!r}")
        members = {m.path: m for m in (_member(f) for f in record["files"])}
        empty = tuple(str(path) for path in record["empty"])
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as exc:
        raise _refuse(where, f"malformed manifest: {exc}") from exc
    for path in (*members, *empty):
        if not safe_path(path):
            raise _refuse(where, f"the path {path!r} leaves the tree")
    return Manifest(members, empty)


def _walk(
    tree: str, prefix: str, excluded: Sequence[str]
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
            yield from _walk(tree, path, excluded)
        elif entry.is_file(follow_symlinks=False):
            yield path, entry.stat(follow_symlinks=False)


def _extract(source: IO[bytes], member: Member, target: str) -> None:
    path = os.path.join(target, member.path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    digest = hashlib.sha256()
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(path, flags, 0o600), "wb") as f:
        while chunk := source.read(_CHUNK):
            digest.update(chunk)
            f.write(chunk)
        os.fchmod(f.fileno(), member.mode)
    if digest.hexdigest() != member.sha256:
        raise _refuse(member.path, "its bytes are not what the manifest says")
    os.utime(path, ns=(member.mtime_ns, member.mtime_ns))


def _member(record: Any) -> Member:
    return Member(
        path=str(record["path"]),
        size=int(record["size"]),
        sha256=str(record["sha256"]),
        mode=int(record["mode"]) & 0o777,
        mtime_ns=int(record["mtime_ns"]),
    )


class _Tee:
    """A writer that hashes what passes through it."""

    def __init__(self, out: IO[bytes], digest: Any) -> None:
        self._out = out
        self._digest = digest

    def write(self, data: bytes) -> int:
        self._digest.update(data)
        return self._out.write(data)

    def flush(self) -> None:
        self._out.flush()


class _Hashed:
    """A reader that hashes what passes through it."""

    def __init__(self, source: IO[bytes], digest: Any) -> None:
        self._source = source
        self._digest = digest

    def read(self, size: int = -1) -> bytes:
        data = self._source.read(size)
        self._digest.update(data)
        return data


def _refuse(path: str, why: str) -> IntegrityError:
    return IntegrityError(
        f"got {path} refused ({why}), expected what the manifest says",
        reason="bad-archive",
        hint="run `warmer prefill`: it moves what is corrupt aside and fills it again",
    )
