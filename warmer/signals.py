"""Signals that ask a process to stop: one error that unwinds it, wherever it is met."""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING, Final

from warmer.errors import TerminatedError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import FrameType

_STOPS: Final = (signal.SIGTERM, signal.SIGINT)
_AGAIN: Final = 0.01
"""Seconds until a signal is sent again."""


def heed(*numbers: signal.Signals) -> None:
    """Have signals raise `TerminatedError` in the main thread; further ones leave the clean-up alone.

    What is raised within a finaliser is dropped: Python says so, C code that closes a stream does not,
    and both go on. An error that nobody holds any more, with the signals still unheeded, is such a one.
    Its signal is sent again a moment later. SIGALRM and ``sys.unraisablehook`` are taken for that.

    Args:
        numbers: which; SIGTERM and SIGINT where none is given.
    """
    ears = _Ears(numbers or _STOPS)
    sys.unraisablehook = _unraisable
    signal.signal(signal.SIGALRM, ears.again)
    ears.listen()


def unwrapped(exc: BaseException) -> BaseException:
    """Find the signal in what Python made of it: before 3.12 a class being made wraps what is raised."""
    stopped = isinstance(exc, RuntimeError) and isinstance(exc.__cause__, TerminatedError)
    return exc.__cause__ or exc if stopped else exc


class _StopError(TerminatedError):
    """Held by whoever unwinds, and by `cli` at the end."""

    def __init__(self, signum: int, dropped: Callable[[int], None]) -> None:
        super().__init__(signum)
        self._dropped = dropped

    def __del__(self) -> None:
        self._dropped(self.signum)


class _Ears:
    """What hears of some signals."""

    def __init__(self, stops: Sequence[signal.Signals]) -> None:
        self._stops = stops
        self._dropped: list[int] = []

    def listen(self) -> None:
        """Have the next one raise."""
        for number in self._stops:
            signal.signal(number, self._terminate)

    def again(self, _signum: int, _frame: FrameType | None) -> None:
        """Send what was dropped."""
        while self._dropped:
            self.listen()
            os.kill(os.getpid(), self._dropped.pop())

    def _terminate(self, signum: int, _frame: FrameType | None) -> None:
        for number in self._stops:
            signal.signal(number, _leave_alone)
        raise _StopError(signum, self._drop)

    def _drop(self, signum: int) -> None:
        if signal.getsignal(signum) is _leave_alone:
            self._dropped.append(signum)
            signal.setitimer(signal.ITIMER_REAL, _AGAIN)


def _leave_alone(_signum: int, _frame: FrameType | None) -> None:
    """A handler: of a signal that came just before SIG_IGN, Python complains on stderr."""


def _unraisable(unraisable: sys.UnraisableHookArgs) -> None:
    if isinstance(unraisable.exc_value, _StopError):
        unraisable.exc_value.__traceback__ = None  # its frames may hold it
    else:
        sys.__unraisablehook__(unraisable)


def leave() -> None:
    """The work is over: from now on a signal ends the process, whatever output is left.

    A handler, because PID 1 is not ended by a signal's default.
    """
    for number in _STOPS:
        signal.signal(number, lambda signum, _frame: os._exit(128 + signum))
