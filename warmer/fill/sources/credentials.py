"""AWS credentials that are had in time, or not at all.

Services of this machine and of AWS give them: STS for a web identity, the agents of ECS and EKS, the
instance's metadata. botocore asks them with clients of its own, which wait for ever where an answer
trickles. So each such question has a bound (`deadline`): the first, which making a client asks, and
those that renew what is about to expire.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from warmer.fill.deadline import OverdueError, within
from warmer.fill.sources import TransientSourceError, trickle

if TYPE_CHECKING:
    from collections.abc import Callable

_SOON: Final = 1.0
"""Seconds in which who waited for another's question takes its failure for its own."""


def bound(session: Any, *, window: float | None = None) -> None:
    """Find a session's credentials, and have it find them anew, within seconds.

    Args:
        session: of botocore; no client is made of it yet.
        window: seconds for one question; `trickle.WINDOW` unless given.

    Raises:
        OverdueError: no whole answer came.
        BotoCoreError: there are none, or half of a pair.
    """
    seconds = trickle.WINDOW if window is None else window
    found = within(seconds, session.get_credentials)
    # No part of its interface: one that has it elsewhere waits for what trickles (see tests).
    if (renew := getattr(found, "_refresh_using", None)) is not None:
        found._refresh_using = _Bounded(renew, seconds)  # noqa: SLF001 - see above


def overdue(exc: OverdueError, where: str) -> TransientSourceError:
    """The error where credentials came too slowly to be waited for.

    Args:
        exc: says for how long.
        where: names what they were for.
    """
    return TransientSourceError(
        f"got {exc} of who gives AWS credentials for {where}, expected one",
        reason="too-slow",
        hint="look at the service that gives them (STS, the pod's identity agent, the instance's "
        "metadata) and at what is on the way there; run again",
    )


class _Bounded:
    """A question for credentials that is answered in time.

    All connections wait for the one that asks. Where it fails, each would ask anew, one after another.
    """

    def __init__(self, renew: Callable[[], Any], seconds: float) -> None:
        self._renew = renew
        self._seconds = seconds
        self._failed = float("-inf")

    def __call__(self) -> Any:
        if time.monotonic() - self._failed < _SOON:
            raise OverdueError("no whole answer a moment ago")
        try:
            return within(self._seconds, self._renew)
        except OverdueError:
            self._failed = time.monotonic()
            raise
