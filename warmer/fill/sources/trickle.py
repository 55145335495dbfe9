"""Connections that only trickle are ended; those that are slow are not.

A read timeout sees silence alone. A connection that brings a byte now and then, of a body or of an
answer's headers, would hold a fill for ever. So each connection counts what arrived and how long it
was waited for, and is ended where a whole window brought less than a floor. The fill goes on over a
new one, inside its retry budget.

Only waiting for bytes counts. Neither a volume that is slow to write, nor a source that thinks
before the first byte of an answer (the read timeout's matter), takes from the window. Each answer
begins a new one: a source that sends its headers and thinks again brings few bytes in small answers,
however fast it is, and hundreds of them may come over one connection.

Many connections over one slow link are served unevenly: of 32 that share 100 kB/s, each would have
about the floor, and TCP leaves some a quarter of that for a minute. So one below the floor is spared
where those of its process together bring three times the floor, and it an eighth of their mean.

The floor is far below any link that a model is fetched over: at its pace, 16 GB would take two months.
"""

from __future__ import annotations

import contextlib
import io
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any, ClassVar, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

FLOOR: Final = 3072
"""Bytes a second below which a connection trickles."""
LINK: Final = 3 * FLOOR
"""Bytes a second of a process's connections together from which on they may share a link unevenly."""
WINDOW: Final = 60.0
"""Seconds of waiting for bytes over which it is judged."""
SHORT_WINDOW: Final = 15.0
"""The same where another way, to build, is at hand."""
_now: Final = time.monotonic
_SHARE: Final = 8
"""Part of the mean, as 1/n, that a connection which is spared has at least."""
HINT: Final = "look at the network, the proxy or the firewall on the way there; run again"


class TrickleError(TimeoutError):
    """A connection was ended. A timeout, as which every client takes it.

    Attributes:
        got: bytes that arrived in the window.
        expected: bytes that should have, at least.
        seconds: of the window.
        host: where they came from.
    """

    def __init__(self, got: int, expected: int, seconds: float, host: str) -> None:
        super().__init__("trickles")
        self.got, self.expected, self.seconds, self.host = got, expected, seconds, host


def trickled(exc: BaseException) -> TrickleError | None:
    """Find out whether a client's error is of a connection that was ended here."""
    seen: BaseException | None = exc
    for _ in range(8):  # clients wrap two or three times
        if seen is None or isinstance(seen, TrickleError):
            return seen
        seen = seen.__cause__ or seen.__context__
    return None


def message(found: TrickleError, where: str) -> str:
    """Say what was got, and what was expected.

    Args:
        found: what ended it.
        where: names what was asked for.
    """
    return (
        f"got {found.got} bytes in {found.seconds:.0f} s from {found.host} for {where}, expected at "
        f"least {found.expected}"
    )


def pools(classes: Mapping[str, type[Any]], *, window: float | None = None) -> dict[str, type[Any]]:
    """Make connection pools of urllib3 whose connections are ended where they trickle.

    Args:
        classes: scheme → pool, as a pool manager has them.
        window: seconds; `WINDOW` unless given.
    """
    return {
        name: _paced(cls, WINDOW if window is None else window) for name, cls in classes.items()
    }


def fit(client: Any, *, window: float | None = None) -> None:
    """Have a client of boto3 end connections that trickle.

    Args:
        client: which.
        window: seconds; `WINDOW` unless given.
    """
    # No part of its interface: one that has it elsewhere waits for what trickles (see tests).
    with contextlib.suppress(AttributeError):
        fit_session(client._endpoint.http_session, window=window)  # noqa: SLF001 - see above


def fit_session(session: Any, *, window: float | None = None) -> None:
    """Have botocore's ``URLLib3Session`` end connections that trickle; arguments as of `fit`."""
    chosen = pools(session._pool_classes_by_scheme, window=window)  # noqa: SLF001 - see above
    session._pool_classes_by_scheme = chosen  # noqa: SLF001 - for proxies
    session._manager.pool_classes_by_scheme = chosen  # noqa: SLF001 - without one


def _paced(pool: type[Any], window: float) -> type[Any]:
    connection = pool.ConnectionCls

    def connect(self: Any) -> None:
        connection.connect(self)
        self.sock = _Socket(self.sock, str(self._tunnel_host or self.host), window)

    def tunnel(self: Any) -> None:  # a proxy's answer, before TLS, which wants the socket itself
        plain = self.sock
        self.sock = _Socket(plain, str(self.host), window)
        try:
            connection._tunnel(self)  # noqa: SLF001 - http.client's, and urllib3's to call
        finally:
            if self.sock is not None:  # it closes what failed
                self.sock = plain

    paced = type(connection.__name__, (connection,), {"connect": connect, "_tunnel": tunnel})
    return type(pool.__name__, (pool,), {"ConnectionCls": paced})


class _Socket:
    """A connection's socket; files made of it count what arrives.

    Attributes:
        window: seconds over which it is judged.
        waited: seconds of the window that has begun.
        got: bytes that arrived in it.
        at: monotonic time of the last arrival.
    """

    _open: ClassVar[weakref.WeakSet[_Socket]] = weakref.WeakSet()
    _mutex: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, sock: Any, host: str, window: float) -> None:
        self._sock = sock
        self._host = host
        self.window = window
        self._expected = int(FLOOR * window)
        self._before = (0, 0.0)
        self.waited = 0.0
        self.got = 0
        self.at = 0.0
        with self._mutex:
            self._open.add(self)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def makefile(self, mode: str = "rb", buffering: int = -1) -> io.BufferedIOBase | io.RawIOBase:
        """Make a file to read from; http.client makes one for every answer."""
        self._begin()
        raw = _Arrivals(self._sock.makefile(mode, 0), self)
        if not buffering:
            return raw
        return io.BufferedReader(raw, io.DEFAULT_BUFFER_SIZE if buffering < 0 else buffering)

    def _begin(self) -> None:
        """Begin a window with a new answer; what came before still tells the connection's rate."""
        got, waited = self._before[0] + self.got, self._before[1] + self.waited
        part = self.window / max(waited, self.window)
        self._before = int(got * part), waited * part
        self.got, self.waited = 0, 0.0

    def judge(self) -> None:
        """Judge a window that is over, and begin another.

        Raises:
            TrickleError: too little arrived.
        """
        got, waited = self.got, self.waited
        if got < self._expected and not self._shares():
            raise TrickleError(got, self._expected, waited, self._host)
        self._before = got, waited
        self.got, self.waited = 0, 0.0

    def _shares(self) -> bool:
        """Whether it has about its share of what all connections bring, and that is enough."""
        since = _now() - self.window
        with self._mutex:
            rates = [one.rate() for one in self._open if one.at >= since]
        total = sum(rates)
        return total >= LINK and _SHARE * (self.got / self.waited) * len(rates) >= total

    def rate(self) -> float:
        """Bytes a second in this window and the one before; others ask, while it goes on.

        A first burst counts over a whole window, or no other would have a share of it.
        """
        got, waited = self._before
        return (got + self.got) / max(self.window, waited + self.waited)


class _Arrivals(io.RawIOBase):
    """What arrives of one answer."""

    def __init__(self, raw: Any, counted: _Socket) -> None:
        super().__init__()
        self._raw = raw
        self._read: Callable[[Any], int | None] = raw.readinto
        self._counted = counted
        self._begun = False

    def readable(self) -> bool:
        return True

    def fileno(self) -> int:
        return int(self._raw.fileno())

    def readinto(self, buffer: Any) -> int | None:
        if not self._begun:  # the source thinks before it answers
            self._begun = True
            return self._read(buffer)
        before = _now()
        count = self._read(buffer)
        counted = self._counted
        counted.at = at = _now()
        counted.waited = waited = counted.waited + at - before
        counted.got += count or 0
        if waited >= counted.window:
            counted.judge()
        return count

    def close(self) -> None:
        if not self.closed:
            self._raw.close()
        super().close()
