"""The one retry policy around sources: exponential, with jitter, inside a budget, polite."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any, TypeVar

import structlog
import tenacity

from warmer.fill.sources import Source, SourceFile, TransientSourceError

if TYPE_CHECKING:
    from collections.abc import Callable

    from warmer.model import ModelRef

_T = TypeVar("_T")
_log = structlog.get_logger(__name__)


class Retrying:
    """A source whose transient failures are tried again.

    Args:
        source: what to ask.
        budget: seconds after the first failure within which a new try may start; a
            ``Retry-After`` that does not fit ends the trying at once.
    """

    def __init__(self, source: Source, *, budget: float) -> None:
        self._source = source
        self._budget = budget

    def resolve(self) -> ModelRef:
        """Resolve, trying again."""
        return self._call(self._source.resolve)

    def files(self, model: ModelRef) -> tuple[SourceFile, ...]:
        """List, trying again."""
        return self._call(self._source.files, model)

    def fetch(
        self, model: ModelRef, file: SourceFile, target: str, progress: Callable[[int], None]
    ) -> None:
        """Fetch, trying again; bytes counted by a failed try are taken back."""
        counted = 0

        def count(size: int) -> None:
            nonlocal counted
            counted += size
            progress(size)

        def once() -> None:
            nonlocal counted
            progress(-counted)
            counted = 0
            with contextlib.suppress(FileNotFoundError):
                os.unlink(target)
            self._source.fetch(model, file, target, count)

        self._call(once)

    def _call(self, function: Callable[..., _T], *arguments: Any) -> _T:
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(TransientSourceError),
            wait=_wait,
            stop=self._stop,
            before_sleep=_say,
            reraise=True,
        )
        return retrying(function, *arguments)

    def _stop(self, state: tenacity.RetryCallState) -> bool:
        return (state.seconds_since_start or 0) + state.upcoming_sleep > self._budget


_backoff = tenacity.wait_random_exponential(multiplier=0.5, max=20)


def _wait(state: tenacity.RetryCallState) -> float:
    failure = state.outcome.exception() if state.outcome else None
    asked = failure.retry_after if isinstance(failure, TransientSourceError) else None
    return max(asked or 0.0, float(_backoff(state)))


def _say(state: tenacity.RetryCallState) -> None:
    failure = state.outcome.exception() if state.outcome else None
    _log.warning(
        "source failed, trying again",
        failure=str(failure),
        attempt=state.attempt_number,
        in_s=round(state.upcoming_sleep, 1),
    )
