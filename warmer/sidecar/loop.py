"""The sidecar's one loop: look at the server now and then, harvest when it has been quiet.

Nothing that the volume, a lock or the server does ends it, nor a mistake in a harvest: it says what
is wrong and goes on. A signal does, and abandons a harvest as it would a build: staging is removed,
the lock given back.
"""

from __future__ import annotations

import time
import traceback
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import structlog

from warmer.errors import BusyError, WarmerError, using
from warmer.fill.claim import Claims
from warmer.fill.locks import file as file_lock
from warmer.fill.locks.record import Owner
from warmer.fill.locks.registry import open_lock
from warmer.secrecy import printable
from warmer.settings import DEFAULT_RETRY
from warmer.sidecar import board, copies, handed, health, passing, started, watch
from warmer.sidecar.harvest import Harvest
from warmer.sidecar.watch import Watch
from warmer.urls import ON_THE_VOLUME, LockUrl

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import NoReturn

    from warmer.layout import Volume, WarmDir
    from warmer.model import Kind
    from warmer.sidecar.board import Board
    from warmer.sidecar.copies import Trees
    from warmer.sidecar.handed import Job
    from warmer.sidecar.started import Server
    from warmer.trust import Trust
    from warmer.urls import RemoteUrl

_log = structlog.get_logger(__name__)
_LOOKS: Final = 6
"""Looks in the time that a server must be quiet for."""
_SELDOM, _OFTEN = 5.0, 0.1
_SHOWN: Final = 400
"""Characters of a reason: the server's note may hold anything."""
_WAIT: Final = 10.0
"""Seconds to wait for another owner of a key: the next harvest comes soon enough."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the user chose.

    Attributes:
        volume: the shared volume.
        warm: the pod's warm dir, also mounted in the server's container.
        quiet: seconds for which the trees must not have changed.
        every: seconds between two harvests, at least.
        most: harvests that publish, in all; 0 harvests never.
        trust: as whom pieces are signed.
        lock: the lock that prefills on the volume use.
        remote: the bucket that harvests are pushed to; None for none.
        retry: seconds within which a bucket that fails is tried again at once.
        server_url: where the server answers; None asks the handoff.
        me: how this process is named to waiters.
        secrets: name → value: what must not be in a file that is published.
    """

    volume: Volume
    warm: WarmDir
    quiet: float
    every: float
    most: int
    trust: Trust
    lock: LockUrl = ON_THE_VOLUME
    remote: RemoteUrl | None = None
    retry: float = DEFAULT_RETRY
    server_url: str | None = None
    me: str = ""
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)


def run(options: Options, shown: Board) -> NoReturn:
    """Watch and harvest until a signal comes.

    Raises:
        BusyError: another sidecar is at work in the warm dir.
        VolumeError: the warm dir failed at the start.
    """
    warm = options.warm
    grant = file_lock.acquire(warm.sidecar_lock, me=Owner(name=options.me), place="the warm dir")
    if isinstance(grant, Owner):
        raise BusyError(
            f"got another sidecar at work in {warm.root}, expected to be the only one",
            reason="warm-dir-busy",
            hint="one sidecar in each pod",
        )
    pause = max(_OFTEN, min(_SELDOM, options.quiet / _LOOKS))
    loop = Loop(options, shown)
    try:
        copies.sweep(warm)
        while True:
            loop.turn()
            time.sleep(pause)
    finally:
        grant.release()


class Loop:
    """What lasts from one look to the next.

    Args:
        options: what the user chose.
        shown: where it is shown.
    """

    def __init__(self, options: Options, shown: Board) -> None:
        self._options = options
        self._board = shown
        self._said = ""
        self._job: Job | None = None
        self._coming: Server | None = None
        self._came: Server | None = None
        self._watch = Watch(quiet=options.quiet, every=options.every)
        self._claims = Claims(lambda: open_lock(options.lock, volume=options.volume, me=options.me))
        self._published = 0
        self._owed: Harvest | None = None
        self._refused = 0
        self._push_at = 0.0
        self._bug = ""

    def turn(self) -> None:
        """Look once, and harvest if it is time to; whatever fails is said, and tried again."""
        self._board.alive("looking")
        try:
            self._pass_on()
            why = self._look()
            if why:
                self._watch.unready()
            self._say(why)
        except Exception:  # noqa: BLE001 - the probes and the next harvest outlive a mistake here
            self._watch.failed(now=time.monotonic())
            trace = traceback.format_exc()
            if trace != self._bug:
                self._bug = trace
                _log.error("this is a bug in warmer; please report it", trace=trace)

    def _look(self) -> str:  # noqa: PLR0911 - a return per reason
        """Harvest where it is time to; return why nothing may be."""
        o = self._options
        job = handed.read(o.warm)
        if isinstance(job, str):
            return job
        found = started.running(o.warm, job)
        where = o.server_url or health.url(job.argv)
        if isinstance(found, str):
            return found
        if not where:
            return "the server listens on no port; --server-url says where it answers"
        if not health.ready(where):
            self._coming = None if found == self._came else found
            return f"the server does not answer at {where}"
        if found == self._coming:
            self._board.ready_s = max(0.0, time.time() - found.at_ns / 1e9)
        self._came, self._coming = found, None
        if why := found.objection or self._forbidden(job):
            return why
        if job != self._job:
            self._job, self._watch = job, Watch(quiet=o.quiet, every=o.every)
        try:
            with using("the warm dir"):
                seen = copies.look(o.warm, job.keys)
        except WarmerError as exc:
            return exc.message
        if self._watch.due(found, seen, now=time.monotonic()):
            self._take(job, seen)
        return ""

    def _forbidden(self, job: Job) -> str:
        """Say why this sidecar may publish nothing."""
        trust = self._options.trust
        if trust.forbids_publishing:
            return "--trusted-keys without --signing-key publish none: nobody would trust them"
        if job.trusted and (trust.signing is None or trust.signing[0] not in job.trusted):
            return (
                f"this pod's prefill trusts {', '.join(job.trusted)}: give the --signing-key of one"
            )
        if self._published >= self._options.most:
            return f"{self._published} harvests are published, as many as --harvest-most allows"
        return ""

    def _take(self, job: Job, seen: Trees) -> None:
        o = self._options
        begun = time.monotonic()
        harvest = Harvest(
            o.volume, o.warm, job, o.trust, secrets=o.secrets, wait=_WAIT, alive=self._at_work
        )
        self._at_work()
        try:
            harvest.take(seen, self._claims)
            took = round(time.monotonic() - begun, 3)
            event = "harvested" if harvest.done else "nothing to harvest"
            _log.info(event, seconds=took, **harvest.done)
            self._tell(job.keys.keys() - harvest.done.keys(), "unchanged")
            self._watch.harvested(now=time.monotonic())
        except copies.ChangedError as exc:
            _log.info("the server is at work in its caches, waiting", why=str(exc))
            self._watch.changed()
            self._tell(job.keys, "postponed")
        except WarmerError as exc:
            busy = isinstance(exc, BusyError)
            say = _log.info if busy else _log.warning
            say("not harvested, trying again later", failure=exc.message, hint=exc.hint)
            self._watch.failed(now=time.monotonic())
            self._tell(job.keys.keys() - harvest.done.keys(), "postponed" if busy else "failed")
        finally:
            self._tell(harvest.done, "published")
            self._board.waited = self._claims.waited
            self._board.takeovers = self._claims.takeovers
            if harvest.done:  # of a harvest that failed, too
                self._published += 1
                self._owed, self._push_at = harvest, 0.0
        self._count(harvest)
        self._pass_on()

    def _count(self, harvest: Harvest) -> None:
        """Show how large what was published is."""
        with suppress(WarmerError):  # a number is no reason to say that it failed
            held = harvest.held() if harvest.done else {}
            for kind in harvest.done:
                self._board.bytes[kind] += held[kind].size

    def _pass_on(self) -> None:
        """Push what is published and not yet in the bucket, whatever became of the server since."""
        o = self._options
        if o.remote is None or self._owed is None or time.monotonic() < self._push_at:
            return
        self._at_work()
        if passing.push(o.remote, self._owed, retry=o.retry, alive=self._at_work):
            self._owed, self._refused = None, 0
        else:
            self._push_at = time.monotonic() + watch.pause(self._refused, every=o.every)
            self._refused += 1

    def _at_work(self) -> None:
        self._board.alive("harvesting", within=board.HARVEST)

    def _tell(self, kinds: Iterable[Kind], result: str) -> None:
        for kind in kinds:
            self._board.results[kind, result] += 1

    def _say(self, why: str) -> None:
        """Log why nothing is harvested, when it is another reason than before."""
        if why and why != self._said:
            _log.info("not harvesting", why=printable(why, _SHOWN))
        self._said = why
