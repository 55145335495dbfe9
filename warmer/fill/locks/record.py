"""The owner's record: who holds a lock and how far it is. One JSON object. Pure.

It is for waiters to read; nobody's right rests on it, but its *change* is the sign of life that
`sight` watches.
"""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass
from typing import Any, Final

from warmer.urls import LONGEST_LEASE

SIZE: Final = 1024
"""Bytes of a padded record: a shorter one never leaves the end of a longer one behind."""

# Of a torn record the epoch may still be whole: it is written first.
_EPOCH: Final = re.compile(rb'\{"epoch": (\d{1,18}),')
_LAST_EPOCH: Final = (1 << 31) - 2
"""A Lease counts in 32 bits. What claims more was not written by an owner."""


@dataclass(frozen=True, slots=True)
class Owner:
    """Who holds a lock, as far as its record says.

    Attributes:
        epoch: number of the grant.
        name: how the owner calls itself; empty when nobody holds the lock.
        nonce: the grant's own name; no two grants share one.
        node: the boot id of the owner's kernel.
        beat: grows with every rewriting.
        lease: seconds the owner's record may stand still before others take over.
        phase: what it is doing.
        done: bytes done in this phase.
        total: bytes in all; 0 where bytes say nothing.
    """

    epoch: int = 0
    name: str = ""
    nonce: str = ""
    node: str = ""
    beat: int = 0
    lease: float = 0.0
    phase: str = ""
    done: int = 0
    total: int = 0

    def next_beat(self, phase: str, done: int, total: int) -> Owner:
        """The same owner, rewriting its record."""
        return dataclasses.replace(self, beat=self.beat + 1, phase=phase, done=done, total=total)

    def freed(self) -> Owner:
        """Nobody, keeping the epoch, so that it goes on growing."""
        return Owner(epoch=self.epoch, beat=self.beat + 1)


def encode(owner: Owner) -> bytes:
    """Render a record in `SIZE` bytes; a name that is too long is cut."""
    while len(data := json.dumps(dataclasses.asdict(owner)).encode()) > SIZE:
        longest = "name" if len(owner.name) >= len(owner.phase) else "phase"
        cut = getattr(owner, longest)
        owner = dataclasses.replace(owner, **{longest: cut[: len(cut) // 2]})
    return data.ljust(SIZE)


def parse(data: bytes) -> Owner:
    """Read a record; of a torn or foreign one, the epoch at least if it is there.

    Numbers that no owner writes count as missing: a lease without end would never be over.
    """
    try:
        record: dict[str, Any] = json.loads(data or b"{}")
        return Owner(
            epoch=as_epoch(int(record.get("epoch", 0))),
            name=str(record.get("name", "")),
            nonce=str(record.get("nonce", "")),
            node=str(record.get("node", "")),
            beat=int(record.get("beat", 0)),
            lease=as_lease(float(record.get("lease", 0))),
            phase=str(record.get("phase", "")),
            done=int(record.get("done", 0)),
            total=int(record.get("total", 0)),
        )
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        found = _EPOCH.match(data)
        return Owner(epoch=as_epoch(int(found[1])) if found else 0)


def as_lease(lease: float) -> float:
    """The lease of a record; 0, which leaves it to the waiter, where no owner may have it."""
    return lease if 0 < lease <= LONGEST_LEASE else 0.0


def as_epoch(found: int) -> int:
    """The epoch of a record; 0 where the next one could not be written."""
    return found if 0 <= found <= _LAST_EPOCH else 0
