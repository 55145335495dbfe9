"""Kernel trees as archives: deterministic tar in zstd, beside a manifest of what is inside.

A large tree is dealt out to several archives, which are packed and unpacked side by side.

Unpacking trusts the manifest alone,
into a directory that must not exist: a member that is not in it, is no regular file, leaves the
target, or has other bytes is refused, and so is a stream that is longer than its members need.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import os
import re
import tarfile
from concurrent.futures import ThreadPoolExecutor
from typing import IO, TYPE_CHECKING, Any, Final, cast

import zstandard

from warmer import regular
from warmer.fill import forked
from warmer.fill.members import refuse
from warmer.observe import limits
from warmer.seal import SealedFile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from warmer.fill.members import Manifest, Member

_NAME: Final = re.compile(r"tree(\.[1-9][0-9]*)?\.tar\.zst")
ENDING: Final = ".tar.zst"
_LEVEL: Final = 3
"""zstd's default; other levels were not measured."""
_CHUNK: Final = 1 << 20
_SHARE: Final = 32 << 20
"""Bytes that are worth an archive of their own."""
_FILE: Final = 64 << 10
"""Bytes that take as long as a file does by being one."""
_MOST: Final = 8
"""Archives of a tree: more threads than this wait for one interpreter."""
_HEADERS: Final = 16 << 10
"""Bytes of tar's own around a member, at most: a long name, a large time, padding."""
_CHANGED: Final = "it changed while it was packed"
_OTHER_BYTES: Final = "its bytes are not what the manifest says"
_MALFORMED: Final = (
    zstandard.ZstdError,
    tarfile.TarError,
    EOFError,
    ValueError,
    OverflowError,
    RecursionError,  # each header of a chain is read by a call inside the one before
)
_IMPOSSIBLE: Final = (
    errno.EEXIST,
    errno.EINVAL,
    errno.EISDIR,
    errno.ENAMETOOLONG,
    errno.ENOTDIR,
)
"""What a file system answers to names that contradict each other or cannot be."""


def pack(tree: str, manifest: Manifest, target: str) -> list[SealedFile]:
    """Write the archives of the files in `manifest`; equal trees give equal bytes.

    Args:
        tree: where the files are.
        manifest: which of them, from `scan`.
        target: the first archive's path, ``tree.tar.zst``; others are ``tree.1.tar.zst``, ….

    Returns:
        The archives, each named by its last path component.

    Raises:
        OSError: from either side.
        IntegrityError: a file changed between scan and pack.
    """
    stem = target.removesuffix(ENDING)
    shares = _deal(manifest)
    paths = [f"{stem}.{n}{ENDING}" if n else target for n in range(len(shares))]
    if len(shares) == 1:
        return [_pack(tree, shares[0], target)]
    with ThreadPoolExecutor(len(shares)) as pool:
        return list(pool.map(lambda share, path: _pack(tree, share, path), shares, paths))


def unpack(archives: Sequence[str], manifest: Manifest, target: str) -> None:
    """Unpack into a directory that must not exist.

    Args:
        archives: paths of all that `pack` wrote; whose bytes somebody vouches for.
        manifest: what they hold together.
        target: the directory.

    Raises:
        IntegrityError: the archives are not what the manifest says.
        OSError: from either side.
    """
    os.mkdir(target)
    # Each with a process of its own: for every small file there is more to do than to write.
    count = max(1, min(len(archives), limits.cpus()))
    jobs = [
        functools.partial(_extract_all, archives[n::count], manifest, target) for n in range(count)
    ]
    done = {path for paths in forked.side_by_side(jobs) for path in paths}
    left = manifest.members.keys() - done
    for path in manifest.empty:
        with _refused(target):
            os.makedirs(os.path.join(target, path), exist_ok=True)
    if left:
        raise refuse(target, f"{len(left)} files are missing, {min(left)} first")


def sift(
    archives: Sequence[str], manifest: Manifest, wanted: frozenset[str], target: str
) -> SealedFile:
    """Copy some of the members of archives into one of their own, without unpacking them.

    Args:
        archives: paths of all that `pack` wrote; whose bytes somebody vouches for.
        manifest: what they hold together.
        wanted: paths of members.
        target: the new archive's path.

    Raises:
        IntegrityError: the archives are not what the manifest says.
        OSError: from either side.
    """

    def fill(tar: tarfile.TarFile) -> None:
        def take(source: IO[bytes], member: Member) -> None:
            if member.path in wanted:
                _add(tar, member, source, otherwise=_OTHER_BYTES)

        if left := wanted.difference(_each(archives, manifest, take)):
            raise refuse(archives[0], f"{len(left)} files are missing, {min(left)} first")

    return _write(target, fill)


def is_one(name: str) -> bool:
    """Whether a file of a generation is one of its archives."""
    return _NAME.fullmatch(name) is not None


def _deal(manifest: Manifest) -> list[list[Member]]:
    """Deal members out so that every share is about as much work; each keeps the order of paths."""
    members = list(manifest.members.values())
    work = sum(member.size + _FILE for member in members)
    count = max(1, min(_MOST, len(members), work // _SHARE))
    shares: list[list[Member]] = [[] for _ in range(count)]
    loads = [0] * count
    for member in sorted(members, key=lambda m: (-m.size, m.path)):
        least = loads.index(min(loads))
        shares[least].append(member)
        loads[least] += member.size + _FILE
    return [sorted(share, key=lambda member: member.path) for share in shares]


def _pack(tree: str, members: Sequence[Member], target: str) -> SealedFile:
    def fill(tar: tarfile.TarFile) -> None:
        for member in members:
            with open(os.path.join(tree, member.path), "rb") as f:
                if os.fstat(f.fileno()).st_size != member.size:
                    raise refuse(member.path, _CHANGED)
                _add(tar, member, f, otherwise=_CHANGED)

    return _write(target, fill)


def _write(target: str, fill: Callable[[tarfile.TarFile], None]) -> SealedFile:
    """Write an archive that `fill` puts members into."""
    digest = hashlib.sha256()
    with open(target, "wb") as raw:
        compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True)
        with (
            compressor.stream_writer(cast("IO[bytes]", _Tee(raw, digest)), closefd=False) as out,
            tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT) as tar,
        ):
            fill(tar)
        size = raw.tell()
    return SealedFile(os.path.basename(target), size, digest.hexdigest())


def _add(tar: tarfile.TarFile, member: Member, source: IO[bytes], *, otherwise: str) -> None:
    """Add a member's bytes; `otherwise` says what it is if they are not those of the manifest."""
    info = tarfile.TarInfo(member.path)
    info.size, info.mode = member.size, member.mode
    info.mtime = member.mtime_ns // 10**9
    content = hashlib.sha256()
    tar.addfile(info, cast("IO[bytes]", _Hashed(source, content)))
    if content.hexdigest() != member.sha256:
        raise refuse(member.path, otherwise)


def _extract_all(archives: Sequence[str], manifest: Manifest, target: str) -> list[str]:
    """Unpack archives, one after the other; says which members they held."""
    return _each(archives, manifest, lambda source, member: _extract(source, member, target))


def _each(
    archives: Sequence[str], manifest: Manifest, take: Callable[[IO[bytes], Member], None]
) -> list[str]:
    """Have every member of archives taken, one after the other; says which there were."""
    left = dict(manifest.members)
    longest = sum(m.size + _HEADERS for m in left.values()) + _HEADERS
    for archive in archives:
        with _refused(archive), open(regular.opened(archive), "rb") as raw:
            reader = _Short(zstandard.ZstdDecompressor().stream_reader(raw), archive, longest)
            with tarfile.open(fileobj=cast("IO[bytes]", reader), mode="r|") as tar:
                for info in tar:
                    member = left.pop(info.name, None)
                    plain = info.isreg() and not info.issparse()
                    if member is None or not plain or info.size != member.size:
                        raise refuse(info.name, "the manifest has no such file")
                    source = tar.extractfile(info)
                    if source is not None:
                        take(source, member)
    return [path for path in manifest.members if path not in left]


@contextlib.contextmanager
def _refused(archive: str) -> Iterator[None]:
    """Translate what a stream that is no archive, or impossible names, are met with."""
    try:
        yield
    except _MALFORMED as exc:
        raise refuse(archive, str(exc)) from exc
    except OSError as exc:
        if exc.errno not in _IMPOSSIBLE:
            raise
        raise refuse(archive, f"{exc.filename} cannot be made: {exc.strerror}") from exc


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
        raise refuse(member.path, _OTHER_BYTES)
    os.utime(path, ns=(member.mtime_ns, member.mtime_ns))


class _Short:
    """A reader of no more bytes than an honest archive has; tar's headers may ask for any number."""

    def __init__(self, source: IO[bytes], archive: str, most: int) -> None:
        self._source = source
        self._archive = archive
        self._left = most

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= self._left:
            raise refuse(self._archive, "it is longer than its members")
        data = self._source.read(size)
        self._left -= len(data)
        return data


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
