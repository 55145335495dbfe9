"""Which generations crashed the engine at load, as starts told it on the volume and in the warm dir.

A start is told by name: ``<kind>-<key>-<generation>.<start>`` on the volume, and in the warm dir by
a record that lists the generations it had (`warmer.handoff.ready`). Two make a generation stale.
What cannot be read tells nothing: a record can cost a rebuild, and must not cost a start.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from typing import TYPE_CHECKING, Final

from warmer import regular
from warmer.model import KERNEL_KINDS
from warmer.observe import numbers

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from warmer.layout import Volume, WarmDir
    from warmer.model import Key

ENOUGH: Final = 2
_RECORD: Final = re.compile(r"[0-9a-f]{16}-warm-([0-9a-f]{16})", re.ASCII)
_LONGEST: Final = 4096


class Crashes:
    """What was told; read when it is asked for, once.

    Args:
        volume: where other pods tell.
        warm: where this pod's own starts are.
    """

    def __init__(self, volume: Volume, warm: WarmDir) -> None:
        self._volume = volume
        self._warm = warm
        self._starts: dict[numbers.Aside, set[str]] | None = None

    def last(self, key: Key, there: Iterable[int]) -> int:
        """Find the newest of a key's generations that crashed two starts; 0 where none did.

        Those before it are no better: a shared kind's next generation holds all of the one before.
        One that is not there condemns nothing.
        """
        if key.kind not in KERNEL_KINDS:
            return 0
        if self._starts is None:
            self._starts = {}
            for piece, start in (*_on_volume(self._volume), *_in(self._warm)):
                self._starts.setdefault(piece, set()).add(start)
        told = self._starts
        pieces = (numbers.Aside(key.kind, key.digest, number) for number in there)
        return max((p.number for p in pieces if len(told.get(p, ())) >= ENOUGH), default=0)


def _on_volume(volume: Volume) -> Iterator[tuple[numbers.Aside, str]]:
    with contextlib.suppress(OSError):
        for name in numbers.listing(volume, volume.crashes):
            told, _, start = name.rpartition(".")
            if piece := numbers.aside(told):
                yield piece, start


def _in(warm: WarmDir) -> Iterator[tuple[numbers.Aside, str]]:
    with contextlib.suppress(OSError):
        for name in os.listdir(warm.starts):
            if match := _RECORD.fullmatch(name):
                for line in _ended(os.path.join(warm.starts, name)):
                    if piece := numbers.aside(line):
                        yield piece, match[1]


def _ended(path: str) -> list[str]:
    """Read the generations a start had; none while its server may still become ready."""
    with contextlib.suppress(OSError, regular.OddFileError), open(regular.opened(path), "rb") as f:
        fcntl.flock(f, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return f.read(_LONGEST).decode("ascii", "replace").splitlines()
    return []
