"""The one retry policy around sources: exponential, with jitter, inside a budget, polite.

A range that breaks off is taken up where it stopped. When a source says that it is asked too
often, nobody of this process asks it anything until the time it named is over.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeVar

import structlog
import tenacity

from warmer.fill.sources import Reader, Source, SourceFile, TransientSourceError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from warmer.model import ModelRef

_T = TypeVar("_T")
_log = structlog.get_logger(__name__)
_SPREAD: Final = 0.25
"""Share of a time that the source named by which the end of the wait is spread."""


@dataclass(slots=True)
class Patience:
    """What waiting for a source cost so far; told from several threads.

    Attributes:
        retries: reason → times something was tried again.
        throttled_s: seconds in which this process asked nothing because the source said so.
    """

    retries: Counter[str] = field(default_factory=Counter)
    throttled_s: float = 0.0


class Trying:
    """Tries again what failed for the moment.

    Args:
        budget: seconds after the first failure within which a new try may start; bytes that
            arrive begin it anew. A ``Retry-After`` that does not fit ends the trying at once.
        patience: where the waiting is added up; its own unless given.
        once: all calls share one budget, which nothing begins anew.
    """

    def __init__(
        self, *, budget: float, patience: Patience | None = None, once: bool = False
    ) -> None:
        self._budget = budget
        self._once = once
        self._since: float | None = None
        self._mutex = threading.Lock()
        self._quiet_until = 0.0
        self.patience = patience or Patience()

    @property
    def quiet_for(self) -> float:
        """Seconds for which the source wants to hear nothing."""
        return max(0.0, self._quiet_until - time.monotonic())

    def keep_quiet_for(self, seconds: float) -> None:
        """Ask nothing for a while: another process was told to slow down."""
        with self._mutex:
            self._quiet_until = max(self._quiet_until, time.monotonic() + seconds)

    def reading(self, reopen: Callable[[int], Reader], name: str, start: int, end: int) -> Reader:
        """Open a range, trying again; the reader goes on where its connection broke off.

        Args:
            reopen: opens the range from an offset on.
            name: of what is read, for errors.
            start: of the range.
            end: of the range.
        """
        reader = self.call(reopen, start)
        return _PatientReader(reopen, self._again, reader, name, (start, end))

    def call(self, function: Callable[..., _T], *arguments: Any) -> _T:
        """Call, trying again.

        Raises:
            SourceError: a failure that stays, or the budget is spent.
        """
        try:
            self._keep_quiet()
            return function(*arguments)
        except TransientSourceError as exc:
            return self._again(exc, function, *arguments)

    def _again(
        self, failure: TransientSourceError, function: Callable[..., _T], *arguments: Any
    ) -> _T:
        """Go on after a series' first failure; most calls never come here."""
        first = [failure]

        def once() -> _T:
            if first:
                raise first.pop()
            self._keep_quiet()
            return function(*arguments)

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(TransientSourceError),
            wait=_wait,
            stop=self._stop,
            before_sleep=self._note,
            reraise=True,
        )
        return retrying(once)

    def _stop(self, state: tenacity.RetryCallState) -> bool:
        if state.attempt_number == 1 and state.outcome_timestamp is not None:
            state.start_time = state.outcome_timestamp  # waiting for others' sake costs nothing
            self._since = self._since or state.outcome_timestamp
        if self._once and self._since is not None:
            state.start_time = self._since
        return (state.seconds_since_start or 0) + state.upcoming_sleep > self._budget

    def _note(self, state: tenacity.RetryCallState) -> None:
        failure = state.outcome.exception() if state.outcome else None
        now = time.monotonic()
        with self._mutex:
            if isinstance(failure, TransientSourceError):
                self.patience.retries[failure.reason] += 1
                if failure.throttled:
                    until = now + state.upcoming_sleep
                    self.patience.throttled_s += max(0.0, until - max(now, self._quiet_until))
                    self._quiet_until = max(until, self._quiet_until)
        _log.warning(
            "source failed, trying again",
            failure=str(failure),
            attempt=state.attempt_number,
            in_s=round(state.upcoming_sleep, 1),
        )

    def _keep_quiet(self) -> None:
        """Wait while another thread was told to slow down; not all come back at once."""
        while (left := self._quiet_until - time.monotonic()) > 0:
            time.sleep(left * random.uniform(1.0, 1.0 + _SPREAD))  # noqa: S311 - jitter


class Retrying(Trying):
    """A source whose transient failures are tried again.

    Args:
        source: what to ask.
        budget: as of `Trying`.
        patience: as of `Trying`.
    """

    def __init__(self, source: Source, *, budget: float, patience: Patience | None = None) -> None:
        super().__init__(budget=budget, patience=patience)
        self._source = source

    def resolve(self) -> ModelRef:
        """Resolve, trying again."""
        return self.call(self._source.resolve)

    def files(self, model: ModelRef) -> tuple[SourceFile, ...]:
        """List, trying again."""
        return self.call(self._source.files, model)

    def describe(self, model: ModelRef, file: SourceFile) -> SourceFile:
        """Describe, trying again."""
        return self.call(self._source.describe, model, file)

    def open(self, model: ModelRef, file: SourceFile, start: int, end: int) -> Reader:
        """Open, trying again; the reader goes on where its connection broke off."""

        def reopen(at: int) -> Reader:
            return self._source.open(model, file, at, end)

        return self.reading(reopen, file.path, start, end)


class _PatientReader:
    """A range whose connection is opened anew where it broke off."""

    def __init__(
        self,
        reopen: Callable[[int], Reader],
        again: Callable[..., Any],
        reader: Reader,
        path: str,
        span: tuple[int, int],
    ) -> None:
        self._reopen = reopen
        self._again = again
        self._path = path
        self._at, self._end = span
        self._reader: Reader | None = reader
        self.digests: Mapping[str, str] = reader.digests

    def readinto(self, buffer: memoryview) -> int:
        try:
            return self._read(buffer)
        except TransientSourceError as exc:
            count: int = self._again(exc, self._read, buffer)
            return count

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def _read(self, buffer: memoryview) -> int:
        if self._at >= self._end:
            return 0
        try:
            if self._reader is None:
                self._reader = self._reopen(self._at)
            count = self._reader.readinto(buffer[: self._end - self._at])
        except BaseException:
            self.close()
            raise
        if count == 0:
            self.close()
            raise TransientSourceError(
                f"got {self._path} cut short at {self._at}, expected it up to {self._end}",
                reason="truncated",
                hint="run again; if it stays, a proxy in between cuts connections",
            )
        self._at += count
        return count


_backoff = tenacity.wait_random_exponential(multiplier=0.5, max=20)


def _wait(state: tenacity.RetryCallState) -> float:
    failure = state.outcome.exception() if state.outcome else None
    asked = failure.retry_after if isinstance(failure, TransientSourceError) else None
    if asked:
        return asked * random.uniform(1.0, 1.0 + _SPREAD)  # noqa: S311 - jitter
    return float(_backoff(state))
