"""How two doctors find each other through the volume, and how they talk.

By files alone, so that it works where locks do not: each writes in its own directory and reads in
the other's, which it opens anew before every look, as NFS wants it. A card that changes between
two looks is a doctor that lives; what a killed one left never does.

NFS knows by a directory's times that it changed. Two changes within one tick of the server's clock
are one to it: who looked between them does not see the second until a third comes, and a change of
its own is no third. So who has said something, or claimed the other, touches both directories a tick
later, and again for as long as it waits.

The one with the greater nonce claims the other: it makes the file ``partner`` in its own directory
first, so that nobody claims it meanwhile, and then in the other's. ``O_EXCL`` lets one claim win.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from typing import TYPE_CHECKING, Any, Final, Literal

import structlog

from warmer import regular
from warmer.doctor import place
from warmer.errors import BusyError, using

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from warmer.layout import Volume

Role = Literal["a", "b"]
Card = dict[str, Any]
"""Who a doctor is, and of what kind; both know it as they meet, before anything can go wrong."""

PROTOCOL: Final = 1
_PATIENCE: Final = 120.0
"""Seconds for the other's next word: a lock of NFS may take a minute while its server restarts."""

_LEAVING: Final = 10.0
_LOOK: Final = 0.2
_LISTEN: Final = 0.05
_LONGEST_LOOK: Final = 2.0
_TICK: Final = 0.02
_TOUCH: Final = 0.5

_log = structlog.get_logger(__name__)


class Pair:
    """Two doctors that talk: what either said is in `facts`, the same on both sides.

    Args:
        mine: this doctor's private directory.
        theirs: the other's.
        role: ``a`` speaks first.
        cards: who this one and the other say they are, as `meet` found out.
        alive: called now and then, whenever the volume has answered.
    """

    def __init__(
        self,
        mine: str,
        theirs: str,
        role: Role,
        *,
        cards: tuple[Card, Card],
        alive: Callable[[], None],
    ) -> None:
        self.mine = mine
        self.theirs = theirs
        self.role: Role = role
        a, b = cards if role == "a" else reversed(cards)
        self.facts: dict[str, Any] = {"a": a, "b": b}
        self._told = 0
        self._learnt = 0
        self._touched = 0.0
        self._alive = alive

    @property
    def first(self) -> str:
        """The private directory of ``a``."""
        return self.mine if self.role == "a" else self.theirs

    def tell(self, **facts: Any) -> None:
        """Say something, which the other learns next.

        Raises:
            OSError: the volume failed.
        """
        self.facts |= facts
        _put(os.path.join(self.mine, f"say-{self._told}"), facts)
        self._told += 1
        time.sleep(_TICK)
        self._touch()

    def learn(self) -> dict[str, Any]:
        """Wait for what the other says next.

        Raises:
            BusyError: it left, or says nothing.
            OSError: the volume failed.
        """
        waited, looked = 0.0, time.monotonic()
        while (facts := _get(self.theirs, f"say-{self._learnt}")) is None:
            # A machine that was stopped for a while has not listened for that long.
            waited += min(time.monotonic() - looked, _LONGEST_LOOK)
            looked = time.monotonic()
            if waited > _PATIENCE:
                raise _gone(f"said nothing for {_PATIENCE:.0f} s")
            if _left(self.theirs):
                raise _gone("left in the middle")
            self._alive()
            self._touch_now_and_then()
            time.sleep(_LISTEN)
        self._learnt += 1
        self.facts |= facts
        return facts

    def spoken_to(self) -> bool:
        """Whether there is something to learn, or the other left.

        Raises:
            OSError: the volume failed.
        """
        self._touch_now_and_then()
        said = _get(self.theirs, f"say-{self._learnt}") is not None
        return said or _left(self.theirs)

    def _touch(self) -> None:
        os.utime(self.mine)
        with contextlib.suppress(OSError):  # it left, or it is another user's
            os.utime(self.theirs)
        self._touched = time.monotonic()

    def _touch_now_and_then(self) -> None:
        if time.monotonic() - self._touched > _TOUCH:
            self._touch()

    def part(self) -> None:
        """Leave when the other has learnt everything; the directories may go then.

        Raises:
            BusyError: it left before.
            OSError: the volume failed.
        """
        if self.role == "a":
            self.learn()
            return
        self.tell(bye=True)
        deadline = time.monotonic() + _LEAVING
        while not _left(self.theirs) and time.monotonic() < deadline:
            time.sleep(_LISTEN)


def meet(volume: Volume, mine: str, *, me: Card, timeout: float, alive: Callable[[], None]) -> Pair:
    """Find another doctor that wants to meet.

    Args:
        volume: where.
        mine: this doctor's private directory.
        me: who this doctor is, for the other.
        timeout: seconds to wait for one.
        alive: called now and then, whenever the volume has answered.

    Raises:
        BusyError: none came, or it left at once.
        VolumeError: the volume failed.
    """
    nonce = os.path.basename(mine)
    deadline = time.monotonic() + timeout
    seen: dict[str, Any] = {}
    beat = 0
    _log.info("waiting for a doctor in another pod", seconds=timeout)
    with using(place.VOLUME):
        while True:
            beat += 1
            alive()
            _put(os.path.join(mine, "card"), {"beat": beat, "me": me})
            with contextlib.suppress(PermissionError):
                os.utime(volume.doctor)
            theirs = _get(mine, "partner")
            if theirs is not None:
                them = os.path.join(volume.doctor, str(theirs.get("nonce")))
                card = _get(them, "card")
                if card is not None and "me" in card:
                    return Pair(mine, them, "a", cards=(me, card["me"]), alive=alive)
                place.reopen(volume.doctor)  # or NFS remembers that it was not there
                if _left(them):
                    raise _gone("left in the middle")
            for name in sorted(place.listing(volume.doctor)):
                card = _get(os.path.join(volume.doctor, name), "card") if name < nonce else None
                if card is None or "me" not in card:
                    continue
                lives = seen.setdefault(name, card.get("beat")) != card.get("beat")
                if lives and _claim(volume, nonce, name):
                    them = os.path.join(volume.doctor, name)
                    return Pair(mine, them, "b", cards=(me, card["me"]), alive=alive)
            if time.monotonic() > deadline:
                raise BusyError(
                    f"got no doctor in another pod within {timeout:.0f} s, expected one",
                    reason="no-partner",
                    hint="run `warmer doctor --join` in two pods of two nodes, on one volume, within "
                    "--timeout of each other",
                )
            time.sleep(_LOOK)


def _claim(volume: Volume, me: str, them: str) -> bool:
    """Claim a partner; False where it, or this one, is another's already."""
    own = os.path.join(volume.doctor, me, "partner")
    if not _make(own, them):
        return False
    if _make(os.path.join(volume.doctor, them, "partner"), me):
        return True
    os.unlink(own)
    return False


def _make(path: str, nonce: str) -> bool:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    except (FileExistsError, FileNotFoundError):
        return False
    with open(descriptor, "wb") as f:
        f.write(json.dumps({"nonce": nonce}).encode())
        f.flush()
        os.fsync(descriptor)
    return True


def _put(path: str, record: Mapping[str, Any]) -> None:
    """Write a record under another name, and rename it: no half of it is read."""
    place.write(f"{path}.new", json.dumps(record).encode())
    os.replace(f"{path}.new", path)


def _get(directory: str, name: str) -> dict[str, Any] | None:
    """Read a record; None where there is none, or not yet all of it."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        place.reopen(directory)
        record = json.loads(regular.read(os.path.join(directory, name)))
        if isinstance(record, dict):
            return record
    return None


def _left(directory: str) -> bool:
    """Whether a doctor's private directory is gone."""
    try:
        place.reopen(directory)
    except OSError:
        return True
    return False


def _gone(what: str) -> BusyError:
    return BusyError(
        f"the other pod's doctor {what}",
        reason="partner-left",
        hint="look at what it printed; then run both again",
    )
