"""No lock at all: tickets that pods read from each other, for mounts whose locks exclude nobody.

Guarantees nothing. Every pod writes a ticket of its own, and the one that comes first among the
tickets that show life fills; the others wait for it. Two that cannot see each other's tickets yet
both fill, which costs a second download and no more: publishing never replaces anything. A ticket
that has been seen unchanged for a lease counts as dead, as everywhere.

First come tickets whose owner is filling already, then the rest in an order drawn from key and
nonce, so that not every key falls to the same pod.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import re
import secrets
import time
from typing import TYPE_CHECKING, Final

import structlog

from warmer import regular
from warmer.errors import using
from warmer.fill.locks import BEATS, LEASE, lost
from warmer.fill.locks.heartbeat import Heartbeat
from warmer.fill.locks.pace import Pace
from warmer.fill.locks.record import Owner, encode, parse
from warmer.fill.locks.sight import Sight

if TYPE_CHECKING:
    from warmer.layout import Volume
    from warmer.model import Key

_log = structlog.get_logger(__name__)
_PLACE: Final = "the volume"
_LEAST: Final = 1.0
_SETTLE: Final = 3.0
"""Seconds a ticket must have been there, for others to see it, before it may come first."""
_NAME: Final = re.compile(r"[0-9a-f]{16}")
_WAITING: Final = "waiting"


class Tickets:
    """Tickets for keys of the volume.

    Args:
        volume: the volume the tickets are on.
        me: how this process is named to waiters.
        node: the boot id of this machine.
        lease: seconds a ticket may stand still before it counts as dead.
    """

    def __init__(self, volume: Volume, *, me: str, node: str = "", lease: float = LEASE) -> None:
        self._volume = volume
        self.pace = Pace(_LEAST, lease)
        self._me = Owner(name=me, node=node, lease=lease)
        self._sight = Sight()
        self._mine: dict[str, _Ticket] = {}

    def try_acquire(self, key: Key) -> _Ticket | Owner:
        """Fill, where one's own ticket comes first; else learn whose does.

        Raises:
            VolumeError: the volume is read-only, or failed.
        """
        directory = self._directory(key)
        with using(_PLACE):
            mine = self._mine.get(directory)
            if mine is None or mine.over:
                os.makedirs(directory, exist_ok=True)
                mine = self._mine[directory] = _Ticket(directory, self._me)
            mine.show()
            others, dead = self._others(directory, mine)
            first = min([*others, mine.owner], key=lambda o: (o.phase == _WAITING, _rank(key, o)))
            if first is not mine.owner or mine.age < _SETTLE:
                return first if first is not mine.owner else Owner(name="tickets of other pods")
            for path in dead:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
            mine.took_over = bool(dead)
            mine.fill(epoch=1 + max((o.epoch for o in others), default=mine.owner.epoch))
        return mine

    def leave(self, key: Key, /) -> None:
        """Take back the ticket of who waits, or others wait for it until it counts as dead."""
        mine = self._mine.pop(self._directory(key), None)
        if mine is not None:
            mine.release()

    def _directory(self, key: Key) -> str:
        return f"{self._volume.lock(key.kind, key.digest)}.tickets"

    def _others(self, directory: str, mine: _Ticket) -> tuple[list[Owner], list[str]]:
        """Read the other tickets: those that show life, and the paths of those that do not."""
        alive: list[Owner] = []
        dead: list[str] = []
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            names = os.listdir(descriptor)
        finally:
            os.close(descriptor)
        for name in names:
            path = os.path.join(directory, name)
            if not _NAME.fullmatch(name) or path == mine.path:
                continue
            try:
                owner = parse(regular.read(path))
            except (FileNotFoundError, PermissionError, IsADirectoryError, regular.OddFileError):
                continue
            if self._sight.unchanged(path, owner) < (owner.lease or self._me.lease):
                alive.append(owner)
            else:
                dead.append(path)
        return alive, dead


class _Ticket:
    """One ticket; a grant once it came first."""

    exclusive = False

    def __init__(self, directory: str, me: Owner) -> None:
        self.owner = dataclasses.replace(me, nonce=secrets.token_hex(8), phase=_WAITING)
        self.path = os.path.join(directory, self.owner.nonce)
        self.over = False
        self.took_over = False
        self.epoch = 0
        self._since = time.monotonic()
        self._shown = float("-inf")
        self._heartbeat: Heartbeat | None = None

    @property
    def age(self) -> float:
        """Seconds since the ticket was drawn."""
        return time.monotonic() - self._since

    def show(self) -> None:
        """Show that the waiting pod lives."""
        if time.monotonic() - self._shown < self.owner.lease / BEATS:
            return
        shown = self.owner.next_beat(_WAITING, 0, 0)
        try:
            self._write(shown, new=self.owner.beat == 0)
        except FileNotFoundError:  # it was taken for dead, and must be seen anew
            self._since = time.monotonic()
            self._write(shown, new=True)

    def fill(self, *, epoch: int) -> None:
        """Come first: from now on a thread shows life."""
        self.epoch = epoch
        self._write(dataclasses.replace(self.owner, epoch=epoch, phase="starting"), new=True)
        every = self.owner.lease / BEATS
        self._heartbeat = Heartbeat(os.path.basename(self.path), self._beat, every=every)

    def note(self, phase: str, done: int = 0, total: int = 0) -> None:
        """Say what is being done; see `Grant.note`.

        Raises:
            LostGrantError: others took this ticket for dead and removed it.
        """
        if self._heartbeat is not None and self._heartbeat.lost.is_set():
            raise lost(os.path.basename(os.path.dirname(self.path)))
        self.owner = dataclasses.replace(self.owner, phase=phase, done=done, total=total)

    def still_mine(self) -> bool:
        """Whether the ticket is still there: all that can be asked where nothing excludes."""
        try:
            return self._beat()
        except OSError:
            return False

    def release(self) -> None:
        """Give the ticket back."""
        self.over = True
        if self._heartbeat is not None:
            self._heartbeat.stop()
        with contextlib.suppress(OSError):
            os.unlink(self.path)

    def _beat(self) -> bool:
        if self.over:
            return False
        owner = self.owner
        try:
            self._write(owner.next_beat(owner.phase, owner.done, owner.total))
        except FileNotFoundError:
            return False
        return True

    def _write(self, owner: Owner, *, new: bool = False) -> None:
        how = os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC | (os.O_CREAT if new else 0)
        descriptor = os.open(self.path, how, 0o666)
        try:
            os.pwrite(descriptor, encode(owner), 0)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        self.owner = owner
        self._shown = time.monotonic()


def _rank(key: Key, owner: Owner) -> bytes:
    return hashlib.sha256(f"{key.digest} {owner.nonce}".encode()).digest()
