"""When to harvest: a ready server whose trees have been quiet for a while, not too often. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from warmer.sidecar.copies import Trees
    from warmer.sidecar.started import Server

RETRY: Final = 60.0
"""Seconds after which a harvest that failed is tried again, at most; each failure doubles them."""
LONGEST: Final = 1800.0
"""Seconds that they do not exceed."""


def pause(failures: int, *, every: float) -> float:
    """Seconds until what failed, after so many failures, is tried again.

    Args:
        failures: in a row, before this one.
        every: seconds between two harvests.
    """
    return min(min(every, RETRY) * 2.0 ** min(failures, 20), LONGEST)


class Watch:
    """What has been seen of one server.

    Args:
        quiet: seconds for which the trees of a ready server must not have changed.
        every: seconds between two harvests, at least.
    """

    def __init__(self, *, quiet: float, every: float) -> None:
        self._quiet = quiet
        self._every = every
        self._server: Server | None = None
        self._since = 0.0
        self._trees: Trees | None = None
        self._done: Trees | None = None
        self._next = 0.0
        self._failures = 0

    def unready(self) -> None:
        """There is no server, or it does not answer: the wait begins anew."""
        self._server = None
        self._trees = None

    def due(self, server: Server, trees: Trees, *, now: float) -> bool:
        """Take in a look at a ready server; say whether to harvest what was seen.

        Args:
            server: this start of it.
            trees: as they are.
            now: seconds of a clock that only goes on.
        """
        if server != self._server or trees != self._trees:
            self._server, self._trees, self._since = server, trees, now
        quiet = now - self._since >= self._quiet
        return quiet and now >= self._next and trees != self._done

    def harvested(self, *, now: float) -> None:
        """What was due is published, or needs not be."""
        self._done, self._next, self._failures = self._trees, now + self._every, 0

    def failed(self, *, now: float) -> None:
        """It could not be published."""
        self._next = now + pause(self._failures, every=self._every)
        self._failures += 1

    def changed(self) -> None:
        """It changed while it was read: it was not quiet."""
        self._trees = None
