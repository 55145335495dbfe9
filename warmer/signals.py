"""Signals that ask a process to stop: one error that unwinds it, wherever it is met."""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING, Final

from warmer.errors import TerminatedError

if TYPE_CHECKING:
    from types import FrameType

_STOPS: Final = (signal.SIGTERM, signal.SIGINT)
_AGAIN: Final = 0.01
"""Seconds until a signal is sent again."""


def heed(*numbers: signal.Signals) -> None:
    """Have signals raise `TerminatedError` in the main thread; further ones leave the clean-up alone.

    What is raised within a finaliser Python drops, and goes on. Such a signal is sent again a moment
    later, when the finaliser has ended. SIGALRM and ``sys.unraisablehook`` are taken for that.

    Args:
        numbers: which; SIGTERM and SIGINT where none is given.
    """
    stops = numbers or _STOPS

    def listen() -> None:
        for number in stops:
            signal.signal(number, terminate)

    def terminate(signum: int, _frame: FrameType | None) -> None:
        for number in stops:
            signal.signal(number, signal.SIG_IGN)
        raise TerminatedError(signum)

    def swallowed(unraisable: sys.UnraisableHookArgs) -> None:
        failure = unraisable.exc_value
        if not isinstance(failure, TerminatedError):
            sys.__unraisablehook__(unraisable)
            return
        signum = failure.signum

        def again(_number: int, frame: FrameType | None) -> None:
            if frame is not None and frame.f_code is swallowed.__code__:  # it has not ended yet
                signal.setitimer(signal.ITIMER_REAL, _AGAIN)
            else:
                os.kill(os.getpid(), signum)

        signal.signal(signal.SIGALRM, again)
        listen()
        signal.setitimer(signal.ITIMER_REAL, _AGAIN)

    sys.unraisablehook = swallowed
    listen()


def leave() -> None:
    """The work is over: from now on a signal ends the process, whatever output is left.

    A handler, because PID 1 is not ended by a signal's default.
    """
    for number in _STOPS:
        signal.signal(number, lambda signum, _frame: os._exit(128 + signum))
