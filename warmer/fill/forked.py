"""Processes forked from this one: what is imported here need not be imported there.

A new interpreter would take half a second to import what a transfer needs, in which the wire stands
still. A fork of a process with several threads may find a lock held for ever: it belongs where
there is one.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import selectors
import signal
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, Final, NoReturn

from warmer.errors import VolumeError, as_record, from_record

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_TURN: Final = 0.005
_CHUNK: Final = 1 << 16
_END: Final = 5.0
"""Seconds given to killed children, which the kernel may hold back while a disk flushes."""
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
        OSError: there are no more processes to be had.
    """
    pipes: list[int] = []
    held = signal.pthread_sigmask(signal.SIG_BLOCK, _HELD)
    try:
        try:
            pipes += os.pipe()
            pipes += os.pipe()
            pid = os.fork()
        except OSError:
            for descriptor in pipes:
                os.close(descriptor)
            raise
        heard, orders, reports, said = pipes
        if not pid:
            _be(main, heard, said, environment)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
    os.close(heard)
    os.close(said)
    return Forked(pid, os.fdopen(orders, "wb"), os.fdopen(reports, "rb", buffering=0))


def end(team: Sequence[Forked]) -> None:
    """Kill children and wait until they are gone, or the kernel holds them back for too long."""
    for one in team:
        one.kill()
    deadline = time.monotonic() + _END
    for one in team:
        one.wait(max(0.0, deadline - time.monotonic()))
        one.close()


def side_by_side(jobs: Sequence[Callable[[], Any]]) -> list[Any]:
    """Do jobs that write files: each in a fork of its own, or in threads where there are some.

    Args:
        jobs: what they return is JSON; what they did before one of them failed is left.

    Returns:
        What they returned, in their order.

    Raises:
        WarmerError: the first failure of a job; the others are stopped, where they are forks.
    """
    if len(jobs) < 2:
        return [job() for job in jobs]
    team: list[Forked] = []
    try:
        if threading.active_count() == 1:
            with contextlib.suppress(OSError):  # threads, then
                team.extend(fork(functools.partial(_report, job), os.environ) for job in jobs)
        if len(team) < len(jobs):
            end(team)
            with ThreadPoolExecutor(len(jobs)) as pool:
                return [done.result() for done in [pool.submit(job) for job in jobs]]
        return _hear(team)
    finally:
        end(team)


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
        given = dict(environment)  # it may be this process's own
        os.environ.clear()
        os.environ.update(given)
        with contextlib.suppress(OSError), open("/proc/self/comm", "w", encoding="ascii") as f:
            f.write(_NAME)
        main()
        status = 0
    except BaseException:  # noqa: BLE001 - whatever it is, it must not run on as the parent
        os.write(2, traceback.format_exc().encode(errors="replace"))  # its buffers are the parent's
    finally:
        os._exit(status)  # at once: nothing of the parent's is to be cleaned up here


def _report(job: Callable[[], Any]) -> None:
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    try:
        said = {"done": job()}
    except BaseException as exc:  # noqa: BLE001 - said to the parent, which raises it
        said = {"failure": as_record(exc)}
    with open(1, "w", encoding="utf-8", closefd=False) as out:
        json.dump(said, out)


def _end_with_the_parent() -> NoReturn:
    os.read(0, 1)  # nobody writes there: it returns when nobody can
    os._exit(1)


def _hear(team: Sequence[Forked]) -> list[Any]:
    """Hear all out, whoever ends first.

    Raises:
        WarmerError: the first failure.
    """
    said = {one.pid: b"" for one in team}
    results: dict[int, Any] = {}
    with selectors.DefaultSelector() as selector:
        for one in team:
            selector.register(one.reports, selectors.EVENT_READ, one)
        while selector.get_map():
            for key, _ in selector.select():
                more = os.read(key.fd, _CHUNK)
                said[key.data.pid] += more
                if not more:
                    selector.unregister(key.fileobj)
                    results[key.data.pid] = _result(key.data, said[key.data.pid])
    return [results[one.pid] for one in team]


def _result(one: Forked, said: bytes) -> Any:
    if not said:
        raise VolumeError(
            f"got a process ended by {how_ended(one.wait(_END))}, expected it to write files",
            reason="worker-died",
            hint="raise the container's memory limit",
        )
    record = json.loads(said)
    if "failure" in record:
        raise from_record(record["failure"])
    return record["done"]


def how_ended(status: int | None) -> str:
    """Say an exit status, or a signal."""
    return f"signal {-status}" if status is not None and status < 0 else f"status {status or 0}"
