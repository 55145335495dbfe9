"""A process forked from this one: what is imported here need not be imported there.

A new interpreter would take half a second to import what a transfer needs, in which the wire stands
still. A fork of a process with several threads may find a lock held for ever: it belongs where
there is one.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
import traceback
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Final, NoReturn

from warmer.errors import SourceError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_TURN: Final = 0.005
_HELD: Final = (signal.SIGTERM, signal.SIGINT)
_NAME: Final = "warmer worker"
"""What `ps` and `top` show."""


@dataclass(slots=True, eq=False)
class Forked:
    """A child of this process.

    Attributes:
        pid: its number; nobody else's until `wait` said that it ended.
        orders: what is written there it reads as its stdin.
        reports: what it writes to its stdout.
        status: how it ended, negative for a signal; None before `wait` has seen that.
    """

    pid: int
    orders: IO[bytes]
    reports: IO[bytes]
    status: int | None = None

    def kill(self) -> None:
        """Kill it; harmless when it is gone."""
        if self.status is None:
            os.kill(self.pid, signal.SIGKILL)

    def wait(self, seconds: float) -> int | None:
        """Wait until it ended; None if it did not."""
        deadline = time.monotonic() + seconds
        while self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
            elif time.monotonic() >= deadline:
                break
            else:
                time.sleep(_TURN)
        return self.status

    def close(self) -> None:
        """Close the pipes: it ends, if it has not."""
        for pipe in (self.orders, self.reports):
            with contextlib.suppress(BrokenPipeError):  # what it was told last, it did not hear
                pipe.close()


def fork(main: Callable[[], None], environment: Mapping[str, str]) -> Forked:
    """Fork a child that runs `main` and ends; call it while this process has one thread.

    Args:
        main: what the child does, with orders on its stdin and reports on its stdout.
        environment: the child's whole environment.

    Raises:
        SourceError: there are no more processes to be had.
    """
    pipes: list[int] = []
    held = signal.pthread_sigmask(signal.SIG_BLOCK, _HELD)
    try:
        try:
            pipes += os.pipe()
            pipes += os.pipe()
            pid = os.fork()
        except OSError as exc:
            for descriptor in pipes:
                os.close(descriptor)
            raise SourceError(
                f"got no worker process ({exc.strerror}), expected one",
                reason="no-worker",
                hint="raise the container's limit on processes or memory, or set --workers 1",
            ) from exc
        heard, orders, reports, said = pipes
        if not pid:
            _be(main, heard, said, environment)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
    os.close(heard)
    os.close(said)
    return Forked(pid, os.fdopen(orders, "wb"), os.fdopen(reports, "rb", buffering=0))


def _be(
    main: Callable[[], None], heard: int, said: int, environment: Mapping[str, str]
) -> NoReturn:
    """Be the child: share nothing with the parent but two pipes and stderr, and never return."""
    status = 1
    try:
        os.setsid()
        os.dup2(heard, 0)
        os.dup2(said, 1)
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))  # above all its locks, and others' pipes
        for number in _HELD:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.environ.clear()
        os.environ.update(environment)
        with contextlib.suppress(OSError), open("/proc/self/comm", "w", encoding="ascii") as f:
            f.write(_NAME)
        main()
        status = 0
    except BaseException:  # noqa: BLE001 - whatever it is, it must not run on as the parent
        os.write(2, traceback.format_exc().encode(errors="replace"))  # its buffers are the parent's
    finally:
        os._exit(status)  # at once: nothing of the parent's is to be cleaned up here
