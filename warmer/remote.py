"""The remote tier of one prefill: pull before building, push after the handoff.

Neither ever fails a prefill. The bucket's failures are a warning, and all of them together are
tried again within one ``--retry``; what goes well but slowly ends where a build would have.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Final

import structlog

from warmer.errors import IntegrityError, SourceError, VolumeError
from warmer.fill import stagings
from warmer.fill.sources.retry import Trying
from warmer.model import KERNEL_KINDS, Kind
from warmer.plan import patience
from warmer.settings import DEFAULT_RETRY

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Mapping

    from warmer.fill.claim import Claims
    from warmer.fill.remote.bucket import Bucket
    from warmer.settings import Settings
    from warmer.situation import Situation

_log = structlog.get_logger(__name__)
PULLING: Final = ("pull", "pull or build")
"""The actions of steps that ask the bucket."""
_ORDER: Final[tuple[Kind, ...]] = ("flashinfer", "jit", "bytecode", "compile")
"""What others need first."""


class Remote:
    """What a prefill has to do with the bucket; without one, nothing.

    Args:
        settings: which bucket, and how long it is tried.
    """

    def __init__(self, settings: Settings) -> None:
        self._url = settings.remote
        self._trying = Trying(budget=settings.retry, once=True)
        self._bucket: Bucket | None = None
        self._spent = 0.0
        """Seconds of all pulls together, without waiting for owners: one build would make all."""

    def pull(self, s: Situation, claims: Claims) -> Mapping[Kind, int]:
        """Have on the volume what the bucket has of the pieces that are to be pulled.

        Returns:
            Kind → bytes that came.

        Raises:
            VolumeError: another owner moved what was used.
            BusyError: another owner is still filling, or a grant or a race was lost.
            LockError: the lock's service failed or refused.
        """
        steps = {step.kind: step for step in s.plan.steps if step.action in PULLING}
        pulled: dict[Kind, int] = {}
        try:
            from warmer.fill.remote.pull import Puller  # noqa: PLC0415 - zstandard, boto3

            puller = Puller(
                self._open(),
                s.volume,
                s.warm,
                {kind: key for kind, key in s.wanted.keys.items() if kind in KERNEL_KINDS},
                claims=claims,
                trust=s.settings.trust,
            )
            pulled = puller.pulled
            for kind in _ORDER:
                if (step := steps.get(kind)) is not None:
                    bear = partial(
                        patience,
                        step,
                        s.settings.policy(kind),
                        lease=s.settings.lock.lease,
                        longest=s.settings.engine_timeout,
                    )
                    wait, within = bear(chosen=s.settings.wait), bear(chosen=None) - self._spent
                    with self._timed(claims):
                        puller.pull(kind, wait=wait, within=within)
        except (SourceError, IntegrityError) as exc:
            _log.warning("nothing more is pulled", failure=exc.message, hint=exc.hint)
        except VolumeError as exc:
            if exc.reason in stagings.VANISHED:
                raise
            _log.warning("nothing more is pulled", failure=exc.message, hint=exc.hint)
        return pulled

    def push(self, s: Situation, without: Container[str], built_s: float) -> Mapping[Kind, int]:
        """Have in the bucket what is sealed here; one warning where that fails.

        Args:
            s: the last look.
            without: kinds that are not handed off, and so are not passed on.
            built_s: seconds that building took: pushing takes no more, or `DEFAULT_RETRY`.

        Returns:
            Kind → bytes that were put.
        """
        pushed: dict[Kind, int] = {}
        try:
            from warmer.fill.remote.push import Pusher  # noqa: PLC0415 - as above

            bucket = self._open()
            bucket.until = time.monotonic() + max(DEFAULT_RETRY, built_s)
            pusher = Pusher(bucket, s.volume, s.settings.trust)
            pushed = pusher.pushed
            for kind in _ORDER:
                held = s.held.held.get(kind)
                if kind not in without and held is not None and held.verdict == "sealed":
                    pusher.push(s.wanted.keys[kind], held.generation)
        except (SourceError, IntegrityError, VolumeError) as exc:
            _log.warning("nothing more is pushed", failure=exc.message, hint=exc.hint)
        return pushed

    @contextmanager
    def _timed(self, claims: Claims) -> Iterator[None]:
        begun, waited = time.monotonic(), claims.waited
        try:
            yield
        finally:
            self._spent += time.monotonic() - begun - (claims.waited - waited)

    def _open(self) -> Bucket:
        if self._bucket is None:
            from warmer.fill.remote.bucket import Bucket  # noqa: PLC0415 - boto3

            if self._url is None:
                raise AssertionError("no step pulls, and nothing is pushed, without --remote")
            self._bucket = Bucket(self._url, self._trying)
        return self._bucket
