"""Lock, then look again: claim the right to fill a key, or find that it was filled meanwhile."""

from __future__ import annotations

import random
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import structlog

from warmer.errors import BusyError
from warmer.fill.locks import LEASE, UnansweredError
from warmer.fill.locks.pace import obeyed
from warmer.fill.locks.record import Owner
from warmer.fill.turn import TURN, Settled, Turn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from warmer.fill.locks import Grant, Lock
    from warmer.fill.locks.pace import Pace
    from warmer.model import Key

_log = structlog.get_logger(__name__)
_SAY_EVERY: Final = 10.0
_LOOK: Final = 0.5
"""Seconds between two looks at the volume, give or take a half: cheaper than a lock's question."""
_SOON: Final = 0.05
"""Seconds between two looks at least."""
_ANSWER: Final = 10.0
"""Seconds a lock has to answer once, however short the wait: it may have to be opened first."""
_LAST: Final = (0.5, 1.0)
"""Seconds before the end of a wait between which the lock is asked once more, however long the pause."""

_SILENT: Final = 30.0
"""Seconds a lock's service may give no answer before the wait ends."""


class Claims:
    """Claims of one run, on one lock: what a waiter has seen of an owner lasts between claims.

    Args:
        open_lock: opens the lock when something is to be filled, and not before.
        seconds: where the seconds that other owners were waited for are added, as ``waiting``.

    Attributes:
        waited: seconds spent asking and waiting, in all claims.
        takeovers: times that an owner was succeeded which had not given the lock back.
    """

    def __init__(
        self, open_lock: Callable[[], Lock], seconds: dict[str, float] | None = None
    ) -> None:
        self._open = open_lock
        self._lock: Lock | None = None
        self._seconds = {} if seconds is None else seconds
        self.waited = 0.0
        self.takeovers = 0

    @contextmanager
    def claim(self, key: Key, *, wait: float, filled: Callable[[], bool]) -> Iterator[Grant | None]:
        """Hold the key's lock for the block, or yield None where the piece is there already.

        Args:
            key: what for.
            wait: seconds to wait for another owner.
            filled: looks at the volume; asked before the lock, under it, and between polls.

        Raises:
            BusyError: another owner is still filling after `wait` seconds, or the lock did not
                answer within them.
            VolumeError: the lock does not work here.
            LockError: the lock's service failed or refused.
        """
        grant, started = None, time.monotonic()
        try:
            waiting = _Waiting(self._ask, self._leave, key, wait=wait, filled=filled)
            waiting.lease = LEASE if self._lock is None else self._lock.pace.lease
            try:
                grant = waiting.grant()
            finally:
                self.waited += time.monotonic() - started
                if spent := waiting.for_an_owner:
                    self._seconds["waiting"] = round(self._seconds.get("waiting", 0) + spent, 3)
            self.takeovers += grant is not None and grant.took_over
            yield grant
        finally:
            if grant is not None:
                grant.release()
            elif self._lock is not None:  # aside: the volume may hang
                leaving = threading.Thread(
                    target=self._leave, args=(key,), name="leave", daemon=True
                )
                leaving.start()
                leaving.join(TURN)

    def _ask(self, key: Key) -> tuple[Grant | Owner, Pace]:
        """Ask the lock, opening it first; return what it said, and how soon it may be asked again."""
        if self._lock is None:
            self._lock = self._open()
        return self._lock.try_acquire(key), self._lock.pace

    def _leave(self, key: Key) -> None:
        if self._lock is not None:
            self._lock.leave(key)


class _Waiting:
    """One wait for a key: looks at the volume often and asks the lock now and then."""

    def __init__(
        self,
        ask: Callable[[Key], tuple[Grant | Owner, Pace]],
        leave: Callable[[Key], None],
        key: Key,
        *,
        wait: float,
        filled: Callable[[], bool],
    ) -> None:
        self._ask = ask
        self._leave = leave
        self._key = key
        self._wait = wait
        self._filled = filled
        self._started = self._said = time.monotonic()
        self._ask_at = self._changed = self._started
        self._last_at = self._started + wait - random.uniform(*_LAST)  # noqa: S311 - jitter
        self._owner: Owner | None = None
        self._last_seen: Owner | None = None
        self._silent_since: float | None = None
        self.lease = LEASE

    def grant(self) -> Grant | None:
        """Return the grant, or None once the piece is there.

        Raises:
            BusyError: the wait is over.
        """
        wait = max(self._wait, _ANSWER)
        while True:
            turn = Turn(self._turn, late=lambda: self._leave(self._key))
            found = turn.result(until=self._started + wait, say=self._say)
            wait = self._wait
            if found is None:
                raise self._busy("the lock to answer")
            if not isinstance(found, Owner):
                return found.grant
            if found != self._owner and self._owner is None:
                self._owner = found
                self._say(at_once=True)
            self._owner = found
            left = self._started + self._wait - time.monotonic()
            if left <= 0:
                raise self._busy(f"{_called(found)} to fill it")
            self._say()
            left = min(left, self._ask_at - time.monotonic())
            time.sleep(min(_LOOK * _jitter(), max(_SOON, left)))

    @property
    def for_an_owner(self) -> float:
        """Seconds since the start where another owner was met; 0 where none was."""
        return time.monotonic() - self._started if self._owner is not None else 0.0

    def _turn(self) -> Owner | Settled:
        """Look, and ask where it is time to; on the thread of a `Turn`."""
        if self._filled():
            return Settled(None)
        if self._owner is not None and time.monotonic() < self._ask_at:
            return self._owner
        try:
            found, pace = self._ask(self._key)
        except UnansweredError as exc:
            found, pause = self._unanswered(exc), self._keep_away(exc)
        else:
            self._silent_since = None
            pause = self._pause(found, pace) if isinstance(found, Owner) else 0.0
        self._ask_at = time.monotonic() + pause
        if isinstance(found, Owner):
            return found
        try:
            filled = self._filled()
        except BaseException:
            found.release()
            raise
        if filled:
            found.release()
            return Settled(None)
        return Settled(found)

    def _pause(self, owner: Owner, pace: Pace) -> float:
        """Seconds until the lock is asked again about a key that this owner has."""
        now = time.monotonic()
        if owner != self._last_seen:
            self._last_seen, self._changed = owner, now
        pause = pace.pause(
            now - self._started,
            chance=random.random(),  # noqa: S311 - jitter
            silent=now - self._changed,
            lease=owner.lease,
        )
        last = self._last_at - now
        return min(pause, last) if last > 0 else pause

    def _unanswered(self, exc: UnansweredError) -> Owner:
        """Bear with a lock's service that does not answer, for a while.

        Raises:
            UnansweredError: the while is over, or the wait.
        """
        now = time.monotonic()
        if self._silent_since is None:
            self._silent_since = now
            _log.warning("the lock does not answer, asking again", why=exc.message)
        if now - self._silent_since >= _SILENT or now - self._started >= self._wait:
            raise exc
        return self._owner or Owner(name="the lock to answer")

    def _keep_away(self, exc: UnansweredError) -> float:
        """Seconds until a lock that did not answer is asked again: when it says so, within bounds."""
        now = time.monotonic()
        told = obeyed(exc.retry_after, lease=self.lease, chance=random.random())  # noqa: S311 - jitter
        pause = max(_SILENT / 10 * _jitter(), told)
        ends = [self._last_at, (self._silent_since or now) + _SILENT]
        return min([pause, *(end - now for end in ends if end > now)])

    def _say(self, *, at_once: bool = False) -> None:
        now = time.monotonic()
        if not at_once and now - self._said < _SAY_EVERY:
            return
        self._said = now
        owner = self._owner or Owner(name="the lock to answer")
        more: dict[str, object] = {"phase": owner.phase} if owner.phase else {}
        if owner.total:
            more |= {"bytes": owner.done, "of": owner.total}
        _log.info(
            "waiting",
            kind=self._key.kind,
            key=self._key.short,
            owner=_called(owner),
            for_s=round(now - self._started),
            **more,
        )

    def _busy(self, what: str) -> BusyError:
        waited = time.monotonic() - self._started
        return BusyError(
            f"waited {waited:.0f} s for {what} ({self._key.kind} {self._key.short}), expected it "
            f"within {self._wait:.0f}",
            reason="busy",
            hint="raise --wait, or look at what the owner is doing",
        )


def _jitter() -> float:
    """A half to one and a half: those who came at once do not go on at once."""
    return random.uniform(0.5, 1.5)  # noqa: S311 - no secret


def _called(owner: Owner) -> str:
    """Name an owner in one line; records hold what others wrote there."""
    return "".join(c if c.isprintable() else "?" for c in owner.name) or "an unnamed owner"
