"""A lease over any register that has compare-and-swap: Kubernetes Lease objects, S3 objects.

Guarantees: of the owners that ask, one at a time is granted a key; an owner that is gone is
succeeded after a lease that its successor has seen pass (`sight`), whatever the clocks say; an
owner that was paused past its lease and taken over from learns so at its next question.

Does *not* guarantee that a paused owner does nothing: it goes on until its next question. So
`still_mine` is the last thing asked before a publish, and the publish itself never replaces.

A write whose answer was lost may have happened: what the register then holds is read back, and
the grant's nonce tells whether it is ours. Where the service says when to ask again, it is read then
and not before.
"""

from __future__ import annotations

import random
import secrets
import threading
import time
from typing import TYPE_CHECKING, Final, Protocol

import structlog

from warmer.errors import LockError
from warmer.fill.locks import BEATS, LEASE, UnansweredError, lost
from warmer.fill.locks.heartbeat import Heartbeat
from warmer.fill.locks.pace import Pace, obeyed
from warmer.fill.locks.record import Owner
from warmer.fill.locks.sight import Sight

if TYPE_CHECKING:
    from warmer.model import Key

_log = structlog.get_logger(__name__)
_LEAST: Final = 2.0
_AGAIN: Final = 1.0
"""Seconds between two tries to reach a register that does not answer."""
_TRIES: Final = 3
_WORTH: Final = 3.0
"""Seconds that a release waits at most where it is told to: who waits for the lease waits longer."""


class ConflictError(Exception):
    """The register holds another version than the one expected: somebody else wrote."""


class Register(Protocol):
    """Named records with compare-and-swap."""

    def read(self, name: str) -> tuple[Owner, str] | None:
        """The record and its version; None where there is none.

        Raises:
            LockError: the service failed or refused.
        """

    def write(self, name: str, owner: Owner, version: str | None) -> str:
        """Write the record over one version, or as a new one; return its version.

        Raises:
            ConflictError: the register holds another version.
            UnansweredError: it may be written or not.
            LockError: the service failed or refused; nothing was written.
        """


class LeaseLock:
    """Locks on records of a register.

    Args:
        register: where the records are.
        me: how this process is named to waiters.
        node: the boot id of this machine.
        lease: seconds this owner's record may stand still before others take over.
    """

    def __init__(
        self, register: Register, *, me: str, node: str = "", lease: float = LEASE
    ) -> None:
        self.pace = Pace(_LEAST, lease)
        self._register = register
        self._me = me
        self._node = node
        self._lease = lease
        self._sight = Sight()
        self._unsure: dict[str, tuple[Owner, bool]] = {}

    def try_acquire(self, key: Key) -> LeaseGrant | Owner:
        """Take the key's lock without blocking, or learn who has it.

        Raises:
            LockError: the service failed or refused.
        """
        name = _called(key)
        found = self._register.read(name)
        held, version = found if found is not None else (Owner(), None)
        asked, took_over = self._unsure.pop(name, (None, False))
        if asked is not None and version is not None and _same(held, asked):
            return LeaseGrant(self._register, name, asked, version, took_over=took_over)
        if held.name:
            unchanged = self._sight.unchanged(name, version)
            if unchanged < (held.lease or self._lease):
                return held
            _log.warning(
                "taking over",
                lock=name,
                owner=held.name,
                epoch=held.epoch,
                silent_s=round(unchanged),
            )
        mine = Owner(
            epoch=held.epoch + 1,
            name=self._me,
            nonce=secrets.token_hex(8),
            node=self._node,
            beat=held.beat + 1,
            lease=self._lease,
        )
        try:
            written = _swap(self._register, name, mine, version)
        except UnansweredError:
            self._unsure[name] = mine, bool(held.name)
            raise
        if written is not None:
            return LeaseGrant(self._register, name, mine, written, took_over=bool(held.name))
        found = self._register.read(name)
        return found[0] if found is not None else Owner()

    def leave(self, key: Key, /) -> None:
        """Nothing is seen of who waits; what it asked for last, it wants no more."""
        self._unsure.pop(_called(key), None)


class LeaseGrant:
    """A held lease.

    Args:
        register: where the record is.
        name: the record's.
        owner: what it says.
        version: the register's version of it.
        took_over: whether the owner before never gave it back.
    """

    exclusive = True

    def __init__(
        self, register: Register, name: str, owner: Owner, version: str, *, took_over: bool
    ) -> None:
        self.epoch = owner.epoch
        self.took_over = took_over
        self._register = register
        self._name = name
        self._owner = owner
        self._version = version
        self._doing = ("", 0, 0)
        self._mutex = threading.Lock()
        self._over = False
        self._quiet_until = 0.0
        self._heartbeat = Heartbeat(name, self._renew, every=owner.lease / BEATS)

    def note(self, phase: str, done: int = 0, total: int = 0) -> None:
        """Say what is being done; see `Grant.note`.

        Raises:
            LostGrantError: a renewal found the lease taken over.
        """
        self._doing = (phase, done, total)
        if self._heartbeat.lost.is_set():
            raise lost(self._name)

    def still_mine(self) -> bool:
        """Renew: what could be renewed is ours, and will be for a lease from now on.

        A register that does not answer is asked again for up to a lease, and when it says so.
        """
        deadline = time.monotonic() + self._owner.lease
        while True:
            time.sleep(max(0.0, min(self._quiet_until, deadline) - time.monotonic()))
            try:
                return self._renew()
            except LockError as exc:
                if time.monotonic() >= deadline:
                    _log.warning("the lock does not answer", lock=self._name, why=exc.message)
                    return False
            time.sleep(_AGAIN)

    def release(self) -> None:
        """Give the lease back; the record keeps the epoch growing."""
        self._heartbeat.stop()
        if not self._mutex.acquire(timeout=_AGAIN):
            return  # a renewal hangs: the lease will run out
        try:
            if self._over:
                return
            self._over = True
            try:
                self._free()
            except LockError as exc:
                _log.warning("could not release the lock", lock=self._name, why=exc.message)
        finally:
            self._mutex.release()

    def _free(self) -> None:
        """Write that nobody has it, over whatever version is still ours.

        Raises:
            LockError: no answer, or a refusal.
        """
        for again in range(_TRIES):
            try:
                freed = self._owner.freed()
                if _swap(self._register, self._name, freed, self._version) is not None:
                    return
            except UnansweredError as exc:
                if again or not exc.retry_after or exc.retry_after > _WORTH:
                    raise
                time.sleep(exc.retry_after)
            found = self._register.read(self._name)
            if found is None or found[0].nonce != self._owner.nonce:
                return
            # A renewal whose fate nobody learned came through.
            self._owner, self._version = found

    def _renew(self) -> bool:
        """Rewrite the record; False where it is another's.

        Raises:
            LockError: no answer, or a refusal.
        """
        with self._mutex:
            try:
                return self._rewrite()
            except UnansweredError as exc:
                # Beats are further apart than this, so that only `still_mine` need wait for it.
                chance = random.random()  # noqa: S311 - jitter
                quiet = obeyed(exc.retry_after, lease=self._owner.lease, chance=chance)
                self._quiet_until = time.monotonic() + quiet
                raise

    def _rewrite(self) -> bool:
        """Rewrite the record under the mutex; as `_renew`."""
        for _ in range(_TRIES):
            if self._over:
                return False
            fresh = self._owner.next_beat(*self._doing)
            asked = time.monotonic()
            try:
                self._version = self._register.write(self._name, fresh, self._version)
            except (ConflictError, UnansweredError) as exc:
                _keep_away(exc)
                found = self._register.read(self._name)
                if found is None or found[0].nonce != self._owner.nonce:
                    self._over = True
                    return False
                # An earlier renewal came through late, or a stranger edited around us.
                self._owner, self._version = self._owner.next_beat(*self._doing), found[1]
            else:
                self._owner = fresh
                # An answer that is older than a lease says nothing: another may have it since.
                if time.monotonic() - asked < self._owner.lease:
                    return True
        raise UnansweredError(
            f"got no renewal of {self._name} through in {_TRIES} tries, expected one",
            reason="lock-busy",
        )


def _swap(register: Register, name: str, owner: Owner, version: str | None) -> str | None:
    """Write a record over a version; return the new version, None where another's is there.

    Raises:
        UnansweredError: it may be written or not; the service is to be asked later.
        LockError: the service failed or refused.
    """
    try:
        return register.write(name, owner, version)
    except (ConflictError, UnansweredError) as exc:
        _keep_away(exc)
        found = register.read(name)
        return found[1] if found is not None and _same(found[0], owner) else None


def _keep_away(exc: Exception) -> None:
    """Read nothing back yet where the service says when to ask again: the next question does.

    Raises:
        UnansweredError: it says so.
    """
    if isinstance(exc, UnansweredError) and exc.retry_after:
        raise exc


def _same(found: Owner, written: Owner) -> bool:
    return (found.nonce, found.beat) == (written.nonce, written.beat)


def _called(key: Key) -> str:
    return f"{key.kind}-{key.digest[:32]}"
