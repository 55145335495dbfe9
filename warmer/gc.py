"""look → decide → hide → (grace) → remove: room on the volume, at nobody's cost.

The decision is a value: a dry run stops at it. Every step looks again before it acts, and one that
meets another owner at work is left for the next run.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import structlog

from warmer.collect import census, removal
from warmer.collect.decide import Decision, Step, decide
from warmer.collect.records import Hiding, Records, Taken
from warmer.errors import BusyError, UsageError, VolumeError
from warmer.fill import capacity, publish, uses
from warmer.fill.claim import Claims
from warmer.fill.locks import file as file_lock
from warmer.fill.locks.record import Owner
from warmer.fill.locks.registry import open_lock
from warmer.model import Key
from warmer.observe import inventory, mount

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from warmer.fill.locks.file import FileGrant
    from warmer.layout import Volume
    from warmer.model import Kind
    from warmer.trust import Trust
    from warmer.urls import LockUrl

_log = structlog.get_logger(__name__)
DEFAULT_KEEP: Final = 14 * 86400.0
DEFAULT_GRACE: Final = 3600.0
SHORTEST_KEEP: Final = 86400.0
"""Seconds: longer than any prefill runs, whose record is as old as its beginning."""

_FULL: Final = ("no-space", "quota")
_WAIT: Final = 8.0
"""Seconds to wait for a key's lock; tickets take three to settle."""


@dataclass(slots=True)
class Outcome:
    """What a gc did, or in a dry run would do.

    Attributes:
        decision: what it set out to do.
        dry: whether it stopped there.
        done: the steps that were carried out.
        skipped: the steps that were not, with the reason.
        free: bytes free afterwards.
    """

    decision: Decision
    dry: bool
    done: list[Step] = field(default_factory=list)
    skipped: list[tuple[Step, str]] = field(default_factory=list)
    free: int = 0

    def size(self, action: str) -> int:
        """Bytes of the steps of one kind that were carried out; in a dry run, that would be."""
        steps = self.decision.steps if self.dry else self.done
        return sum(step.size for step in steps if step.action == action)


def collect(
    volume: Volume,
    lock: LockUrl,
    *,
    trust: Trust,
    keep: float = DEFAULT_KEEP,
    grace: float = DEFAULT_GRACE,
    min_free: int | None = None,
    me: str = "",
    dry: bool = False,
) -> Outcome:
    """Free a volume of what nobody needs.

    Args:
        volume: which.
        lock: the one that prefills on it use.
        trust: whose kernels they restore.
        keep: seconds for which a use counts.
        grace: seconds between hiding and removing.
        min_free: bytes that are enough; see `decide`.
        me: how this process is named to waiters.
        dry: decide only.

    Raises:
        UsageError: `keep` is too short.
        BusyError: another gc is at work on the volume.
        VolumeError: the volume failed; what was done stands, and the next run goes on.
        LockError: the lock's service failed or refused.
    """
    if keep < SHORTEST_KEEP:
        raise UsageError(
            f"got --keep of {keep:.0f} s, expected at least {SHORTEST_KEEP:.0f}: a day",
            reason="bad-value",
            hint="is its unit missing? as 14d; a prefill must be seen for as long as it runs",
        )
    inventory.require(volume)
    _warn(volume, keep=keep)
    with contextlib.nullcontext() if dry else alone(volume, me=me):
        look = census.take(volume, trust=trust, dry=dry)
        outcome = Outcome(decide(look, keep=keep, grace=grace, min_free=min_free), dry)
        _doubt(outcome)
        if not dry:
            claims = Claims(lambda: open_lock(lock, volume=volume, me=me))
            run = _Run(volume, claims, outcome, Records(volume, keep=keep), Taken(volume))
            _carry_out(run, outcome.decision.steps)
            removal.count(volume, outcome.size("remove"))
            _log.info(
                "collected",
                hidden_bytes=outcome.size("hide"),
                removed_bytes=outcome.size("remove"),
                skipped=len(outcome.skipped),
            )
    outcome.free = capacity.free(volume.root)
    return outcome


@contextlib.contextmanager
def alone(volume: Volume, *, me: str) -> Iterator[None]:
    """Be the only gc on a volume, where it has locks and room for one.

    Two of them would do no harm, but each would take the other's look at the servers' locks for
    servers that run.

    Raises:
        BusyError: another gc is at work.
        VolumeError: the volume failed.
    """
    grant: FileGrant | Owner | None = None
    try:
        grant = file_lock.acquire(volume.gc_lock, me=Owner(name=me), place="the volume")
    except VolumeError as exc:
        if exc.reason not in (*_FULL, "no-locks"):
            raise
    if isinstance(grant, Owner):
        raise BusyError(
            f"got another gc at work on {volume.root}, expected to be the only one",
            reason="gc-busy",
            hint="wait for it to end: concurrencyPolicy: Forbid keeps a CronJob from meeting itself",
        )
    try:
        yield
    finally:
        if grant is not None:
            grant.release()


def _warn(volume: Volume, *, keep: float) -> None:
    """Say where servers of other nodes are not seen, so that their age alone protects them."""
    found = mount.find(volume.root)
    if found.locks != "shared":
        _log.warning(
            "servers that run on other nodes may not be seen here",
            mount=found.point,
            why=found.reason,
            hint=f"run no pod longer than --keep, {keep / 86400:g} days",
        )


def _doubt(outcome: Outcome) -> None:
    for doubt in outcome.decision.doubts:
        _log.error(
            "a record of use cannot be read: nothing is hidden",
            record=doubt,
            hint="its pod's next prefill writes it anew; remove it when no pod uses it",
        )


@dataclass(frozen=True, slots=True)
class _Run:
    volume: Volume
    claims: Claims
    outcome: Outcome
    records: Records
    taken: Taken

    def note(self, step: Step, why: str) -> None:
        """Keep what became of a step; no reason: it was done."""
        if why:
            _log.info("left alone", what=step.name, why=why)
            self.outcome.skipped.append((step, why))
            return
        self.outcome.done.append(step)
        if step.action != "renew":
            _log.info(step.action, what=step.name, why=step.reason, bytes=step.size)


def _carry_out(run: _Run, steps: Sequence[Step]) -> None:
    """Do the steps; those for which a full volume has no room, again when others have made some."""
    full: list[tuple[Step, VolumeError]] = []
    with Hiding(run.volume, run.records, note=run.note) as hiding:
        for group in _grouped(steps):
            try:
                if group[0].piece is not None and _locked(group[0]):
                    _under_lock(run, group, hiding)
                else:
                    run.note(group[0], _simple(run, group[0]))
            except VolumeError as exc:
                if exc.reason not in _FULL:
                    raise
                noted = (*run.outcome.done, *(s for s, _ in run.outcome.skipped))
                known = {id(step) for step in (*noted, *hiding.steps)}
                full += [(step, exc) for step in group if id(step) not in known]
    if full and len(full) == len(steps):
        raise full[0][1]
    if full:
        _carry_out(run, [step for step, _ in full])


def _grouped(steps: Sequence[Step]) -> Iterator[list[Step]]:
    """First what needs no lock, step by step; then the rest, a group for each key."""
    yield from ([step] for step in steps if not _locked(step))
    keyed: dict[tuple[Kind, str], list[Step]] = {}
    for step in steps:
        if _locked(step) and step.piece is not None:
            keyed.setdefault(step.piece.key, []).append(step)
    yield from keyed.values()


def _simple(run: _Run, step: Step) -> str:
    """Do what needs no lock; return why it was not done."""
    volume = run.volume
    if step.use is not None:
        if step.action == "renew":
            uses.renew(volume, step.use)
            return ""
        return "" if uses.forget(volume, step.use) else "it came into use again"
    if step.aside is None:
        return "nothing to do"
    if step.action == "put back":
        return (
            "" if publish.put_back(volume, step.aside.path) else "its place is taken, or it is gone"
        )
    if step.aside.sort == "leftover":
        removal.erase(step.aside.path)
        return ""
    return removal.empty(volume, step.aside, run.records, run.taken)


def _under_lock(run: _Run, steps: Sequence[Step], hiding: Hiding) -> None:
    """Hide generations and remove stagings of one key, under its lock."""
    kind, digest = steps[0].piece.key if steps[0].piece is not None else ("weights", "")
    left = list(steps)
    try:
        with run.claims.claim(Key.known(kind, digest), wait=_WAIT, filled=lambda: False) as grant:
            hiding.look((kind, digest))
            while left and grant is not None:
                step = left[0]
                if step.action == "hide" and step.piece is not None:
                    hiding.hide(step, step.piece, grant)
                elif grant.exclusive:
                    run.note(step, removal.sweep(step, grant))
                else:
                    why = "locks on this volume exclude nobody: its owner may be at work"
                    run.note(step, why)
                left.pop(0)
    except BusyError as exc:
        for step in left:
            run.note(step, exc.message)


def _locked(step: Step) -> bool:
    """Whether a step is done under its key's lock."""
    return step.action == "hide" or (step.aside is not None and step.aside.sort == "staging")
