"""Look at everything on the volume. Reads only, but for the time of a directory.

Ages are differences of times that the volume's server gave. Its present time is that of a directory
which is touched for it: that needs no room on a full volume.
"""

from __future__ import annotations

import os
import re
import stat
import time
from typing import TYPE_CHECKING, Final, cast

from warmer import regular
from warmer.collect.need import Aside, Census, Published
from warmer.errors import using
from warmer.fill import capacity, uses
from warmer.layout import SEAL
from warmer.model import KINDS, Key
from warmer.observe import inventory, numbers
from warmer.usage import ANY, Piece

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from warmer.collect.need import Sort, State
    from warmer.layout import Volume
    from warmer.model import Kind
    from warmer.trust import Trust

_PLACE: Final = "the volume"
_DIGEST: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)
_STAGED: Final = re.compile(rf"({'|'.join(KINDS)})-([0-9a-f]{{64}})-[0-9a-f]+", re.ASCII)
_HALF: Final = re.compile(r".+\.[0-9a-f]{8}", re.ASCII)
"""Files on their way to a name, as every atomic write of warmer's calls them."""

GOING: Final = ".gone"
"""The end of a name in the trash whose removal has begun."""


def take(volume: Volume, *, trust: Trust, dry: bool) -> Census:
    """Look at everything.

    Args:
        volume: where.
        trust: whose kernels pods restore; others' are no piece that a signed one is superseded by.
        dry: whether nothing may be made; then the time of a volume that cannot be written is
            this machine's, and a volume without records of use stays so.

    Raises:
        VolumeError: the volume failed.
    """
    with using(_PLACE):
        now = clock(volume, dry=dry)
        recorded = uses.read_all(volume)
        try:
            since = os.stat(volume.since).st_mtime
        except FileNotFoundError:
            since = None
        return Census(
            now=now,
            since=since,
            published=tuple(_published(volume, trust)),
            uses=tuple(recorded),
            asides=tuple(_asides(volume)),
            free=capacity.free(volume.root),
        )


def clock(volume: Volume, *, dry: bool) -> float:
    """Ask the volume's server for the time.

    Raises:
        OSError: the volume cannot be written; not with `dry`.
    """
    try:
        if not dry:
            uses.begin(volume)
        os.utime(volume.uses)
        return os.stat(volume.uses).st_mtime
    except OSError:
        if not dry:
            raise
        return time.time()


def published(volume: Volume, piece: Piece, *, trust: Trust) -> Published:
    """Look at one generation.

    Raises:
        FileNotFoundError: it is gone.
    """
    directory = volume.generation(*piece)
    state: State = "foreign"
    try:
        if (at := _sealed_at(directory)) is None:
            at = os.stat(directory).st_mtime
        key = Key.known(*piece.key)
        held, _ = inventory.judge_generation(volume, key, piece.number, trust=trust)
    except FileNotFoundError:
        raise
    except OSError:
        return Published(piece, "unreadable", 0, 0.0)
    if held.verdict != "foreign":
        state = "sealed" if held.verdict == "sealed" else "broken"
    return Published(piece, state, weigh(directory)[0], at)


def _sealed_at(directory: str) -> float | None:
    """When a generation was sealed; None where its seal is gone.

    Raises:
        OSError: the seal cannot be read: it is not known to be broken.
    """
    try:
        descriptor = regular.opened(os.path.join(directory, SEAL))
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, regular.OddFileError):
        return None
    try:
        return os.fstat(descriptor).st_mtime
    finally:
        os.close(descriptor)


def _published(volume: Volume, trust: Trust) -> Iterator[Published]:
    for kind in KINDS:
        for digest in _names(volume, volume.kind(kind)):
            if not _DIGEST.fullmatch(digest):
                continue
            for number in numbers.generations(volume, kind, digest):
                try:
                    yield published(volume, Piece(kind, digest, number), trust=trust)
                except FileNotFoundError:  # another gc was faster
                    continue


def _asides(volume: Volume) -> Iterator[Aside]:
    for name in _names(volume, volume.staging):
        if match := _STAGED.fullmatch(name):
            piece = Piece(cast("Kind", match[1]), match[2], ANY)
            path = os.path.join(volume.staging, name)
            size, newest = weigh(path)
            yield Aside("staging", path, size, newest, piece)
    sorts: tuple[tuple[Sort, str], ...]
    sorts = (("trash", volume.trash), ("quarantine", volume.quarantine))
    for sort, place in sorts:
        for name in _names(volume, place):
            if was := numbers.aside(name):
                path = os.path.join(place, name)
                size, _ = weigh(path)
                yield Aside(sort, path, size, _moved(path), Piece(*was), name.endswith(GOING))
    yield from _leftovers(volume, volume.crashes, _Gone(volume))
    for directory, ours in (
        (volume.uses, _HALF.fullmatch),
        (os.path.join(volume.top, "refs"), _HALF.fullmatch),
        (os.path.join(volume.top, "loaders"), _HALF.fullmatch),
        (os.path.join(volume.top, "locks"), re.compile(r".+\.lock\.[0-9a-f]{8}").fullmatch),
        (volume.doctor, re.compile(r"[0-9a-f]+").fullmatch),
    ):
        yield from _leftovers(volume, directory, ours)


def _leftovers(volume: Volume, directory: str, ours: Callable[[str], object]) -> Iterator[Aside]:
    for name in _names(volume, directory):
        if ours(name):
            path = os.path.join(directory, name)
            size, newest = weigh(path)
            yield Aside("leftover", path, size, newest)


class _Gone:
    """Whether a start that crashed is told of a generation that is not there any more.

    A key is listed once, however many starts of its generations crashed.
    """

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._there: dict[tuple[Kind, str], list[int]] = {}

    def __call__(self, name: str) -> bool:
        was = numbers.aside(name)
        if was is None:
            return False
        key = was.kind, was.digest
        if key not in self._there:
            self._there[key] = numbers.generations(self._volume, *key)
        return was.number not in self._there[key]


def weigh(top: str) -> tuple[int, float]:
    """Return the bytes of a file or a tree, and the time of what was written in it last.

    What vanishes meanwhile weighs nothing; links are not followed.
    """
    size, newest = 0, 0.0
    paths = [top]
    while paths:
        path = paths.pop()
        try:
            info = os.lstat(path)
            if stat.S_ISDIR(info.st_mode):
                paths += [os.path.join(path, name) for name in os.listdir(path)]
            else:
                size += info.st_size
        except FileNotFoundError:
            continue
        newest = max(newest, info.st_mtime)
    return size, newest


def _moved(path: str) -> float:
    """When a directory came where it is; the future where it is gone by now."""
    try:
        return os.stat(path).st_mtime
    except FileNotFoundError:
        return float("inf")


def _names(volume: Volume, directory: str) -> list[str]:
    try:
        return sorted(numbers.listing(volume, directory))
    except (FileNotFoundError, NotADirectoryError):
        return []
